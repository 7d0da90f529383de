/* The floor: epoll, read, memmem, write. A console's last bytes are kept, so that a trigger may span two reads; the
 * bytes are recorded, as ours are, after the frame is out.
 *
 *   reactor LOG_DIR CONTROL_FD CONSOLE_FD...      says "ready", ends with its standard input */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static const char TRIGGER[] = "Digest integrity check FAILED";
#define KEEP (sizeof TRIGGER - 2)
#define CHUNK 65536
static char frame[50];

struct console {
    int fd, log;
    size_t kept;
    char tail[KEEP];
};

int main(int argc, char **argv) {
    int control = atoi(argv[2]), count = argc - 3, poller = epoll_create1(0);
    struct console *all = calloc(count, sizeof *all);
    static char buffer[KEEP + CHUNK];
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}}, found[64];
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    for (int i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/c%d.log", argv[1], i);
        all[i].fd = atoi(argv[3 + i]);
        all[i].log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
        fcntl(all[i].fd, F_SETFL, O_NONBLOCK);
        event.data.ptr = &all[i];
        epoll_ctl(poller, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    memset(frame, 'F', sizeof frame);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, found, 64, -1);
        for (int i = 0; i < n; i++) {
            struct console *c = found[i].data.ptr;
            if (!c) return 0;
            memcpy(buffer, c->tail, c->kept);
            ssize_t got = read(c->fd, buffer + c->kept, CHUNK);
            if (got <= 0) continue;
            size_t have = c->kept + got;
            if (memmem(buffer, have, TRIGGER, sizeof TRIGGER - 1))
                if (write(control, frame, sizeof frame) < 0) return 1;
            if (write(c->log, buffer + c->kept, got) < 0) return 1;
            c->kept = have < KEEP ? have : KEEP;
            memcpy(c->tail, buffer + have - c->kept, c->kept);
        }
    }
}
