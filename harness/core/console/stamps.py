"""The time in front of a line of a log, and the line without it. Pure.

Read are, also one after the other (conserver in front of syslog in front of the kernel's own):

| written by | looks like |
|---|---|
| printk | ``[   12.345678] ``, with CONFIG_PRINTK_CALLER ``[   12.345678][    T1] ``, ``[ C0] `` |
| its level | ``<4>``, ``kern  :warn  : `` (``dmesg -x``) |
| ``dmesg -T``, conserver | ``[Tue Nov 29 16:34:22 2026] ``, ``[-- MARK -- Tue Nov 29 ...]`` |
| terminal programs (minicom) | ``[2026-11-29 16:34:22] `` |
| ``dmesg -d``, ``-H`` | ``[   12.345678 <    0.000012>] ``, ``[Nov29 16:34] ``, ``[  +0.000012] `` |
| ``dmesg --time-format iso`` | ``2026-11-29T16:34:22,123456+00:00 `` |
| syslog, RFC 3164; ``journalctl``, also ``-o short-precise`` | ``Nov 29 16:34:22.123456 host kernel: `` |
| syslog, RFC 5424 | ``<4>1 2026-11-29T16:34:22.123456Z host kernel - - - `` |
| ``journalctl -o short-iso[-precise]``, rsyslog's files | ``2026-11-29T16:34:22.123456+00:00 host kernel: `` |
| ``journalctl -o short-full`` | ``Tue 2026-11-29 16:34:22 UTC host kernel: `` |
| ``journalctl -o short-monotonic``, ``short-unix`` | ``[   12.345678] host kernel: ``, ``1795970062.123456 host kernel: `` |

Sources: kernel/printk/printk.c (print_time, print_caller), util-linux sys-utils/dmesg.c, systemd
src/shared/logs-show.c, RFC 3164 section 4.1, RFC 5424 section 6, conserver consent.c.
"""

import re
from calendar import timegm
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.console.readtext import without_colours
from freezeframe.harness.core.events import NS_PER_S

