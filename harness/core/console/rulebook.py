"""The console rules in force: what is looked for where, and who is instructed for it. Can be
replaced between two reads."""

from collections.abc import Callable, Mapping, Sequence

from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.console.triggers import Place, Scanner, no_strike
from freezeframe.harness.core.events import NS_PER_MS, Ns, Side


class RuleBook:
    def __init__(
        self,
        rules: Sequence[ConsoleRule],
        default_instruct: Sequence[Side],
        consoles: Mapping[str, Side],
        strike: Callable[[int], None] = no_strike,
    ) -> None:
        """``consoles``: name -> whose. ``default_instruct``: for rules without ``instruct``, the
        bench's policy. ``strike``: see Scanner."""
        self._default = list(default_instruct)
        self._consoles = dict(consoles)
        self._strike = strike
        self._put(rules, Scanner(rules, self._consoles, strike=strike))

    def _put(self, rules: Sequence[ConsoleRule], scanner: Scanner) -> None:
        self.rules, self.scanner = list(rules), scanner
        self.instructed = [
            self._default if rule.instruct is None else list(rule.instruct) for rule in rules
        ]
        """Who is instructed, a list a rule."""

    def replace(self, rules: Sequence[ConsoleRule], places: Mapping[str, Place]) -> None:
        """Other rules from the next byte on. ``places``: where each console is, so that a text that
        is half there is found; rules that stay the same keep what they have seen."""
        fresh = Scanner(rules, self._consoles, places, self._strike)
        old = {rule: at for at, rule in enumerate(self.rules)}
        fresh.adopt(self.scanner, {old[rule]: at for at, rule in enumerate(rules) if rule in old})
        self._put(rules, fresh)

    def forget(self, console: str) -> None:
        """It has ended: its silence is none."""
        self._consoles.pop(console, None)
        self.scanner.forget(console)

    def remember(self, console: str, side: Side, place: Place) -> None:
        """It is there again, and searched from that place on."""
        self._consoles[console] = side
        self.scanner.remember(console, side, place)

    def wait_ms(self, now_ns: Ns) -> int | None:
        """How long a silence may still last; None: for ever."""
        deadline_ns = self.scanner.next_deadline()
        return None if deadline_ns is None else max(0, -((now_ns - deadline_ns) // NS_PER_MS))
