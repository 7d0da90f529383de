"""Draw a status of ``freezeframe top`` on a screen of any size from 80 x 24 on. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.livestatus import TAIL_LINES, LinkStatus, LiveStatus, SideStatus
from freezeframe.harness.core.policy.facts import FULL_DUPLEX
from freezeframe.harness.core.text import counted, escape

WIDE_CELLS: Final = 160
"""From here on both consoles stand beside each other."""
TALL_LINES: Final = 40
STALE_S: Final = 3.0
"""A status of that age: whoever makes it does not answer."""
_GOOD, _BAD, _DIM = "green", "bold red", "dim"
_STYLES: Final = {"armed": _GOOD, "armed (unrehearsed)": _GOOD, "": _DIM}
_COLUMNS: Final = (10, 13, 13, 14, 5)
"""Cells of the table of sides: side, console, control, pair, boot; the supply has the rest."""
_INDENT: Final = 11
"""Where the second column begins."""


@dataclass(frozen=True)
class Screen:
    """``silent_s``: since the status came."""

    status: LiveStatus
    silent_s: float
    utc: str
    """Time of day now."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.size.height
        for line in self.lines(options.max_width, height):
            line.truncate(options.max_width, overflow="ellipsis")
            line.no_wrap = True
            yield line

    def lines(self, width: int, height: int) -> list[Text]:
        """As many as the screen has; each may be longer than it is wide."""
        top = [*self._head(width), *self._bench(width), *self._rules(width, height)]
        is_wide = width >= WIDE_CELLS
        stacked = 1 if is_wide else 2
        left = max(0, height - len(top) - 1 - stacked)
        tail_lines = min(TAIL_LINES, left // (stacked + 1))
        news_lines = left - stacked * tail_lines
        news = list(self._news(news_lines))
        tails = [self._tail(side, tail_lines) for side in SIDES]
        if is_wide:
            half = width // 2
            both = [_beside(one, other, half) for one, other in zip(*tails, strict=True)]
        else:
            both = [line for tail in tails for line in tail]
        return [*top, _title("reports", width), *news, *both][:height]

    # --- parts ------------------------------------------------------------------------------------------
    def _head(self, width: int) -> Iterator[Text]:
        one = self.status
        left = f"{one.bench}  {one.command} of {one.who} (pid {one.pid}), since {clock(one.started_utc)}"
        right = f"{self.utc} UTC"
        left = escape(left)[: max(0, width - len(right) - 1)]
        yield Text(left + " " * (width - cell_len(left) - len(right)) + right, "bold")
        if self.silent_s > STALE_S:
            text = f"nothing has come for {self.silent_s:.0f} s: the {one.command} does not report"
            yield Text(text, _BAD)
        elif one.age_s > STALE_S:
            text = (
                f"the {one.command} does not answer for {one.age_s:.0f} s; what is below is as old"
            )
            yield Text(text, _BAD)
        health = one.health or "not armed yet"
        line = Text(health, _STYLES.get(one.health, "bold yellow"))
        if one.collecting:
            line.append("  collecting", "bold yellow")
        first, *more = _wrapped(escape(one.why), width - cell_len(line.plain) - 2, width - 4)
        yield line.append(f"  {first}" if first else "")
        yield from (Text(f"    {text}") for text in more[:2])

    def _bench(self, width: int) -> Iterator[Text]:
        one = self.status
        yield _row(["", "console", "control", "pair", "boot", "supply"], [_DIM] * 6)
        for side in SIDES:
            if (found := one.sides.get(side)) is not None:
                yield _side_row(side, found)
        yield from _link_lines(one.link, self.silent_s, width)
        if one.reflex_why:
            yield Text(f"reflex     {escape(one.reflex_why)}", _BAD)
        if (guard := one.guard) is not None:
            saves = counted(guard.saves_in_hour, "save")
            counts = f"{counted(guard.warmstarts_in_hour, 'warmstart')}, {saves} in the last hour"
            until = "" if guard.until_s is None else f" for {age(guard.until_s)}"
            why = f" ({escape(guard.why)})" if guard.why else ""
            style = "" if guard.allows == "warmstart" else "yellow"
            yield Text(f"guard      allows {escape(guard.allows)}{until}; {counts}{why}", style)
        words = "".join(
            f", newest {escape(last.id)} {escape(last.outcome)}"
            + (f" {escape(last.rule)} ({escape(last.side)})" if last.rule else "")
            for last in one.newest_incidents[-1:]
        )
        yield Text(f"incidents  {one.incidents}{words}")

    def _rules(self, width: int, height: int) -> Iterator[Text]:
        rules = sorted(self.status.rules, key=lambda one: -one.hits)
        instructing = sum(one.instructs for one in rules)
        head = f"rules      {len(rules)} in force, {instructing} instruct; hits: "
        lines, limit = [head], 2 if height < TALL_LINES else 8
        hit = sum(one.hits > 0 for one in rules)
        for at, one in enumerate(rules):
            text = f"{escape(one.name)} {one.hits}" + ("  " if at + 1 < len(rules) else "")
            if cell_len(lines[-1] + text) > width and len(lines[-1]) > _INDENT:
                if len(lines) == limit:
                    more = len(rules) - at
                    more_hit = max(0, hit - at)
                    rest = f"+{more}" + (f" ({more_hit} with hits)" if more_hit else "")
                    lines[-1] = lines[-1][: width - len(rest) - 1].rstrip() + f" {rest}"
                    break
                lines.append(" " * _INDENT)
            lines[-1] += text
        yield from (Text(line.rstrip()) for line in lines)

    def _news(self, count: int) -> Iterator[Text]:
        newest = self.status.news[-count:]
        styles = {"trigger": "yellow", "incident": "bold", "health": "cyan"}
        for one in newest:
            text = f"{clock(one.utc)} {escape(one.text)}"
            yield Text(text, styles.get(one.kind, ""))
        yield from (Text("") for _ in range(count - len(newest)))

    def _tail(self, side: str, count: int) -> list[Text]:
        found = self.status.sides.get(side)
        tail = found.console.tail if found is not None else []
        newest = [Text(escape(one)) for one in tail[-count:]] if count else []
        return [Text(f"{side} console", "bold"), *newest, *[Text("")] * (count - len(newest))]


def clock(utc: str) -> str:
    """The time of day of a UTC time: "15:04:05"."""
    return escape(utc.partition("T")[2].partition(".")[0])


def age(seconds: float) -> str:
    """In one short word: "0.4 s", "12 s", "5 min", "3.0 h"."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def link_words(link: LinkStatus) -> tuple[str, str]:
    """The counters of the capture: what goes over the link, and what is known of it."""
    rate = f"{link.rate_bytes_per_s / (1 << 20):.1f} MiB/s"
    return (
        f"{rate}, {counted(link.writes, 'write')}, {link.outstanding} outstanding",
        f"{counted(link.digests_checked, 'digest')} checked, {counted(link.frames_dropped, 'frame')} dropped, "
        f"{counted(link.gaps, 'gap')}",
    )


def pair_words(side: SideStatus) -> str:
    return escape(side.pair_state) or "not identified"


def summary_line(status: LiveStatus) -> str:
    """All of the bench in one line, for what is no terminal."""
    pairs = ", ".join(f"{name} {pair_words(one)}" for name, one in status.sides.items())
    health = f"{status.health or 'not armed yet'}{f': {status.why}' if status.why else ''}"
    stale = f"; no answer for {age(status.age_s)}" if status.age_s > STALE_S else ""
    link = ", ".join(link_words(status.link))
    text = f"{health}; {pairs or 'no side known yet'}; link {link}; {counted(status.incidents, 'incident')}"
    return escape(text + stale)


def _side_row(name: str, side: SideStatus) -> Text:
    console, control = side.console, side.control
    if not console.there:
        said, style = "LOST", _BAD
    elif console.last_byte_age_s is None:
        said, style = "nothing yet", "yellow"
    else:
        said, style = f"{age(console.last_byte_age_s)} ago", "" if console.heard else "yellow"
    if not control.there:
        answered, control_style = "LOST", _BAD
    elif control.last_answer_age_s is None:
        answered, control_style = "no answer yet", "yellow"
    else:
        answered, control_style = f"{age(control.last_answer_age_s)} ago", ""
    supply = side.supply
    power = (
        f"{_number(supply.volts, 2)} V  {_number(supply.amperes, 3)} A"
        if supply is not None
        else "not measured"
    )
    boot = "?" if side.boot_epoch is None else str(side.boot_epoch)
    pair_style = _GOOD if side.pair_state == FULL_DUPLEX else "yellow"
    return _row(
        [name, said, answered, pair_words(side), boot, power],
        ["bold", style, control_style, pair_style, "", "" if supply is not None else _DIM],
    )


def _number(value: float | None, places: int) -> str:
    return "?" if value is None else f"{value:.{places}f}"


def _link_lines(link: LinkStatus, silent_s: float, width: int) -> Iterator[Text]:
    last_s = link.last_frame_age_s
    if not link.there:
        said, style = f"LOST: {escape(link.why)}", _BAD
    elif last_s is None:
        said, style = "no frame yet", "yellow"
    else:
        said, style = f"{age(last_s + silent_s)} ago", ""
    going, known = link_words(link)
    is_worse = "yellow" if link.frames_dropped or link.gaps else style
    line = Text(f"link       {said:<13} {going}", style)
    if cell_len(line.plain) + len(known) + 2 <= width:
        yield line.append(f", {known}", is_worse)
    else:
        yield line
        yield Text(f"{'':{_INDENT + 14}}{known}", is_worse)


def _row(cells: list[str], styles: list[str]) -> Text:
    line = Text()
    for at, (cell, style) in enumerate(zip(cells, styles, strict=True)):
        wide = _COLUMNS[at] if at < len(_COLUMNS) else 0
        line.append(cell[: wide or None], style).append(" " * (max(0, wide - cell_len(cell)) + 1))
    return line


def _title(text: str, width: int) -> Text:
    return Text(f"{text} ".ljust(width, "-"), _DIM)


def _beside(one: Text, other: Text, half: int) -> Text:
    left = one.copy()
    left.truncate(half - 1, overflow="ellipsis", pad=True)
    return left.append(" ").append_text(other)


def _wrapped(text: str, first: int, others: int) -> list[str]:
    """Lines of so many characters, broken between words where there are any."""
    lines, width = [], max(10, first)
    while len(text) > width:
        at = text.rfind(" ", 1, width + 1)
        at = width if at < 1 else at
        lines.append(text[:at])
        text, width = text[at:].lstrip(), max(10, others)
    return [*lines, text]
