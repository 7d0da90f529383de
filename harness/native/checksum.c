/* The TCP checksum: a ones' complement sum of 16-bit words (RFC 1071), here of 32-bit words in 64 bits. The sum of
   words read in this machine's order is the byte-swapped sum of words in the network's order, so that nothing is
   swapped but what is added by number. */
#include "native.h"

static uint64_t sum_bytes(const uint8_t *at, size_t length)
{
    uint64_t a = 0, b = 0;
    uint32_t word[8];
    while (length >= sizeof word) {
        memcpy(word, at, sizeof word);
        a += (uint64_t)word[0] + word[1] + word[2] + word[3];
        b += (uint64_t)word[4] + word[5] + word[6] + word[7];
        at += sizeof word;
        length -= sizeof word;
    }
    a += b;
    while (length >= 4) {
        a += u32_at(at);
        at += 4;
        length -= 4;
    }
    uint32_t last = 0;
    memcpy(&last, at, length);
    return a + last;
}

static uint32_t fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint32_t)sum;
}

static uint32_t swapped(uint32_t value) { return (value & 0xff) << 8 | (value >> 8 & 0xff); }

sum_t judge_sum(const uint8_t *tcp, size_t length, const uint8_t *addresses, size_t address_bytes)
{
    uint32_t by_number = fold((uint64_t)6 + (length >> 16) + (length & 0xffff));
    uint32_t pseudo = fold(sum_bytes(addresses, address_bytes) + swapped(by_number));
    if (fold(pseudo + sum_bytes(tcp, length)) % 0xffff == 0)
        return SUM_GOOD;
    uint16_t field;
    memcpy(&field, tcp + 16, sizeof field);
    if (field == 0)
        return SUM_ZERO;
    return field % 0xffff == pseudo % 0xffff ? SUM_UNFINISHED : SUM_BAD;
}

/* judge_sum(frame, at, end, addresses) */
PyObject *py_judge_sum(PyObject *self, PyObject *args)
{
    Py_buffer frame, addresses;
    Py_ssize_t at, end;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nny*", &frame, &at, &end, &addresses))
        return NULL;
    PyObject *result = NULL;
    if (at < 0 || end > frame.len || end - at < 20)
        PyErr_SetString(PyExc_ValueError, "no TCP header within the frame");
    else
        result = PyLong_FromLong(judge_sum((const uint8_t *)frame.buf + at, (size_t)(end - at), addresses.buf,
                                           (size_t)addresses.len));
    PyBuffer_Release(&frame);
    PyBuffer_Release(&addresses);
    return result;
}
