"""``[link]`` of a bench file: where the replication link is seen, and what is spoken on it."""

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from freezeframe.harness.core.configfile import Table
from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.blindness import Demand
from freezeframe.harness.core.link.linkrules import not_shown
from freezeframe.harness.core.link.protocol import LinkOptions, ReplicationProtocol, Tell
from freezeframe.harness.core.linkevents import LinkRule
from freezeframe.harness.errors import HarnessError, UsageError

MAX_PORTS: Final = 16
Checkable = Literal["digest", "answer"]
CHECKABLE: Final[tuple[Checkable, ...]] = ("digest", "answer")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


Ports = Annotated[
    list[Annotated[int, Field(ge=1, le=65535)]],
    BeforeValidator(_as_list),
    Field(min_length=1, max_length=MAX_PORTS),
]


class LinkTable(Table):
    interface: Annotated[str, Field(min_length=1, max_length=15)]
    """Where the replication link is seen: one end of it, or a mirror port."""
    namespace: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Path of the network namespace that the interface is in; default: this one."""
    protocol: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    ] = byname.USUAL
    """What is spoken on it: drbd, another installed protocol, or none: recorded, not understood."""
    port: Ports | None = None
    """TCP service ports of the replication, one or several; default: the protocol's own."""
    primary_address: Annotated[str, Field(max_length=64)] = ""
    secondary_address: Annotated[str, Field(max_length=64)] = ""
    """Their IP addresses on the replication link; who sends writes is taken for the primary when
    they are not given."""
    integrity_alg: Annotated[str, Field(max_length=64)] = ""
    """Digest algorithm of the link, for a capture that begins after the handshake in which the
    peers agree on it."""
    must_check: Annotated[list[Checkable], Field(max_length=2)] | None = None
    """What a run must have checked on the link to pass; default: what the protocol can show."""
    capture: Literal["ring", "scapy"] = "ring"
    """Who reads the frames from the interface: "ring", the kernel's ring read by us, or "scapy",
    scapy's sniffer."""
    scapy_socket: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
        | None
    ) = None
    """Driver that makes the socket which scapy sniffs on (role FrameSocket); default: the ring."""
    capture_mib: Annotated[int, Field(ge=4, le=1 << 20)] = 1024
    """Bound of the capture on disk: half for what came before a trigger, the newest; half for what
    comes after it."""
    before_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """How much before a trigger an incident keeps; less where the bound is reached."""
    after_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """And after it at most: the capture ends with the incident, when the recovery (and the
    workload) has ended."""

    def speak(self) -> ReplicationProtocol:
        """The protocol. UsageError: there is none of that name; RigError: it cannot be loaded."""
        return byname.find(self.protocol)(LinkOptions())

    @property
    def ports(self) -> list[int]:
        """Empty: any."""
        return self.port if self.port is not None else list(self.speak().ports)

    @property
    def console_texts(self) -> tuple[ConsoleText, ...]:
        """How the devices' consoles name places."""
        return byname.console_texts(self.protocol)

    @property
    def tells(self) -> frozenset[Tell]:
        return self.speak().tells

    @property
    def to_check(self) -> list[Checkable]:
        """``must_check``, or what the protocol can show of it."""
        if self.must_check is not None:
            return self.must_check
        return [one for one in CHECKABLE if one in self.tells]

    @property
    def demand(self) -> Demand:
        """What the capture must show before its silence proves anything."""
        return Demand(
            protocol=self.protocol, tells=self.tells, ports=self.ports, interface=self.interface,
            must_check=self.to_check, is_configured=True,
        )  # fmt: skip

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it)"""
        if self.scapy_socket is not None and self.capture != "scapy":
            yield "scapy_socket", "needs capture = 'scapy'"
        for key in ("primary_address", "secondary_address"):
            address = getattr(self, key)
            try:
                ipaddress.ip_address(address or "::")
            except ValueError:
                yield key, f"{address!r} is not an IP address"
        try:
            tells = self.tells
        except HarnessError as error:
            yield "protocol", str(error)
            return
        for one in self.must_check or ():
            if one not in tells:
                yield "must_check", f"protocol {self.protocol!r} does not show {one!r}"

    def refuse(self, rules: Iterable[LinkRule]) -> None:
        """UsageError: a link rule could never hit, because the protocol does not show what it waits
        for."""
        problems = not_shown(rules, self.tells)
        if problems:
            raise UsageError(
                f'[link] protocol = "{self.protocol}" does not show what these link rules wait for: '
                f"{', '.join(problems)}: leave them out of the files in [policy] rules"
            )
