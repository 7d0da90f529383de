"""The replication link of a simulated bench, disturbed: frames dropped, sent twice, sent late, cut in one
direction. By eBPF programs at the ends' ways out (tcx), so that it works in each network namespace where
this process may administer it."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from freezeframe.harness.edge.netns import INTERFACE, Namespace

BPF_PROG_LOAD: Final = 5
BPF_LINK_CREATE: Final = 28
SCHED_CLS: Final = 3
TCX_EGRESS: Final = 47
SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}
PASS: Final = 0
SHOT: Final = 2
RANDOM: Final = 7
CLONE_REDIRECT: Final = 13
PRIORITY_OFFSET: Final = 32
"""Of ``priority`` in struct __sk_buff."""
SLOW: Final = 0x0001_0002
"""The class 1:2 of the shaper."""
LIMIT_LOG: Final = 1 << 16
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _op(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, offset, value)


def _one_in(count: int, then: list[bytes]) -> bytes:
    """Pass each frame; for one in ``count`` (a power of two), at random, do ``then`` first."""
    head = [
        _op(0xBF, 6, 1),  # r6 = the frame
        _op(0x85, value=RANDOM),
        _op(0x57, 0, value=count - 1),
        _op(0x55, 0, offset=len(then), value=0),  # not this one
    ]
    return b"".join([*head, *then, _op(0xB7, 0, value=PASS), _op(0x95)])


def drop(count: int) -> bytes:
    return _one_in(count, [_op(0xB7, 0, value=SHOT), _op(0x95)])


def cut() -> bytes:
    return _op(0xB7, 0, value=SHOT) + _op(0x95)


def duplicate(count: int, interface: int) -> bytes:
    again = [
        _op(0xBF, 1, 6), _op(0xB7, 2, value=interface), _op(0xB7, 3, value=0), _op(0x85, value=CLONE_REDIRECT),
    ]  # fmt: skip
    return _one_in(count, again)


def delay(count: int) -> bytes:
    """Into the slow class: later frames overtake it."""
    return _one_in(count, [_op(0xB7, 2, value=SLOW), _op(0x63, 6, 2, PRIORITY_OFFSET)])


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    made: int = _libc.syscall(SYS_BPF[os.uname().machine], command, buffer, 128)
    if made < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return made


def _load(program: bytes) -> int:
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(LIMIT_LOG)
    where = (ctypes.addressof(one) for one in (code, licence, log))
    code_at, licence_at, log_at = where
    attributes = struct.pack(
        "<IIQQIIQ", SCHED_CLS, len(program) // 8, code_at, licence_at, 1, LIMIT_LOG, log_at
    )
    return _bpf(BPF_PROG_LOAD, attributes)


class LinkEnd:
    """One end of the link; ``namespace``: the symlink in the simulator's folder."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = Namespace.open(str(namespace.readlink()))

    def close(self) -> None:
        self._namespace.close()

    def set(self, state: str) -> None:
        def do() -> None:
            from pyroute2 import IPRoute

            with IPRoute() as route:
                route.link("set", index=route.link_lookup(ifname=INTERFACE)[0], state=state)

        self._namespace.run(do)

    @contextlib.contextmanager
    def disturbed(self, how: str) -> Iterator[None]:
        """``how``: "drop", "duplicate", "reorder" or "cut", for what this end sends."""
        index = self._namespace.run(_index)
        programs = {
            "drop": drop(16), "duplicate": duplicate(4, index), "reorder": delay(8), "cut": cut(),
        }  # fmt: skip
        program = _load(programs[how])
        try:
            if how == "reorder":
                self._namespace.run(_add_shaper)
            link = self._namespace.run(
                lambda: _bpf(BPF_LINK_CREATE, struct.pack("<IIII", program, index, TCX_EGRESS, 0))
            )
            try:
                yield
            finally:
                os.close(link)
        finally:
            os.close(program)
            if how == "reorder":
                self._namespace.run(_remove_shaper)


def _index() -> int:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return int(route.link_lookup(ifname=INTERFACE)[0])


def _add_shaper() -> None:
    """Class 1:1 passes all; 1:2 is so slow that others overtake what is in it."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        index = route.link_lookup(ifname=INTERFACE)[0]
        route.tc("add", "htb", index, 0x10000, default=1)
        route.tc("add-class", "htb", index, 0x10001, parent=0x10000, rate="1gbit", burst=1 << 20)
        route.tc("add-class", "htb", index, 0x10002, parent=0x10000, rate="4mbit", burst=2048)


def _remove_shaper() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.tc("del", "htb", route.link_lookup(ifname=INTERFACE)[0], 0x10000)
