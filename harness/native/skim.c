/* Passing over the frames that tell nothing new: the middle of a healthy bulk transfer, and what is not the link's. */
#include "native.h"
#include <structmember.h>

#define ETHERNET_BYTES 14
#define TCP_HEADER_BYTES 20
#define LEAST_FRAME_BYTES 54
#define MAX_VLAN_TAGS 2
#define FIN_SYN_RST 0x07
#define ACK 0x10
#define NOT_FRAGMENTED_MASK 0x3fff
#define IPPROTO_TCP_ 6
#define IPPROTO_UDP_ 17
#define IPPROTO_ICMP_ 1
#define MAX_KEY_BYTES 36
#define NEVER (-(1LL << 62))
#define TIMESTAMPS_OFF (-2)
#define ALIGNED_TIMESTAMP 0x0101080a

static inline uint16_t be16_at(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static inline uint32_t be32_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* --- Fill: the body of one packet that is arriving ------------------------------------------------------------- */
typedef struct {
    PyObject_HEAD
    PyObject *body; /* bytes of `length`, uninitialised behind `filled`; NULL: none has begun */
    Py_ssize_t length, filled;
    char discarding;
} Fill;

static PyTypeObject Fill_Type;

static void fill_dealloc(Fill *self)
{
    Py_CLEAR(self->body);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *fill_begin(Fill *self, PyObject *argument)
{
    Py_ssize_t length = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (length == -1 && PyErr_Occurred())
        return NULL;
    if (length < 1 || length > (Py_ssize_t)MAX_BLOCK_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a body of this length is not filled");
        return NULL;
    }
    PyObject *body = PyBytes_FromStringAndSize(NULL, length);
    if (body == NULL)
        return NULL;
    Py_XSETREF(self->body, body);
    self->length = length;
    self->filled = 0;
    Py_RETURN_NONE;
}

/* Copy what fits; with `whole`, all or nothing, and nothing that would complete the body. */
static Py_ssize_t fill_copy(Fill *self, const uint8_t *from, Py_ssize_t length, int whole)
{
    Py_ssize_t left = self->body == NULL ? 0 : self->length - self->filled;
    if (whole && length >= left)
        return -1;
    if (length > left)
        length = left;
    if (length > 0)
        memcpy(PyBytes_AS_STRING(self->body) + self->filled, from, (size_t)length);
    self->filled += length;
    return length;
}

static PyObject *fill_take(Fill *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t taken = fill_copy(self, view.buf, view.len, 0);
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(taken);
}

static PyObject *fill_swallow(Fill *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t taken = fill_copy(self, view.buf, view.len, 1);
    PyBuffer_Release(&view);
    return PyBool_FromLong(taken >= 0);
}

static PyObject *fill_finish(Fill *self, PyObject *unused)
{
    (void)unused;
    if (self->body == NULL || self->filled != self->length) {
        PyErr_SetString(PyExc_ValueError, "the body is not complete");
        return NULL;
    }
    PyObject *body = self->body;
    self->body = NULL;
    self->length = self->filled = 0;
    return body;
}

static PyObject *fill_drop(Fill *self, PyObject *unused)
{
    (void)unused;
    Py_CLEAR(self->body);
    self->length = self->filled = 0;
    Py_RETURN_NONE;
}

static PyObject *fill_discard(Fill *self, PyObject *unused)
{
    self->discarding = 1;
    return fill_drop(self, unused);
}

static PyObject *fill_complete(Fill *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->body != NULL && self->filled == self->length);
}

static PyMethodDef fill_methods[] = {
    {"begin", (PyCFunction)fill_begin, METH_O, "Expect a body of so many bytes."},
    {"take", (PyCFunction)fill_take, METH_O, "Copy what fits; how many bytes that was."},
    {"swallow", (PyCFunction)fill_swallow, METH_O, "Copy all of it, if the body goes on behind it."},
    {"finish", (PyCFunction)fill_finish, METH_NOARGS, "The complete body."},
    {"drop", (PyCFunction)fill_drop, METH_NOARGS, "Forget the body that has begun."},
    {"discard", (PyCFunction)fill_discard, METH_NOARGS, "Nobody wants this direction's bytes."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef fill_members[] = {
    {"filled", T_PYSSIZET, offsetof(Fill, filled), READONLY, NULL},
    {"length", T_PYSSIZET, offsetof(Fill, length), READONLY, NULL},
    {"discarding", T_BOOL, offsetof(Fill, discarding), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef fill_properties[] = {
    {"complete", (getter)fill_complete, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyTypeObject Fill_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "freezeframe.harness.core.link._native.Fill",
    .tp_basicsize = sizeof(Fill),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)fill_dealloc,
    .tp_methods = fill_methods,
    .tp_members = fill_members,
    .tp_getset = fill_properties,
};

/* --- HalfState: one direction of a TCP connection -------------------------------------------------------------- */
typedef struct {
    PyObject_HEAD
    long long next_seq; /* -1: not known */
    long long offset, last_packet_no;
    long long acked, acked_seq, edge, max_window, ts_recent; /* as in skimpure.py */
    int scale;
    char steady, verify, sums_known, spoken;
    PyObject *fill, *other;
} Half;

static PyTypeObject Half_Type;

static PyObject *half_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    Half *self = (Half *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->next_seq = self->acked_seq = self->ts_recent = self->scale = -1;
        self->acked = NEVER;
        self->edge = -NEVER;
        self->verify = 1;
    }
    return (PyObject *)self;
}

static int half_traverse(Half *self, visitproc visit, void *arg)
{
    Py_VISIT(self->fill);
    Py_VISIT(self->other);
    return 0;
}

static int half_clear(Half *self)
{
    Py_CLEAR(self->fill);
    Py_CLEAR(self->other);
    return 0;
}

static void half_dealloc(Half *self)
{
    PyObject_GC_UnTrack(self);
    half_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef half_members[] = {
    {"next_seq", T_LONGLONG, offsetof(Half, next_seq), 0, NULL},
    {"offset", T_LONGLONG, offsetof(Half, offset), 0, NULL},
    {"last_packet_no", T_LONGLONG, offsetof(Half, last_packet_no), 0, NULL},
    {"acked", T_LONGLONG, offsetof(Half, acked), 0, NULL},
    {"acked_seq", T_LONGLONG, offsetof(Half, acked_seq), 0, NULL},
    {"edge", T_LONGLONG, offsetof(Half, edge), 0, NULL},
    {"max_window", T_LONGLONG, offsetof(Half, max_window), 0, NULL},
    {"ts_recent", T_LONGLONG, offsetof(Half, ts_recent), 0, NULL},
    {"scale", T_INT, offsetof(Half, scale), 0, NULL},
    {"steady", T_BOOL, offsetof(Half, steady), 0, NULL},
    {"verify", T_BOOL, offsetof(Half, verify), 0, NULL},
    {"sums_known", T_BOOL, offsetof(Half, sums_known), 0, NULL},
    {"spoken", T_BOOL, offsetof(Half, spoken), 0, NULL},
    {"fill", T_OBJECT_EX, offsetof(Half, fill), 0, NULL},
    {"other", T_OBJECT_EX, offsetof(Half, other), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject Half_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "freezeframe.harness.core.link._native.HalfState",
    .tp_basicsize = sizeof(Half),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = half_new,
    .tp_dealloc = (destructor)half_dealloc,
    .tp_traverse = (traverseproc)half_traverse,
    .tp_clear = (inquiry)half_clear,
    .tp_members = half_members,
};

/* --- Skimmer: all directions by their key ------------------------------------------------------------------------ */
typedef struct {
    PyObject_HEAD
    PyObject *halves; /* dict: addresses and ports as on the wire -> HalfState */
    long long skipped_frames;
    char any_port;
    uint8_t ports[65536 / 8];
} Skimmer;

static PyObject *skimmer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    Skimmer *self = (Skimmer *)type->tp_alloc(type, 0);
    if (self != NULL && (self->halves = PyDict_New()) == NULL)
        Py_CLEAR(self);
    if (self != NULL)
        self->any_port = 1;
    return (PyObject *)self;
}

static int skimmer_init(Skimmer *self, PyObject *args, PyObject *kwargs)
{
    PyObject *ports;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Skimmer takes the ports only");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O", &ports))
        return -1;
    PyObject *iterator = PyObject_GetIter(ports), *item;
    if (iterator == NULL)
        return -1;
    memset(self->ports, 0, sizeof self->ports);
    self->any_port = 1;
    while ((item = PyIter_Next(iterator)) != NULL) {
        long port = PyLong_AsLong(item);
        Py_DECREF(item);
        if (PyErr_Occurred())
            break;
        self->any_port = 0;
        if (port >= 0 && port <= 65535)
            self->ports[port >> 3] |= (uint8_t)(1 << (port & 7));
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? -1 : 0;
}

static int skimmer_traverse(Skimmer *self, visitproc visit, void *arg)
{
    Py_VISIT(self->halves);
    return 0;
}

static int skimmer_clear(Skimmer *self)
{
    Py_CLEAR(self->halves);
    return 0;
}

static void skimmer_dealloc(Skimmer *self)
{
    PyObject_GC_UnTrack(self);
    skimmer_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static inline int has_port(const Skimmer *self, uint16_t port) { return self->ports[port >> 3] >> (port & 7) & 1; }

typedef struct {
    size_t tcp_at, end; /* of the IP packet within the frame; may lie behind what was captured */
    size_t key_bytes;
    uint8_t key[MAX_KEY_BYTES];
} located_t;

typedef enum { TELLS, TELLS_NOTHING, NOT_OURS } verdict_t;

/* As ipheaders.TUNNEL_PORTS. */
static inline int is_tunnel_port(uint16_t port)
{
    return port == 4789 || port == 8472 || port == 4790 || port == 6081 || port == 2152 || port == 4500
        || port == 1701 || port == 6635;
}

/* Where TCP stands; TELLS: found. Whatever is odd is left to the Python code, which tells hostile from foreign. */
static verdict_t locate(const uint8_t *frame, size_t size, located_t *found, int *odd)
{
    size_t at = ETHERNET_BYTES - 2;
    uint16_t ethertype = be16_at(frame + at);
    *odd = 0;
    for (int tag = 0; tag < MAX_VLAN_TAGS && (ethertype == 0x8100 || ethertype == 0x88a8 || ethertype == 0x9100); tag++) {
        at += 4;
        ethertype = be16_at(frame + at);
    }
    at += 2; /* at most 22 of at least 54 bytes */
    const uint8_t *addresses;
    size_t address_bytes;
    if (ethertype == 0x0800) {
        uint16_t total = be16_at(frame + at + 2);
        if (size < at + 20 + TCP_HEADER_BYTES || frame[at] != 0x45 || (total && total < 20)
            || be16_at(frame + at + 6) & NOT_FRAGMENTED_MASK) {
            *odd = 1;
            return TELLS;
        }
        if (frame[at + 9] == IPPROTO_UDP_ || frame[at + 9] == IPPROTO_ICMP_) {
            if (frame[at + 9] == IPPROTO_UDP_
                && (is_tunnel_port(be16_at(frame + at + 20)) || is_tunnel_port(be16_at(frame + at + 22))))
                *odd = 1;
            return *odd ? TELLS : NOT_OURS;
        }
        if (frame[at + 9] != IPPROTO_TCP_) {
            *odd = 1; /* a tunnel, which may be looked into, or has a name */
            return TELLS;
        }
        found->tcp_at = at + 20;
        found->end = total ? at + total : size; /* 0: above 64 KiB, built by segmentation offload */
        addresses = frame + at + 12;
        address_bytes = 8;
    } else if (ethertype == 0x86dd) {
        if (size < at + 40 + TCP_HEADER_BYTES || frame[at + 6] != IPPROTO_TCP_) {
            *odd = 1;
            return TELLS;
        }
        uint16_t payload = be16_at(frame + at + 4);
        found->tcp_at = at + 40;
        found->end = payload ? found->tcp_at + payload : size;
        addresses = frame + at + 8;
        address_bytes = 32;
    } else if (ethertype < 0x0600 || ethertype == 0x0806 || ethertype == 0x88cc) {
        return NOT_OURS; /* a length, ARP, LLDP: nothing is hidden in them */
    } else {
        *odd = 1;
        return TELLS;
    }
    memcpy(found->key, addresses, address_bytes);
    memcpy(found->key + address_bytes, frame + found->tcp_at, 4);
    found->key_bytes = address_bytes + 4;
    return TELLS;
}

/* The next segment of a steady stream, by the rules at HalfState. */
typedef struct {
    Half *half, *other;
    size_t data_at, length;
    long long tsval, acked_at;
    uint32_t ack;
    uint16_t window;
} next_t;

/* TELLS_NOTHING: `found` is one, and nothing was changed yet; TELLS: the rules of TCP have to judge this frame;
   -1: an exception. */
static int find_next(Skimmer *self, const uint8_t *frame, size_t size, next_t *found)
{
    located_t where;
    int odd;
    if (size < LEAST_FRAME_BYTES)
        return NOT_OURS;
    verdict_t verdict = locate(frame, size, &where, &odd);
    if (verdict == NOT_OURS)
        return NOT_OURS;
    if (odd)
        return TELLS;
    const uint8_t *tcp = frame + where.tcp_at;
    size_t data_at = where.tcp_at + (size_t)(tcp[12] >> 4) * 4;
    if (data_at < where.tcp_at + TCP_HEADER_BYTES || data_at > where.end)
        return TELLS;
    PyObject *key = PyBytes_FromStringAndSize((const char *)where.key, (Py_ssize_t)where.key_bytes);
    if (key == NULL)
        return -1;
    PyObject *known = PyDict_GetItemWithError(self->halves, key);
    Py_DECREF(key);
    if (known == NULL) {
        if (PyErr_Occurred())
            return -1;
        if (!self->any_port && !has_port(self, be16_at(tcp)) && !has_port(self, be16_at(tcp + 2)))
            return NOT_OURS;
        return TELLS;
    }
    if (!PyObject_TypeCheck(known, &Half_Type))
        return TELLS;
    Half *half = (Half *)known;
    if (half->other == NULL || !PyObject_TypeCheck(half->other, &Half_Type))
        return TELLS;
    Half *other = (Half *)half->other;
    uint8_t flags = tcp[13];
    if (!half->steady || (flags & FIN_SYN_RST) || !(flags & ACK) || where.end > size)
        return TELLS;
    if (be32_at(tcp + 4) != (uint32_t)half->next_seq)
        return TELLS;
    size_t length = where.end - data_at;
    if (half->offset + (long long)length > half->edge || (length > 0 && !half->spoken))
        return TELLS;
    long long tsval = -1;
    size_t option_bytes = data_at - where.tcp_at - TCP_HEADER_BYTES;
    if (option_bytes == 12 && be32_at(tcp + 20) == ALIGNED_TIMESTAMP)
        tsval = be32_at(tcp + 24);
    else if (option_bytes)
        return TELLS;
    if (tsval >= 0 && half->ts_recent > 0 && (int32_t)((uint32_t)tsval - (uint32_t)half->ts_recent) < 0)
        return TELLS;
    uint32_t ack = be32_at(tcp + 8);
    long long acked_at = 0;
    if (other->next_seq >= 0) {
        int32_t ahead = (int32_t)(ack - (uint32_t)other->next_seq);
        acked_at = other->offset + ahead;
        if (!other->steady || ahead > 0 || acked_at < other->acked)
            return TELLS; /* acknowledges what was not captured, or its sender's stream is not healthy */
    }
    if (half->verify) {
        sum_t sum = judge_sum(tcp, where.end - where.tcp_at, where.key, where.key_bytes - 4);
        if (sum > SUM_UNFINISHED || (sum == SUM_GOOD && !half->sums_known))
            return TELLS;
    }
    *found = (next_t){half, other, data_at, length, tsval, acked_at, ack, be16_at(tcp + 14)};
    return TELLS_NOTHING;
}

/* What this segment says is believed, and its bytes have been taken. */
static void move_on(const next_t *next, long long number)
{
    Half *half = next->half, *other = next->other;
    if (next->tsval >= 0 && half->ts_recent != TIMESTAMPS_OFF && half->offset <= half->acked)
        half->ts_recent = next->tsval;
    if (other->next_seq < 0) {
        other->acked_seq = next->ack;
    } else {
        other->acked = next->acked_at;
        if (other->scale >= 0) {
            long long window = (long long)next->window << other->scale;
            if (window > other->max_window)
                other->max_window = window;
            if (other->edge == -NEVER || next->acked_at + window > other->edge)
                other->edge = next->acked_at + window;
        }
    }
    half->next_seq = (uint32_t)((uint32_t)half->next_seq + (uint32_t)next->length);
    half->offset += (long long)next->length;
    half->last_packet_no = number;
}

/* TELLS: the Python code must see this frame, and nothing was changed; -1: an exception. */
static int skim_frame(Skimmer *self, const uint8_t *frame, size_t size, long long number)
{
    next_t next;
    int verdict = find_next(self, frame, size, &next);
    if (verdict != TELLS_NOTHING)
        return verdict;
    if (next.length > 0) {
        if (next.half->fill == NULL || !PyObject_TypeCheck(next.half->fill, &Fill_Type))
            return TELLS;
        Fill *fill = (Fill *)next.half->fill;
        if (!fill->discarding && fill_copy(fill, frame + next.data_at, (Py_ssize_t)next.length, 1) < 0)
            return TELLS;
    }
    move_on(&next, number);
    return TELLS_NOTHING;
}

/* next_data(frame, number) */
static PyObject *skimmer_next_data(Skimmer *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "next_data takes a frame and its number");
        return NULL;
    }
    long long number = PyLong_AsLongLong(args[1]);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    next_t next;
    int verdict = find_next(self, buffer.buf, (size_t)buffer.len, &next);
    PyBuffer_Release(&buffer);
    if (verdict < 0)
        return NULL;
    if (verdict != TELLS_NOTHING || next.length == 0 || next.other->next_seq < 0)
        Py_RETURN_NONE;
    /* Making an object may collect garbage, and so run any code. */
    Py_INCREF(next.half);
    Py_INCREF(next.other);
    PyObject *data = PySequence_GetSlice(args[0], (Py_ssize_t)next.data_at, (Py_ssize_t)(next.data_at + next.length));
    PyObject *found = data == NULL ? NULL : PyTuple_Pack(2, (PyObject *)next.half, data);
    if (found != NULL)
        move_on(&next, number);
    Py_XDECREF(data);
    Py_DECREF(next.half);
    Py_DECREF(next.other);
    return found;
}

/* --- the iterator over the frames that tell something ------------------------------------------------------------ */
typedef struct {
    PyObject_HEAD
    Skimmer *skimmer;
    PyObject *view;
    Py_buffer buffer;
    Py_ssize_t at;
    long long number, offset_ns;
} Frames;

static PyTypeObject Frames_Type;

static void frames_dealloc(Frames *self)
{
    if (self->buffer.obj != NULL)
        PyBuffer_Release(&self->buffer);
    Py_CLEAR(self->skimmer);
    Py_CLEAR(self->view);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *frames_next(Frames *self)
{
    epb_t epb;
    const uint8_t *base = self->buffer.buf;
    while (self->at < self->buffer.len && epb_at(base + self->at, self->buffer.len - self->at, &epb)) {
        Py_ssize_t start = self->at + EPB_HEAD_BYTES;
        long long number = self->number++;
        long long t_ns = (long long)((uint64_t)epb.t_ns - (uint64_t)self->offset_ns);
        self->at += epb.total;
        int verdict = skim_frame(self->skimmer, epb.data, epb.captured, number);
        if (verdict < 0)
            return NULL;
        if (verdict == NOT_OURS)
            self->skimmer->skipped_frames++;
        if (verdict != TELLS)
            continue;
        PyObject *frame = PySequence_GetSlice(self->view, start, start + (Py_ssize_t)epb.captured);
        return frame == NULL ? NULL : Py_BuildValue("LNL", t_ns, frame, number);
    }
    return NULL;
}

static PyTypeObject Frames_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "freezeframe.harness.core.link._native.Frames",
    .tp_basicsize = sizeof(Frames),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)frames_dealloc,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)frames_next,
};

static PyObject *skimmer_frames(Skimmer *self, PyObject *args)
{
    PyObject *data;
    long long number, offset_ns;
    if (!PyArg_ParseTuple(args, "OLL", &data, &number, &offset_ns))
        return NULL;
    Frames *frames = PyObject_New(Frames, &Frames_Type);
    if (frames == NULL)
        return NULL;
    frames->skimmer = (Skimmer *)Py_NewRef((PyObject *)self);
    frames->buffer.obj = NULL;
    frames->at = 0;
    frames->number = number;
    frames->offset_ns = offset_ns;
    frames->view = PyMemoryView_FromObject(data);
    if (frames->view == NULL || PyObject_GetBuffer(frames->view, &frames->buffer, PyBUF_SIMPLE) < 0) {
        Py_DECREF(frames);
        return NULL;
    }
    return (PyObject *)frames;
}

static PyMethodDef skimmer_methods[] = {
    {"frames", (PyCFunction)skimmer_frames, METH_VARARGS, "The frames of a run of blocks that tell something."},
    {"next_data", (PyCFunction)(void (*)(void))skimmer_next_data, METH_FASTCALL,
     "Direction and data of a frame that goes on with a steady stream."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef skimmer_members[] = {
    {"halves", T_OBJECT_EX, offsetof(Skimmer, halves), READONLY, NULL},
    {"skipped_frames", T_LONGLONG, offsetof(Skimmer, skipped_frames), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject Skimmer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "freezeframe.harness.core.link._native.Skimmer",
    .tp_basicsize = sizeof(Skimmer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = skimmer_new,
    .tp_init = (initproc)skimmer_init,
    .tp_dealloc = (destructor)skimmer_dealloc,
    .tp_traverse = (traverseproc)skimmer_traverse,
    .tp_clear = (inquiry)skimmer_clear,
    .tp_methods = skimmer_methods,
    .tp_members = skimmer_members,
};

int add_skim_types(PyObject *module)
{
    if (PyType_Ready(&Frames_Type) < 0)
        return -1;
    if (PyModule_AddType(module, &Fill_Type) < 0 || PyModule_AddType(module, &Half_Type) < 0)
        return -1;
    return PyModule_AddType(module, &Skimmer_Type);
}
