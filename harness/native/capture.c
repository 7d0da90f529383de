/* Blocks of the kernel's capture ring -> enhanced packet blocks; and what a run of such blocks holds. */
#include "native.h"

/* linux/if_packet.h: struct tpacket_block_desc with tpacket_hdr_v1, and struct tpacket3_hdr. */
#define BLOCK_COUNT_AT 12
#define BLOCK_FIRST_AT 16
#define BLOCK_HEAD_BYTES 20
#define PACKET_HEAD_BYTES 40
#define PACKET_SEC_AT 4
#define PACKET_NSEC_AT 8
#define PACKET_SNAPLEN_AT 12
#define PACKET_LEN_AT 16
#define PACKET_STATUS_AT 20
#define PACKET_MAC_AT 24
#define PACKET_VLAN_TCI_AT 32
#define PACKET_VLAN_TPID_AT 36
#define STATUS_VLAN_VALID (1u << 4)
#define STATUS_VLAN_TPID_VALID (1u << 6)
#define TPID_802_1Q 0x8100
#define MAC_BYTES 12
#define TAG_BYTES 4

static PyObject *contradiction(const char *what)
{
    PyErr_Format(PyExc_ValueError, "capture ring: %s", what);
    return NULL;
}

/* ring_block(block, out) -> (bytes written to out, frames, captured bytes, first time, last time) */
static PyObject *ring_block(PyObject *self, PyObject *args)
{
    Py_buffer block, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*", &block, &out))
        return NULL;
    const uint8_t *base = block.buf;
    uint8_t *to = out.buf;
    Py_ssize_t size = block.len, room = out.len, used = 0, frames = 0;
    int64_t first_ns = 0, t_ns = 0;
    long long captured_bytes = 0;
    PyObject *result = NULL;

    /* The kernel handed the block over by a word in it that the caller has read. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (size < BLOCK_HEAD_BYTES) {
        contradiction("block without its header");
        goto done;
    }
    uint32_t count = u32_at(base + BLOCK_COUNT_AT);
    uint64_t at = u32_at(base + BLOCK_FIRST_AT);
    for (uint32_t n = 0; n < count; n++) {
        if (at + PACKET_HEAD_BYTES > (uint64_t)size) {
            contradiction("frame outside of its block");
            goto done;
        }
        const uint8_t *head = base + at;
        uint32_t captured = u32_at(head + PACKET_SNAPLEN_AT);
        uint16_t mac;
        memcpy(&mac, head + PACKET_MAC_AT, sizeof mac);
        if (at + mac + captured > (uint64_t)size || captured > MAX_FRAME_BYTES) {
            contradiction("frame longer than its block");
            goto done;
        }
        const uint8_t *frame = head + mac;
        uint32_t status = u32_at(head + PACKET_STATUS_AT), length = u32_at(head + PACKET_LEN_AT);
        uint32_t tag = status & STATUS_VLAN_VALID && captured >= MAC_BYTES ? TAG_BYTES : 0;
        captured += tag;
        length = length > UINT32_MAX - tag ? UINT32_MAX : length + tag;
        uint32_t padded = (captured + 3) & ~3u, total = EPB_LEAST_BYTES + padded;
        if ((Py_ssize_t)total > room - used) {
            contradiction("no room for the frames of a block");
            goto done;
        }
        t_ns = (int64_t)u32_at(head + PACKET_SEC_AT) * NS_PER_S + u32_at(head + PACKET_NSEC_AT);
        uint8_t *epb = to + used;
        put_u32(epb, EPB_TYPE);
        put_u32(epb + 4, total);
        put_u32(epb + 8, 0);
        put_u32(epb + 12, (uint32_t)((uint64_t)t_ns >> 32));
        put_u32(epb + 16, (uint32_t)t_ns);
        put_u32(epb + 20, captured);
        put_u32(epb + 24, length);
        if (padded > captured)
            put_u32(epb + EPB_HEAD_BYTES + padded - 4, 0);
        if (tag) { /* the kernel took it out: what is recorded is the frame as sent */
            uint16_t tpid = TPID_802_1Q;
            if (status & STATUS_VLAN_TPID_VALID)
                memcpy(&tpid, head + PACKET_VLAN_TPID_AT, sizeof tpid);
            uint32_t tci = u32_at(head + PACKET_VLAN_TCI_AT);
            uint8_t bytes[TAG_BYTES] = {(uint8_t)(tpid >> 8), (uint8_t)tpid, (uint8_t)(tci >> 8), (uint8_t)tci};
            memcpy(epb + EPB_HEAD_BYTES, frame, MAC_BYTES);
            memcpy(epb + EPB_HEAD_BYTES + MAC_BYTES, bytes, TAG_BYTES);
            memcpy(epb + EPB_HEAD_BYTES + MAC_BYTES + TAG_BYTES, frame + MAC_BYTES, captured - MAC_BYTES - TAG_BYTES);
        } else {
            memcpy(epb + EPB_HEAD_BYTES, frame, captured);
        }
        put_u32(epb + total - 4, total);
        if (n == 0)
            first_ns = t_ns;
        used += total;
        frames++;
        captured_bytes += captured;
        at += u32_at(head);
    }
    result = Py_BuildValue("nnLLL", used, frames, captured_bytes, (long long)first_ns, (long long)t_ns);
done:
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* all was read before the caller gives the block back */
    PyBuffer_Release(&block);
    PyBuffer_Release(&out);
    return result;
}

/* survey(data, at, most) -> (end, frames, captured bytes, first time, last time) of the whole enhanced packet blocks of
   interface 0 that stand from `at` on; at most `most` of them. */
static PyObject *survey(PyObject *self, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t at, most, frames = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nn", &data, &at, &most))
        return NULL;
    int64_t first_ns = 0, last_ns = 0;
    long long captured_bytes = 0;
    epb_t epb;
    while (frames < most && at >= 0 && at < data.len
           && epb_at((const uint8_t *)data.buf + at, data.len - at, &epb)) {
        if (frames++ == 0)
            first_ns = epb.t_ns;
        last_ns = epb.t_ns;
        captured_bytes += epb.captured;
        at += epb.total;
    }
    PyBuffer_Release(&data);
    return Py_BuildValue("nnLLL", at, frames, captured_bytes, (long long)first_ns, (long long)last_ns);
}

PyMethodDef capture_methods[] = {
    {"ring_block", ring_block, METH_VARARGS, "One block of the capture ring as enhanced packet blocks."},
    {"judge_sum", py_judge_sum, METH_VARARGS, "What the TCP checksum of a frame says."},
    {"survey", survey, METH_VARARGS, "How far the enhanced packet blocks go, and what they hold."},
    {NULL, NULL, 0, NULL},
};
