"""What a run's capture of the replication link proved, by its counters: nothing seen, not checked, not
understood. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from freezeframe.harness.bench.linktable import LinkTable
from freezeframe.harness.core.link.blindness import BlindKind
from freezeframe.harness.core.link.protocol import Tell

QUIET: Final = frozenset({str(BlindKind.NOTHING_CAPTURED), str(BlindKind.NO_CONNECTION)})
"""Kinds of blindness that a link without writes shows too."""
BLIND_STATS: Final = 8
"""Counters of the link in a row (2 s) that must name a blindness before it is reported: a
connection that has just begun shows one direction first."""
_COUNTERS: Final = {"digest": "digests_checked", "answer": "acks"}
"""What must_check names -> its counter of the capture (core.events.LinkStats)."""


def no_write_seen(link: LinkTable, capture: Mapping[str, Any]) -> str:
    """Why no replicated write may have been captured while the host's writes were acknowledged; "":
    some were, or the protocol shows none."""
    if Tell.WRITE not in link.tells or capture.get("writes"):
        return ""
    ports = " or ".join(map(str, link.ports)) or "any"
    return (
        f"the capture on {link.interface} saw no replicated write of protocol {link.protocol} on TCP port {ports}, "
        "though the host's were acknowledged: is it the replication link's interface, or its mirror port? "
        "Is it that port?"
    )


def unchecked(link: LinkTable, capture: Mapping[str, Any]) -> Iterator[str]:
    """What [link] must_check asks for and the capture did not show once."""
    for one in link.to_check:
        if not capture.get(_COUNTERS[one]):
            others = ", ".join(f'"{other}"' for other in link.to_check if other != one)
            yield (
                f"no {one} was checked on the link, of {capture.get('writes', 0)} replicated writes; if this link "
                f"carries none: must_check = [{others}] in the bench file's [link]"
            )


def blind(link: LinkTable, capture: Mapping[str, Any], *, wrote: bool) -> Iterator[str]:
    """What the capture could not see of what was there: nothing is proved by its silence.
    ``wrote``: the host's writes were acknowledged, so that there was something to be seen."""
    if Tell.WRITE not in link.tells:
        return
    for kind, says in (capture.get("blind") or {}).items():
        if kind != BlindKind.NO_DIGEST and (wrote or kind not in QUIET):  # see ``unchecked``
            yield says


def not_understood(link: LinkTable) -> str:
    """Said once of a link whose protocol shows no write; "": it does."""
    if Tell.WRITE in link.tells:
        return ""
    return (
        f'the link was recorded and not understood ([link] protocol = "{link.protocol}"): consoles, data sets '
        "and the comparison alone were judged"
    )


class BlindTally:
    """What the capture cannot see while there is something to be seen, reported once."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        """Kind of blindness -> counters in a row that named it."""

    def reported(self, blind: Mapping[str, str]) -> list[str]:
        """Take the kinds that the link's newest counters name; give what is to be said of them."""
        for kind in self._counts.keys() - blind.keys():
            del self._counts[kind]
        self._counts.update(blind.keys())
        return [
            says
            for kind, says in blind.items()
            if self._counts[kind] == BLIND_STATS and kind not in QUIET
        ]
