"""The simulated storage controller: pure firmware, ``step(now, inbox) -> outbox``.

It connects the host side, the store, the replication peer, the console and the control ports. The
fields of ``Controller`` itself are memory that survives a warmstart; ``_boot`` creates what a boot
creates. A power loss ends the object; the next one starts with the content of ``nvram`` and the
medium of the store.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from crc32c import crc32c

from freezeframe.firmware_sim.autonomic import Autonomic
from freezeframe.firmware_sim.config import ControllerConfig
from freezeframe.firmware_sim.console import Console
from freezeframe.firmware_sim.control import Operations
from freezeframe.firmware_sim.drbd_metadata import Metadata
from freezeframe.firmware_sim.drbd_peer import Peer
from freezeframe.firmware_sim.faults import Faults
from freezeframe.firmware_sim.host import HostSide, Job
from freezeframe.firmware_sim.managed import Phase
from freezeframe.firmware_sim.management import FIRMWARE_VERSION, MODEL, Management
from freezeframe.firmware_sim.ports import (
    ConsoleSend,
    ControlBreak,
    ControlData,
    ControlSend,
    HostClosed,
    HostData,
    HostOpened,
    Inbox,
    Outbox,
    ReplicationBlocked,
    ReplicationClose,
    ReplicationClosed,
    ReplicationData,
    ReplicationDial,
    ReplicationOpened,
)
from freezeframe.firmware_sim.rootcause import Nvram, SetStore
from freezeframe.firmware_sim.scrub import AFTER_NS, PAUSE_NS, VERIFY_PASSES, Scrub
from freezeframe.firmware_sim.store import Store
from freezeframe.firmware_sim.tracebuffer import TraceBuffer
from freezeframe.harness.wire.control import PAIR_STATE_NAMES, PairState, Reason, SetKind
from freezeframe.harness.wire.drbd import SECTOR_BYTES, Conn, Role
from freezeframe.harness.wire.nbd import Error as NbdError
from freezeframe.harness.wire.rootcause import EventCode

NS_PER_MS: Final = 1_000_000
MAX_PIECE_BYTES: Final = 1 << 20
"""Longest write that is replicated in one packet."""
MAX_TRIM_BYTES: Final = 32 << 20
_BOOT_ITEM: Final = "boot"
# Used for each write or each step: looking up an enum member takes a tenth of a microsecond.
HOST_WRITE: Final = EventCode.HOST_WRITE
HOST_ACK: Final = EventCode.HOST_ACK
REPL_RECEIVE: Final = EventCode.REPL_RECEIVE
STANDALONE: Final = Conn.STANDALONE
BOOTING, RUNNING, HUNG, OFF = Phase


class Controller:
    """One controller from power-on to power-off. All its inputs and outputs are values of
    ``ports``."""

    management_class: type[Management] = Management
    faults_class: type[Faults] = Faults

    def __init__(self, config: ControllerConfig, nvram: Nvram, store: Store[Metadata]) -> None:
        self.config = config
        self.serial_number = config.serial_number
        self.store = store
        self.trace = TraceBuffer()
        self.sets = SetStore(nvram)
        self.faults = self.faults_class(config.side, self.trace.add)
        self.console = Console("host" if config.side == "primary" else "copy", self.faults.garble)
        self.host = HostSide(store.size_bytes)
        self.phase = OFF
        self.boot_epoch = int.from_bytes(nvram.read(_BOOT_ITEM) or b"", "big")
        self.peer: Peer
        self.management = self.management_class(self)
        self._nvram = nvram
        self.now_ns = 0
        self._boot_ns = 0
        self._boot_done_ns = 0
        self._role = Role.PRIMARY if config.side == "primary" else Role.SECONDARY
        self._pair_state = PairState.SIMPLEX
        self.host_writes = 0
        self._jobs: dict[int, Job] = {}
        self._held: deque[Job] = deque()
        self._sockets: set[int] = set()
        self._dials: dict[str, int] = {"data": 0, "meta": 0}
        self._stale_dials: dict[str, int] = {"data": 0, "meta": 0}
        self._scrub_ns: int | None = None
        self.scrub = Scrub(store)
        self._restart = False
        self._stopping = False
        self._out: list[Outbox] = []
        self._ports: dict[str, Operations] = {}
        self._autonomic = (
            Autonomic(self.serial_number, self.console.line, self.trace.add, self._freeze_self)
            if config.autonomic and config.side == "secondary"
            else None
        )

    # --- inputs and outputs ------------------------------------------------------------------------------------------
    def power_on(self, now_ns: int) -> list[Outbox]:
        """Do the cold boot, once per object."""
        self.now_ns = now_ns
        self._next_epoch()
        self._begin_boot()
        return self._collect()

    def step(self, now_ns: int, inbox: Sequence[Inbox]) -> list[Outbox]:
        """Process the inputs and due timers; return the outputs."""
        self.now_ns = now_ns
        if self.phase is OFF:
            return []
        if (
            self.phase is HUNG
        ):  # the host's port is held, as in every warmstart; nobody reads the lines
            inbox = [one for one in inbox if not isinstance(one, ControlData)]
        self.trace.uptime_ns = now_ns - self._boot_ns
        self.console.set_time(now_ns)
        if self.phase is BOOTING and now_ns >= self._boot_done_ns:
            self._boot()
        for item in inbox:
            self._take(item)
        if self.phase is RUNNING:
            self._work()
        if self._restart:
            self._warmstart()
        elif self._stopping and self.peer.conn is STANDALONE:
            self._shut_down()
        return self._collect()

    def next_deadline(self) -> int | None:
        """Return when to step without input; None: never."""
        if self.phase is BOOTING:
            return self._boot_done_ns
        if self.phase is not RUNNING:
            return None
        due = [self.peer.next_deadline(), self.console.next_deadline(), self._scrub_ns]
        if self._autonomic is not None:
            due.append(self._autonomic.next_deadline())
        return min([deadline for deadline in due if deadline is not None], default=None)

    def shut_down(self, now_ns: int) -> list[Outbox]:
        """Begin a clean shutdown: demote, tell the peer. The phase is OFF when it is complete.
        Host requests wait."""
        if self.phase is RUNNING:
            self.now_ns = now_ns
            self.console.line("shutdown")
            self.trace.add(EventCode.SHUTDOWN)
            self._stopping = True
            self.peer.set_role(now_ns, Role.SECONDARY)
            self.peer.stop(now_ns)
        return self.step(now_ns, [])

    def _shut_down(self) -> None:
        self.store.flush()
        self.store.save_metadata()
        self.phase = OFF

    # --- inputs ---------------------------------------------------------------------------------------
    def _take(self, item: Inbox) -> None:
        match item:
            case HostData():
                jobs = self.host.feed(item.session, item.data)
                if self.phase is RUNNING and not (self._restart or self._stopping):
                    for job in jobs:
                        self._execute(job)
                else:
                    self._held.extend(jobs)
            case ReplicationData() | ReplicationBlocked():
                if item.socket in self._sockets and not self._restart:
                    self.peer.handle(self.now_ns, item)
            case ReplicationOpened():
                self._replication_opened(item)
            case ReplicationClosed():
                self._replication_closed(item)
            case ControlData():
                self._control(item)
            case ControlBreak():
                self._nmi()
            case HostOpened():
                self.trace.add(EventCode.HOST_CONNECT, item.session)
                self.host.opened(item.session, self._role is not Role.PRIMARY)
            case HostClosed():
                self.trace.add(EventCode.HOST_DISCONNECT, item.session)
                self.host.closed(item.session)
            case _:
                assert_never(item)

    def _replication_opened(self, item: ReplicationOpened) -> None:
        """Refuse a connection that was dialled before the restart, or that arrives while this
        controller boots."""
        stale = self.phase is not RUNNING
        if item.kind:
            stale = self._dial_answered(item.kind) or stale
        if stale:
            self._out.append(ReplicationClose(item.socket))
            return
        self._sockets.add(item.socket)
        self.peer.handle(self.now_ns, item)

    def _replication_closed(self, item: ReplicationClosed) -> None:
        if item.socket < 0:
            if not self._dial_answered(item.kind) and self.phase is RUNNING:
                self.peer.handle(self.now_ns, item)
        elif item.socket in self._sockets:
            self._sockets.discard(item.socket)
            self.peer.handle(self.now_ns, item)

    def _dial_answered(self, kind: str) -> bool:
        """Return whether the answered dial belongs to an earlier boot."""
        if self._stale_dials[kind]:
            self._stale_dials[kind] -= 1
            return True
        self._dials[kind] -= 1
        return False

    def _control(self, item: ControlData) -> None:
        is_running = self.phase is RUNNING
        if item.port == "peer" and self._autonomic is not None:
            if is_running:
                self._autonomic.feed(self.now_ns, item.data)
            return
        operations = self._ports.get(item.port)
        if operations is None:
            operations = self._ports[item.port] = Operations(self.management)
        feed = operations.feed if is_running else operations.feed_boot_loader
        if replies := feed(item.data):
            self._out.append(ControlSend(item.port, b"".join(replies)))

    # --- the host's requests --------------------------------------------------------------------------------
    def _execute(self, job: Job) -> None:
        request = job.request
        try:
            match request.kind:
                case "write":
                    self._write(job)
                case "read":
                    self.host.answer(
                        job, self.store.read(request.offset_bytes, request.length_bytes)
                    )
                case "flush":
                    self.trace.add(EventCode.HOST_FLUSH, int.from_bytes(request.cookie, "big"))
                    self._flush()
                    self.host.answer(job)
                case "trim" | "write_zeroes":
                    self._trim(job)
                case "cache":
                    self.host.answer(job)
                case _:
                    assert_never(request.kind)
        except OSError as error:
            self.console.line(f"block drbd0: local disk failed: {error.strerror}")
            self.host.answer(job, error=NbdError.EIO)

    def _write(self, job: Job) -> None:
        request = job.request
        data = request.data
        self.faults.before_write(request.offset_bytes, len(data), self.store.read)
        self.store.write(request.offset_bytes, data)
        if request.fua:
            self.store.flush()
        if len(data) <= MAX_PIECE_BYTES:
            self._replicate(job, request.offset_bytes, data)
        else:
            view = memoryview(data)
            for at in range(0, len(data), MAX_PIECE_BYTES):
                self._replicate(
                    job, request.offset_bytes + at, bytes(view[at : at + MAX_PIECE_BYTES])
                )
        self._plan_scrub()
        if not job.waiting:
            self.host.answer(job)

    def _replicate(self, job: Job, offset_bytes: int, data: bytes) -> None:
        self.host_writes += 1
        write_no = self.host_writes
        sector = offset_bytes // SECTOR_BYTES
        self.trace.add(HOST_WRITE, write_no, sector, len(data), crc32c(data))
        self.console.count_write(len(data))
        if self.peer.replicate(self.now_ns, write_no, offset_bytes, data, fua=job.request.fua):
            job.waiting += 1
            self._jobs[write_no] = job
        else:
            self.trace.add(HOST_ACK, write_no)

    def _trim(self, job: Job) -> None:
        """Handle TRIM and WRITE_ZEROES alike: trimmed blocks read as zeroes on both sides."""
        request = job.request
        self.store.trim(request.offset_bytes, request.length_bytes)
        if request.fua:
            self.store.flush()
        end = request.offset_bytes + request.length_bytes
        for at in range(request.offset_bytes, end, MAX_TRIM_BYTES):
            length = min(MAX_TRIM_BYTES, end - at)
            self.host_writes += 1
            self.trace.add(EventCode.HOST_TRIM, self.host_writes, at // SECTOR_BYTES, length)
            if self.peer.replicate(
                self.now_ns, self.host_writes, at, None, length, fua=request.fua
            ):
                job.waiting += 1
                self._jobs[self.host_writes] = job
        self._plan_scrub()
        if not job.waiting:
            self.host.answer(job)

    def _flush(self) -> None:
        self.store.flush()
        self.peer.close_epoch(self.now_ns)

    def _complete(self) -> None:
        """Answer the host for every write that is stored here and acknowledged, or given up, by
        the other side."""
        for completion in self.peer.take_completions():
            job = self._jobs.pop(completion.write_no, None)
            if job is None:
                continue
            self.trace.add(HOST_ACK, completion.write_no)
            job.waiting -= 1
            if not job.waiting:
                self.host.answer(job)

    # --- work without a request -----------------------------------------------------------------------------
    def _work(self) -> None:
        now_ns = self.now_ns
        deadline_ns = self.peer.next_deadline()
        if deadline_ns is not None and now_ns >= deadline_ns:
            self.peer.tick(now_ns)
        self._complete()
        if self.peer.pair_state != self._pair_state:
            self._pair_state_changed()
        if self._scrub_ns is None:
            self._plan_scrub()
        elif now_ns >= self._scrub_ns:
            self._scrub()
        if self._autonomic is not None:
            self._autonomic.tick(now_ns)
        self.console.tick()

    def _pair_state_changed(self) -> None:
        before, after = self._pair_state, self.peer.pair_state
        self._pair_state = after
        self.trace.add(EventCode.PAIR_STATE, before, after)
        self.console.line(f"pair state: {PAIR_STATE_NAMES[before]} -> {PAIR_STATE_NAMES[after]}")
        if self._autonomic is not None and after != PairState.FULL_DUPLEX:
            self._autonomic.link_lost()

    def _plan_scrub(self) -> None:
        if self._scrub_ns is None and self.store.needs_scrub:
            self._scrub_ns = self.now_ns + AFTER_NS

    def verify(self) -> None:
        """Read back at once what the scrub has not reached, as far as that is a matter of
        milliseconds."""
        for _ in range(VERIFY_PASSES):
            if not self.store.needs_scrub:
                break
            self._scrub()

    def _scrub(self) -> None:
        """Verify some of the recently written blocks; adjacent mismatches are reported in one
        line."""
        for start, end in self.scrub.run(self._trace):
            sector, sectors = start // SECTOR_BYTES, (end - start) // SECTOR_BYTES
            self.console.line(f"block drbd0: Out of sync: start={sector}, size={sectors} (sectors)")
            if self._role is not Role.PRIMARY:
                # On a primary the mark would copy the damage over the correct copy.
                self.peer.mark_out_of_sync(start, end - start)
        self._scrub_ns = self.now_ns + PAUSE_NS if self.store.needs_scrub else None

    def _trace(self, event: EventCode, *args: int) -> None:
        """Write to the event log and notify its observers: the counter of the console and the
        autonomic monitor."""
        self.trace.add(event, *args)
        if event is REPL_RECEIVE:
            self.console.count_write(args[2])
        if self._autonomic is not None:
            self._autonomic.watch(self.now_ns, event, args)

    def _freeze_self(self, reason: Reason, incident_id: bytes) -> None:
        self.management.freeze(SetKind.WARMSTART, reason, incident_id)

    def _nmi(self) -> None:
        """A BREAK: store what there is, and restart. Who hangs has stored it; who boots runs no firmware."""
        if self.phase is RUNNING and not self._restart:
            self.management.store_at_nmi()
        self._restart |= self.phase is not BOOTING

    # --- boot, warmstart ------------------------------------------------------------------------------------
    def _next_epoch(self) -> None:
        self.boot_epoch += 1
        self._nvram.write(_BOOT_ITEM, self.boot_epoch.to_bytes(4, "big"))

    def _begin_boot(self) -> None:
        self._cold = self.phase is OFF
        self.phase = BOOTING
        self._boot_done_ns = self.now_ns + self.config.boot_ns

    def _boot(self) -> None:
        """Start the firmware: banner, a new replication peer, and the held requests."""
        now_ns = self.now_ns
        self.phase = RUNNING
        self._boot_ns = now_ns
        self.trace.uptime_ns = 0
        self.console.boot(now_ns)
        self.scrub = Scrub(self.store)
        kind = "cold boot" if self._cold else "warmstart"
        self.console.line(f"{MODEL} firmware {FIRMWARE_VERSION}")
        self.console.line(
            f"serial number {self.serial_number}, boot epoch {self.boot_epoch}, {kind}"
        )
        self.trace.add(EventCode.BOOT, self.boot_epoch, self._cold)
        watched = self._trace if self.config.side == "secondary" else self.trace.add
        seeded = random.Random(f"{self.config.seed}/{self.serial_number}/{self.boot_epoch}")
        peer_config = replace(self.config.peer, random_bytes=seeded.randbytes)
        self.peer = Peer(peer_config, self.store, self.faults, self.console.line, watched)
        self.peer.start(now_ns)
        if self._role is Role.PRIMARY:
            self.peer.set_role(now_ns, Role.PRIMARY)
        held, self._held = self._held, deque()
        if held:
            self.trace.add(EventCode.HOST_HELD, len(held))
            self.console.line(f"host: {len(held)} held requests continue")
        for job in held:
            job.waiting = 0
            self._execute(job)

    def _warmstart(self) -> None:
        """End this boot without further console output: the network closes, memory is kept, the
        host is held."""
        self._restart = False
        self._out.append(ConsoleSend(self.console.take_output()))
        for socket in sorted(self._sockets):
            self.peer.handle(self.now_ns, ReplicationClosed(socket, "warmstart"))
        # The metadata record what the replication lost, and the cache went to the medium with the
        # set: a clean end. The answers wait for the next boot.
        self.peer.stop(self.now_ns)
        self.peer.take_completions()
        self.console.take_output()
        self._out.extend(ReplicationClose(socket) for socket in sorted(self._sockets))
        self._sockets.clear()
        for kind, count in self._dials.items():
            self._stale_dials[kind] += count
            self._dials[kind] = 0
        unanswered = dict.fromkeys(self._jobs.values())
        self._held.extendleft(reversed(unanswered))
        self._jobs.clear()
        self.store.save_metadata()
        self._scrub_ns = None
        self._pair_state = PairState.SIMPLEX
        self._next_epoch()
        if self.faults.hangs():
            self.phase = HUNG
        else:
            self._begin_boot()

    def _collect(self) -> list[Outbox]:
        out, self._out = self._out, []
        self.host.collect(out)
        if self.phase is RUNNING or self.phase is OFF:
            for item in self.peer.take_output():
                if isinstance(item, ReplicationDial):
                    self._dials[item.kind] += 1
                elif isinstance(item, ReplicationClose):
                    self._sockets.discard(item.socket)
                out.append(item)
        if self._autonomic is not None:
            data = self._autonomic.take_output()
            if data:
                out.append(ControlSend("peer", data))
        text = self.console.take_output()
        if text:
            # Before the replies of the same step: the console lines describe their causes.
            out.insert(0, ConsoleSend(text))
        return out

    @property
    def host_requests(self) -> int:
        """Number of unanswered host requests."""
        return len(dict.fromkeys(self._jobs.values())) + len(self._held)

    def restart_soon(self) -> None:
        """Warmstart after the answers of this step are sent."""
        self._restart = True
