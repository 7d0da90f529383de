/* Sends COUNT Ethernet frames of SIZE bytes (header included) on an interface, PPS a second (0: as fast as it can), a
 * millisecond's worth of them at once, and at most 64.
 *
 *   blast INTERFACE SIZE COUNT PPS        prints the seconds that took */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define BATCHES_A_SECOND 1000

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    long size = atol(argv[2]), count = atol(argv[3]);
    double pps = atof(argv[4]);
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(argv[1]), .sll_halen = 6};
    static char frame[65536];
    struct mmsghdr batch[BATCH] = {0};
    struct iovec part = {frame, size};
    memset(frame, 0xff, 6);
    frame[12] = 0x88; /* local experimental ethertype: no protocol takes it */
    frame[13] = 0xb5;
    for (int i = 0; i < BATCH; i++) {
        batch[i].msg_hdr.msg_name = &to;
        batch[i].msg_hdr.msg_namelen = sizeof to;
        batch[i].msg_hdr.msg_iov = &part;
        batch[i].msg_hdr.msg_iovlen = 1;
    }
    /* Straight to the device: it has no queue that could hold anything back. */
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &(int){1}, sizeof(int));
    long most = pps > 0 && pps < BATCH * BATCHES_A_SECOND ? pps / BATCHES_A_SECOND : BATCH;
    if (most < 1) most = 1;
    double start = now_s();
    for (long sent = 0; sent < count;) {
        while (pps > 0 && now_s() < start + sent / pps) {}
        int n = sendmmsg(fd, batch, count - sent < most ? count - sent : most, 0);
        if (n > 0) sent += n;
    }
    printf("%f\n", now_s() - start);
    return 0;
}
