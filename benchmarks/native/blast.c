/* Sends COUNT Ethernet frames of SIZE bytes (header included) on an interface, PPS a second (0: as fast as it can), a
 * millisecond's worth of them at once, and at most BATCH.
 *
 *   blast INTERFACE SIZE COUNT PPS        prints the seconds that took
 *
 * UDP datagrams to nobody's address, which the receiver's kernel throws away at once. A batch is one datagram for the
 * kernel, which it cuts up just before the device: that takes a fraction of the time of as many datagrams. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif
#define BATCH 64
#define BATCHES_A_SECOND 1000
#define LONGEST 65000 /* of an IP datagram */

struct headers {
    struct virtio_net_hdr gso;
    struct ether_header ethernet;
    struct iphdr ip;
    struct udphdr udp;
} __attribute__((packed));
#define FRAME_HEAD (long)(sizeof(struct headers) - offsetof(struct headers, ethernet))

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static uint32_t sum16(const void *data, size_t length) {
    uint32_t sum = 0;
    uint16_t word;
    for (size_t at = 0; at < length; at += sizeof word) {
        memcpy(&word, (const char *)data + at, sizeof word);
        sum += word;
    }
    return sum;
}

static uint16_t folded(uint32_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

int main(int argc, char **argv) {
    long size = atol(argv[2]), count = atol(argv[3]), payload = size - FRAME_HEAD;
    double pps = atof(argv[4]);
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(argv[1]), .sll_halen = 6};
    static struct {
        struct headers head;
        char payload[LONGEST];
    } __attribute__((packed)) out;
    long most = pps > 0 && pps < BATCH * BATCHES_A_SECOND ? pps / BATCHES_A_SECOND : BATCH;
    if (most * payload > LONGEST - 28) most = (LONGEST - 28) / payload;
    if (most < 1) most = 1;
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &(int){1}, sizeof(int)))
        return perror("blast"), 1;
    double start = now_s();
    for (long sent = 0; sent < count;) {
        while (pps > 0 && now_s() < start + sent / pps) {}
        long n = count - sent < most ? count - sent : most;
        long datagram = sizeof(struct iphdr) + sizeof(struct udphdr) + n * payload;
        out.head = (struct headers){
            .gso = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .hdr_len = FRAME_HEAD,
                    .gso_type = n > 1 ? VIRTIO_NET_HDR_GSO_UDP_L4 : VIRTIO_NET_HDR_GSO_NONE,
                    .gso_size = n > 1 ? payload : 0,
                    .csum_start = FRAME_HEAD - sizeof(struct udphdr), .csum_offset = offsetof(struct udphdr, check)},
            .ethernet = {{2, 0xb1, 0xa5, 0x70, 0, 1}, {2, 0xb1, 0xa5, 0x70, 0, 2}, htons(ETHERTYPE_IP)},
            .ip = {.version = 4, .ihl = 5, .tot_len = htons(datagram), .ttl = 1, .protocol = IPPROTO_UDP,
                   .saddr = htonl(0xc0000201), .daddr = htonl(0xc0000202)}, /* TEST-NET-1 */
            .udp = {.source = htons(9), .dest = htons(9), .len = htons(datagram - sizeof(struct iphdr))},
        };
        out.head.ip.check = ~folded(sum16(&out.head.ip, sizeof out.head.ip));
        out.head.udp.check = folded(sum16(&out.head.ip.saddr, 8) + htons(IPPROTO_UDP) + out.head.udp.len);
        long length = sizeof out.head + n * payload;
        if (sendto(fd, &out, length, 0, (struct sockaddr *)&to, sizeof to) == length)
            sent += n;
        else
            return perror("blast"), 1;
    }
    printf("%f\n", now_s() - start);
    return 0;
}
