/* freezeframe.harness.core.link._native: what both files of the module share. The reference for all of it is harness/core/link/skimpure.py. */
#ifndef FREEZEFRAME_NATIVE_H
#define FREEZEFRAME_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "capture files are written in little-endian order; a big-endian machine uses the Python code"
#endif

/* pcapng's enhanced packet block: 28 bytes before the data, padding to a whole word and 4 bytes behind it. */
#define EPB_TYPE 6u
#define EPB_HEAD_BYTES 28
#define EPB_LEAST_BYTES 32
#define MAX_BLOCK_BYTES (16u << 20)
#define MAX_FRAME_BYTES (1u << 20)
#define NS_PER_S INT64_C(1000000000)

typedef struct {
    const uint8_t *data;
    uint32_t captured;
    uint32_t total;
    int64_t t_ns;
} epb_t;

/* Little-endian words at any address. */
static inline uint32_t u32_at(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void put_u32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }

/* The block at the beginning of `left` bytes, when it is a whole enhanced packet block of interface 0 whose lengths
   agree with each other and with `left`. */
static inline int epb_at(const uint8_t *at, Py_ssize_t left, epb_t *found)
{
    if (left < EPB_LEAST_BYTES || u32_at(at) != EPB_TYPE || u32_at(at + 8) != 0)
        return 0;
    uint32_t total = u32_at(at + 4), captured = u32_at(at + 20);
    if (total < EPB_LEAST_BYTES || total % 4 || total > MAX_BLOCK_BYTES || total > (size_t)left)
        return 0;
    if (captured > total - EPB_LEAST_BYTES || captured > MAX_FRAME_BYTES || u32_at(at + total - 4) != total)
        return 0;
    found->data = at + EPB_HEAD_BYTES;
    found->captured = captured;
    found->total = total;
    uint64_t t_ns = (uint64_t)u32_at(at + 12) << 32 | u32_at(at + 16);
    found->t_ns = t_ns > INT64_MAX ? INT64_MAX : (int64_t)t_ns;
    return 1;
}

/* What a TCP checksum says; the numbers of skimpure.py. */
typedef enum { SUM_GOOD, SUM_UNFINISHED, SUM_ZERO, SUM_BAD } sum_t;
sum_t judge_sum(const uint8_t *tcp, size_t length, const uint8_t *addresses, size_t address_bytes);

extern PyMethodDef capture_methods[];
PyObject *py_judge_sum(PyObject *self, PyObject *args);
int add_skim_types(PyObject *module);

#endif