MAX_STAMPS: Final = 6
"""In front of one line, levels counted."""
MAX_LINE_BYTES: Final = 4096
"""Looked at of one line: structured data of RFC 5424 may be long."""
MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")  # fmt: skip
_MONTH: Final = rb"(?P<month>%b)" % b"|".join(MONTHS)
_DAY: Final = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_ANY_DAY: Final = rb"[^\s\d\[\]]{2,12}"
"""In the language of who ran dmesg."""
_CLOCK: Final = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
_DATE: Final = rb"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
_ZONE: Final = rb"(?P<zone>Z|[+-]\d\d:?\d\d)?"
_SENDER: Final = rb"[\w.:-]{1,255} (?:[^\s:\[]{1,48}(?:\[\d{1,10}\])?): ?"
"""Host, program, process id."""
_SENDER_AFTER_UPTIME: Final = rb"[\w.:-]{1,255} (?:kernel|[^\s:\[]{1,48}\[\d{1,10}\]): ?"
"""A kernel's line may begin with two words and a colon, too: ``block drbd0: ``."""
_HEADER_5424: Final = (
    rb"\S{1,255} \S{1,48} \S{1,128} \S{1,32} (?:-|(?:\[(?:[^\]\\]|\\.)*\])+)(?: |$)"
)
"""Host, program, process id, message id, structured data."""
UPTIME: Final = rb"\[ *(?P<uptime>\d{1,9})\.(?P<fraction>\d{6})(?: <[ .\d]{1,20}>)?\]"
CALLER: Final = rb"(?:\[ *[TC]\d{1,9}\])?"
"""CONFIG_PRINTK_CALLER: the task or the processor."""
_FORMS: Final = tuple(
    re.compile(form)
    for form in (
        UPTIME + CALLER + rb"(?: %b| |$)" % _SENDER_AFTER_UPTIME,
        rb"<\d{1,3}>1 %bT%b%b %b" % (_DATE, _CLOCK, _ZONE, _HEADER_5424),
        rb"<\d{1,3}>",
        rb"(?:kern|user|mail|daemon|auth|syslog|lpr|news) *:[a-z]{1,7} *: ",
        rb"\[(?:-- MARK -- )?%b %b {1,2}(?P<day>\d{1,2}) %b (?P<year>\d{4})\] ?" % (_ANY_DAY, _MONTH, _CLOCK),
        rb"\[%b %b\] " % (_DATE, _CLOCK),
        rb"\[%b *\d{1,2} \d\d:\d\d\] |\[ *[+<] *\d{1,9}\.\d{6}>?\] " % _MONTH,
        rb"%b {1,2}(?P<day>\d{1,2}) (?:(?P<year>\d{4}) )?%b (?:%b)?" % (_MONTH, _CLOCK, _SENDER),
        rb"(?=[^ ]*,)%bT%b%b " % (_DATE, _CLOCK, _ZONE),
        rb"%bT%b%b (?:%b)?" % (_DATE, _CLOCK, _ZONE, _SENDER),
        rb"(?:%b )?%b %b (?:(?P<zone>UTC|[A-Z][A-Za-z0-9+-]{1,8}) )?(?:%b)?" % (_DAY, _DATE, _CLOCK, _SENDER),
        rb"(?P<unix>\d{9,10})\.(?P<fraction>\d{6}) %b" % _SENDER,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stamped:
    """One line of a log."""

    rest: bytes
    """Without colours and without what stands in front of its text."""
    uptime_ns: int | None = None
    """The device's time since its boot."""
    wall_ns: int | None = None
    """Since 1970 in UTC; a stamp that names no zone, or one by letters, is read as UTC. None: no
    stamp, or one without a year when the caller gives none."""

    @property
    def is_stamped(self) -> bool:
        return self.uptime_ns is not None or self.wall_ns is not None


def read(line: bytes, year: int | None = None) -> Stamped:
    """``line``, without its end. ``year``: of stamps that name none (RFC 3164)."""
    rest = without_colours(line[:MAX_LINE_BYTES]).rstrip(b"\r\n")
    uptime_ns = wall_ns = None
    for _ in range(MAX_STAMPS):
        found = next((one for form in _FORMS if (one := form.match(rest))), None)
        if found is None:
            break
        rest = rest[found.end() :]
        parts = found.groupdict()
        # The one nearest to the text is the device's own.
        if parts.get("uptime") is not None:
            uptime_ns = int(parts["uptime"]) * NS_PER_S + _fraction(parts["fraction"])
        elif parts.get("unix") is not None:
            wall_ns = int(parts["unix"]) * NS_PER_S + _fraction(parts["fraction"])
        elif parts.get("hour") is not None:
            wall_ns = _wall_ns(parts, year) or wall_ns
    return Stamped(
        rest + without_colours(line[MAX_LINE_BYTES:]).rstrip(b"\r\n"), uptime_ns, wall_ns
    )


def _fraction(digits: bytes | None) -> int:
    return int((digits or b"").ljust(9, b"0"))


def _wall_ns(parts: dict[str, bytes | None], year: int | None) -> int | None:
    """None: no year, or a date that no calendar has."""
    given = {name: value or b"" for name, value in parts.items()}
    month, zone = given["month"], given.get("zone", b"")
    number = int(month) if month.isdigit() else MONTHS.index(month) + 1
    in_year = int(given["year"]) if given.get("year") else year
    day, hour, minute, second = (int(given[name]) for name in ("day", "hour", "minute", "second"))
    if in_year is None or not 1970 <= in_year < 2200:
        return None
    if not (1 <= number <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    zone_s = 0
    if zone[:1] in (b"+", b"-"):
        zone_s = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        zone_s = -zone_s if zone.startswith(b"-") else zone_s
    seconds = timegm((in_year, number, day, hour, minute, second)) - zone_s
    return seconds * NS_PER_S + _fraction(given.get("fraction"))
