"""The supply's command interpreter, with loads that only remember."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.firmware_sim.scpi import IDENTITY, LOAD_A, Rail, Scpi


@dataclass
class Lamp:
    powered: bool = False
    broken: bool = False
    changes: list[bool] = field(default_factory=list)

    def apply(self, powered: bool) -> None:
        self.powered = powered
        self.changes.append(powered)
        if self.broken and powered:
            raise FileNotFoundError(2, "no such program")

    def draws(self) -> bool:
        return self.powered and not self.broken


def make() -> tuple[Scpi, Lamp, Lamp, dict[int, Rail]]:
    first, second = Lamp(), Lamp()
    rails = {1: Rail(first), 2: Rail(second)}
    return Scpi(rails), first, second, rails


def say(dialogue: Scpi, line: str) -> str:
    return dialogue.feed(line.encode() + b"\n").decode()


def test_switch_and_measure() -> None:
    dialogue, first, second, _ = make()
    assert say(dialogue, "*IDN?") == IDENTITY + "\n"
    assert say(dialogue, "OUTP? (@1)") == "0\n"
    assert say(dialogue, "VOLT 12.500,(@1)") == ""
    assert say(dialogue, "OUTP 1,(@1)") == ""
    assert (first.powered, second.powered) == (True, False)
    assert (
        say(dialogue, "OUTP? (@1);VOLT? (@1);MEAS:VOLT? (@1);MEAS:CURR? (@1)")
        == f"1;12.500;12.500;{LOAD_A:.3f}\n"
    )
    assert say(dialogue, "MEAS:VOLT? (@2);:MEAS:CURR? (@2)") == "0.000;0.000\n"
    say(dialogue, "*RST")
    assert first.changes == [True, False]
    assert say(dialogue, "SYST:ERR?") == '0,"No error"\n'


@pytest.mark.parametrize(
    "line", ["OUTPUT ON,(@2)", "outp:state on,(@2)", "INST:NSEL 2;OUTP 1", ":Output:STAT 1 , (@2)"]
)
def test_forms_of_a_command(line: str) -> None:
    dialogue, first, second, _ = make()
    assert say(dialogue, line) == ""
    assert (first.powered, second.powered) == (False, True)
    assert say(dialogue, "SYSTEM:ERROR?") == '0,"No error"\n'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("VOLT 16,(@1)", -222), ("VOLT -1,(@1)", -222), ("CURR 5.001,(@1)", -222), ("VOLT 12,(@3)", -222),
        ("OUTP 1,(@0)", -222), ("INST:NSEL 9", -222), ("INST:NSEL 1.5", -222), ("VOLT? (@99)", -222),
        ("BOGUS", -113), ("VOLT:FAST 3", -113), ("OUTP??", -113), ("*idn", -113),
        ("VOLT", -109), ("OUTP (@1)", -109), ("INST:NSEL", -109),
        ("VOLT twelve,(@1)", -102), ("VOLT nan,(@1)", -102), ("VOLT 1e999,(@1)", -102), ("OUTP maybe,(@1)",
        -102), ("OUTP 1,(@1", -102), ("OUTP 1,(@1:2)", -102), ("VOLT " + "9" * 100 + ",(@1)", -102),
        ("*IDN? now", -108), ("OUTP? 1,(@1)", -108), ("*RST 1", -108),
        ("X" * 257, -363),
    ],
)  # fmt: skip
def test_errors_change_nothing_and_are_queued(line: str, code: int) -> None:
    dialogue, first, second, rails = make()
    before = [(r.on, r.volts, r.limit_a) for r in rails.values()]
    assert say(dialogue, line) == ""
    assert say(dialogue, "SYST:ERR?").startswith(f"{code},")
    assert say(dialogue, "SYST:ERR?") == '0,"No error"\n'
    assert [(r.on, r.volts, r.limit_a) for r in rails.values()] == before
    assert first.changes == second.changes == []


def test_brown_out_is_power_loss_and_a_low_limit_pulls_the_voltage_down() -> None:
    dialogue, first, _, _ = make()
    say(dialogue, "OUTP 1,(@1)")
    say(dialogue, "VOLT 9.9,(@1)")
    assert (first.changes, say(dialogue, "MEAS:CURR? (@1)")) == ([True, False], "0.000\n")
    say(dialogue, "VOLT 12,(@1)")
    assert first.powered
    say(dialogue, "CURR 0.4,(@1)")
    assert not first.powered
    assert say(dialogue, "MEAS:VOLT? (@1);MEAS:CURR? (@1)") == "6.000;0.400\n"


def test_a_load_that_cannot_start_is_told() -> None:
    dialogue, first, _, _ = make()
    first.broken = True
    say(dialogue, "OUTP 1,(@1)")
    assert say(dialogue, "SYST:ERR?") == '-240,"Hardware error;OUTP 1,(@1)"\n'
    assert say(dialogue, "OUTP? (@1);MEAS:CURR? (@1)") == "1;0.000\n"


def test_the_error_queue_is_bounded_and_each_client_has_its_own() -> None:
    dialogue, _, _, rails = make()
    other = Scpi(rails)
    for _ in range(50):
        say(dialogue, "BOGUS")
    queue = []
    while (answer := say(dialogue, "SYST:ERR?")) != '0,"No error"\n':
        queue.append(answer)
    assert len(queue) == 20
    assert queue[-1] == '-350,"Queue overflow"\n'
    assert say(other, "SYST:ERR?") == '0,"No error"\n'
    say(dialogue, "BOGUS;*CLS")
    assert say(dialogue, "SYST:ERR?") == '0,"No error"\n'


def test_an_overlong_line_is_dropped_up_to_its_terminator() -> None:
    dialogue, first, _, _ = make()
    for _ in range(1000):
        assert dialogue.feed(b"x" * 100) == b""
    assert dialogue.feed(b"OUTP 1,(@1)\n*IDN?\n").decode() == IDENTITY + "\n"
    assert first.changes == []
    assert say(dialogue, "SYST:ERR?").startswith("-363,")


LINES = (
    b"*IDN?\nOUTP 1,(@1)\r\nVOLT 99\n\nMEAS:VOLT? (@1)\nSYST:ERR?\n"
    + b"y" * 300
    + b"\nSYST:ERR?\nOUTP? (@1)\n"
)


def test_byte_by_byte_gives_the_same() -> None:
    whole = make()[0].feed(LINES)
    single = make()[0]
    assert b"".join(single.feed(LINES[i : i + 1]) for i in range(len(LINES))) == whole
    assert whole.count(b"\n") == 5


@given(
    st.lists(
        st.binary(max_size=80) | st.sampled_from([b"OUTP", b" 1", b"VOLT ", b"\n", b";", b"(@1)"]),
        max_size=20,
    )
)
@settings(max_examples=200, deadline=None)
def test_noise_never_raises_and_answers_stay_printable(pieces: list[bytes]) -> None:
    dialogue = make()[0]
    for piece in pieces:
        answer = dialogue.feed(piece)
        assert answer.decode("ascii").replace("\n", "").isprintable() or not answer
    answer = dialogue.feed(b"\nSYST:ERR?\n").decode("ascii")
    assert answer.replace("\n", "").isprintable()
