"""Names of DRBD's states as its kernel module prints them: 8.4's, and what DRBD 9 calls otherwise."""

from typing import Final

from freezeframe.harness.wire.drbd import Conn, Disk, Role

CONN_NAMES: Final[dict[int, str]] = {
    Conn.STANDALONE: "StandAlone", Conn.DISCONNECTING: "Disconnecting", Conn.UNCONNECTED: "Unconnected",
    Conn.TIMEOUT: "Timeout", Conn.BROKEN_PIPE: "BrokenPipe", Conn.NETWORK_FAILURE: "NetworkFailure",
    Conn.PROTOCOL_ERROR: "ProtocolError", Conn.TEAR_DOWN: "TearDown", Conn.WF_CONNECTION: "WFConnection",
    Conn.WF_REPORT_PARAMS: "WFReportParams", Conn.CONNECTED: "Connected", Conn.STARTING_SYNC_S: "StartingSyncS",
    Conn.STARTING_SYNC_T: "StartingSyncT", Conn.WF_BITMAP_S: "WFBitMapS", Conn.WF_BITMAP_T: "WFBitMapT",
    Conn.WF_SYNC_UUID: "WFSyncUUID", Conn.SYNC_SOURCE: "SyncSource", Conn.SYNC_TARGET: "SyncTarget",
    Conn.VERIFY_S: "VerifyS", Conn.VERIFY_T: "VerifyT", Conn.PAUSED_SYNC_S: "PausedSyncS",
    Conn.PAUSED_SYNC_T: "PausedSyncT", Conn.AHEAD: "Ahead", Conn.BEHIND: "Behind",
}  # fmt: skip
DISK_NAMES: Final[dict[int, str]] = {
    Disk.DISKLESS: "Diskless", Disk.ATTACHING: "Attaching", Disk.FAILED: "Failed",
    Disk.NEGOTIATING: "Negotiating", Disk.INCONSISTENT: "Inconsistent", Disk.OUTDATED: "Outdated",
    Disk.UNKNOWN: "DUnknown", Disk.CONSISTENT: "Consistent", Disk.UP_TO_DATE: "UpToDate",
}  # fmt: skip
DISK_NAMES_9: Final[dict[int, str]] = {
    **{number: name for number, name in DISK_NAMES.items() if number < Disk.FAILED},
    Disk.FAILED: "Detaching",
    **{number + 1: name for number, name in DISK_NAMES.items() if number >= Disk.FAILED},
}
"""Disk states of DRBD 9, by its numbers. Its connection states have 8.4's numbers; on the wire
Connected is 9, and what 8.4 calls Connected is Established."""
CONN_NAMES_9: Final[dict[int, str]] = CONN_NAMES | {
    Conn.WF_CONNECTION: "Connecting", Conn.WF_REPORT_PARAMS: "Connected", Conn.CONNECTED: "Established",
}  # fmt: skip
ROLE_NAMES: Final[dict[int, str]] = {
    Role.UNKNOWN: "Unknown",
    Role.PRIMARY: "Primary",
    Role.SECONDARY: "Secondary",
}
