/* Plays N consoles: steady log text at a given rate on each, and on one of them at a time a trigger line; measures the
 * time from just before the write of the trigger line to the arrival of the answer on a control line.
 *
 *   generator BYTES_PER_S WARM_UP_MS TRIGGERS GAP_US ANSWER_MS CONTROL_FD CONSOLE_FD...
 *
 * Output: one line "latency_ns" a trigger (-1: no answer within ANSWER_MS; 0: none is waited for), then "sent BYTES" and
 * "refused BYTES": what a console did not take in time, which is lost, as on a UART. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 1000000L
#define LIMIT_NS 30000000000L
static const char TRIGGER[] = "[  123.456789] block drbd0: Digest integrity check FAILED: 4711s +65536\r\n";
static const char LINE[] = "[  123.456789] host: 128 writes, 8388608 bytes, queue 12, cache 31 percent dirty, all well\r\n";

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int64_t sent, refused;

/* All of it, or as much as the line takes within 5 ms: a reader that is too slow loses the rest. */
static long put(int fd, const char *data, long size) {
    long done = 0;
    while (done < size) {
        ssize_t n = write(fd, data + done, size - done);
        if (n < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                struct pollfd p = {fd, POLLOUT, 0};
                if (poll(&p, 1, 5) == 1) continue;
            }
            break;
        }
        done += n;
    }
    sent += done;
    refused += size - done;
    return done;
}

int main(int argc, char **argv) {
    long rate = atol(argv[1]), warm_up_ms = atol(argv[2]), triggers = atol(argv[3]), gap_us = atol(argv[4]);
    int64_t answer_ns = atol(argv[5]) * 1000000L;
    int control = atoi(argv[6]), consoles = argc - 7, *console = calloc(consoles, sizeof(int));
    long *column = calloc(consoles, sizeof(long));
    double *owed = calloc(consoles, sizeof(double));
    char junk[4096];
    for (int i = 0; i < consoles; i++) {
        console[i] = atoi(argv[7 + i]);
        fcntl(console[i], F_SETFL, O_NONBLOCK);
        owed[i] = (double)i / consoles * rate / 100;
    }
    fcntl(control, F_SETFL, O_NONBLOCK);
    srand(7);
    int64_t start = now_ns(), last = start, due = start + warm_up_ms * 1000000L, told = 0;
    long done = 0;
    while (done < triggers && last - start < LIMIT_NS) {
        int64_t now = now_ns();
        double grown = (now - last) / 1e9 * rate;
        last = now;
        for (int i = 0; i < consoles; i++) {
            owed[i] += grown;
            /* A UART's FIFO hands over small pieces: at 11.5 kB/s some hundred bytes at a time. */
            if (owed[i] < (rate < 100000 ? rate / 100 : 1)) continue;
            while (owed[i] >= 1) {
                long left = sizeof LINE - 1 - column[i], n = owed[i] < left ? (long)owed[i] : left;
                long wrote = put(console[i], LINE + column[i], n);
                column[i] = (column[i] + n) % (sizeof LINE - 1);
                owed[i] -= n;
                if (wrote < n) { /* a line that is full loses text, not time */
                    refused += owed[i];
                    owed[i] = 0;
                }
            }
        }
        now = now_ns();
        if (!told && now >= due) {
            int i = rand() % consoles;
            while (column[i]) {
                long n = sizeof LINE - 1 - column[i];
                put(console[i], LINE + column[i], n);
                column[i] = 0;
            }
            while (read(control, junk, sizeof junk) > 0) {}
            told = now_ns(); /* before the write: a reactor of high priority may run before it returns */
            put(console[i], TRIGGER, sizeof TRIGGER - 1);
        }
        struct pollfd p = {control, POLLIN, 0};
        struct timespec wait = {0, TICK_NS};
        int ready = ppoll(&p, 1, &wait, NULL);
        now = now_ns();
        if (ready == 1 && (p.revents & POLLIN)) {
            if (read(control, junk, sizeof junk) > 0 && told) {
                printf("%ld\n", (long)(now - told));
                told = 0;
                done++;
                due = now + gap_us * 1000L / 2 + rand() % (gap_us + 1) * 1000L;
            }
        } else if (told && now - told > answer_ns) {
            printf("-1\n");
            told = 0;
            done++;
            due = now + gap_us * 1000L / 2 + rand() % (gap_us + 1) * 1000L;
        }
    }
    printf("sent %ld\nrefused %ld\n", (long)sent, (long)refused);
    return 0;
}
