/* A serial line between two PTYs: carries bytes both ways, each at a rate that it never exceeds.
 *
 *   pacer BYTES_PER_S MASTER_A MASTER_B      ends with its standard input; says "BYTES_A_TO_B BYTES_B_TO_A" */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 1000000L
#define MOST_OWED_S 0.02 /* a late tick is made up for, a longer pause is not */

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

struct way {
    int from, to;
    double owed;
    long held, at;
    int64_t carried;
    char buffer[4096];
};

static void carry(struct way *w, double grown) {
    w->owed += grown;
    if (w->at == w->held) {
        long most = w->owed < (double)sizeof w->buffer ? (long)w->owed : (long)sizeof w->buffer;
        ssize_t n = most > 0 ? read(w->from, w->buffer, most) : 0;
        w->at = 0;
        w->held = n > 0 ? n : 0;
        w->owed -= w->held;
    }
    if (w->at < w->held) {
        ssize_t n = write(w->to, w->buffer + w->at, w->held - w->at);
        if (n > 0) w->at += n, w->carried += n;
    }
}

int main(int argc, char **argv) {
    double rate = argc == 4 ? atof(argv[1]) : 0;
    static struct way ab, ba;
    if (rate <= 0) return 2;
    ab.from = ba.to = atoi(argv[2]);
    ba.from = ab.to = atoi(argv[3]);
    fcntl(ab.from, F_SETFL, O_NONBLOCK);
    fcntl(ba.from, F_SETFL, O_NONBLOCK);
    double last = now_s();
    for (;;) {
        struct pollfd p = {0, POLLIN, 0};
        struct timespec tick = {0, TICK_NS};
        if (ppoll(&p, 1, &tick, NULL) > 0) break;
        double now = now_s(), grown = (now - last) * rate;
        last = now;
        carry(&ab, grown);
        carry(&ba, grown);
        if (ab.owed > rate * MOST_OWED_S) ab.owed = rate * MOST_OWED_S;
        if (ba.owed > rate * MOST_OWED_S) ba.owed = rate * MOST_OWED_S;
    }
    printf("%ld %ld\n", (long)ab.carried, (long)ba.carried);
    return 0;
}
