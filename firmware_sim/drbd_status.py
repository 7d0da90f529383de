"""What a controller reads of its replication peer: roles, states, queues, the last writes."""

from collections import deque
from typing import Any, Final

from freezeframe.firmware_sim.drbd_link import CONNECTED, Link
from freezeframe.firmware_sim.drbd_primary import Primary
from freezeframe.firmware_sim.drbd_secondary import Secondary
from freezeframe.harness.wire.control import PairState
from freezeframe.harness.wire.drbd import Conn, Disk, Role

UP_TO_DATE: Final = Disk.UP_TO_DATE
FULL_DUPLEX: Final = PairState.FULL_DUPLEX


class Status:
    """Base of Peer; nothing here changes anything."""

    _link: Link
    _primary: Primary
    _secondary: Secondary

    @property
    def role(self) -> Role:
        return self._link.role

    @property
    def conn(self) -> Conn:
        return self._link.conn

    @property
    def disk(self) -> Disk:
        return self._link.disk

    @property
    def peer_role(self) -> Role:
        return self._link.peer_role

    @property
    def peer_disk(self) -> Disk:
        return self._link.peer_disk

    @property
    def agreed_version(self) -> int:
        return self._link.agreed_version

    @property
    def last_writes(self) -> deque[list[Any]]:
        """Rows as wire.rootcause.STATE_KEYS has them, newest last."""
        return self._link.last_writes

    @property
    def epoch(self) -> int:
        return self._primary.epoch.number

    @property
    def epoch_writes(self) -> int:
        """Writes of the open epoch, as this role counts them."""
        if self._link.role is Role.PRIMARY:
            return len(self._primary.epoch.ranges)
        return self._secondary.epoch_writes

    @property
    def pair_state(self) -> PairState:
        link = self._link
        if link.conn is CONNECTED and link.disk is link.peer_disk is UP_TO_DATE:
            return FULL_DUPLEX
        if link.conn >= Conn.WF_REPORT_PARAMS:
            return PairState.COPY_PENDING
        if link.conn is Conn.STANDALONE or link.backend.metadata.just_created:
            return PairState.SIMPLEX
        return PairState.SUSPENDED

    def audit(self) -> None:
        """Log what the transmit buffers hold; changes nothing else."""
        self._primary.audit()

    def queues(self) -> dict[str, int]:
        return {
            "unacked_writes": self._primary.unacked_writes,
            "outgoing_bytes": self._primary.unacked_bytes,
        }
