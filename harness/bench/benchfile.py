"""Bench files and scenario files: the parts of a bench, and what a run does with it. See
docs/bench-files.md.

A file is given by its path, or by the bare name of one that comes with FreezeFrame. Paths in a
file are relative to the file. ``{run}`` and ``{supply_port}`` stand for the directory of the run
and the port of the simulated supply; only a bench with [simulation] has these.
"""

import random
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr

from freezeframe.harness.bench import benchid, breaktable
from freezeframe.harness.bench.breaktable import BreakList
from freezeframe.harness.bench.linktable import LinkTable
from freezeframe.harness.bench.notifytable import NotifyTable
from freezeframe.harness.bench.options import OPTION_WORDS, is_source
from freezeframe.harness.core import configfile
from freezeframe.harness.core.configfile import MAX_CONFIG_CHARS, KeyPath, Table
from freezeframe.harness.core.console import rules
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.recovery.messages import Policy as RecoveryPolicy
from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.errors import UsageError
from freezeframe.harness.wire import control
from freezeframe.harness.wire.faults import FAULTS, MAX_FAULTS, FaultKind

PLACEHOLDERS: Final = ("{run}", "{supply_port}")
MAX_SERIAL_CHARS: Final = 252
"""The longest field of a standard: SCSI's unit serial number page."""
KIB: Final = 1024
MIB: Final = 1 << 20
_PLACEHOLDER: Final = re.compile(r"\{[^{}]*\}")

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Sides = Annotated[list[Side], Field(min_length=1, max_length=2)]


class BenchTable(Table):
    name: Name
    description: Annotated[str, Field(max_length=1024)] = ""


class SimulationTable(Table):
    """``[simulation]``: the pair is simulated on this machine."""

    size_mib: Annotated[int, Field(ge=1, le=4096)] = 128
    """Size of the volume of each controller."""
    autonomic: bool = False
    """Autonomic mode: the secondary instructs the primary, over a second link between them."""
    mtu_bytes: Annotated[int, Field(ge=576, le=9000)] = 9000
    """MTU of the replication link; such links usually use jumbo frames."""
    boot_ms: Annotated[int, Field(ge=1, le=600_000)] = 300
    """Duration of a controller's boot. Real ones take seconds to minutes."""


class RigTable(Table):
    """``[rig]``: the pair is two virtual Linux nodes on this machine. See
    freezeframe.harness.rigs."""

    size_mib: Annotated[int, Field(ge=8, le=4096)] = 64
    """Size of the volume of each node."""
    memory_mib: Annotated[int, Field(ge=192, le=4096)] = 256
    mtu_bytes: Annotated[int, Field(ge=576, le=9000)] = 1500
    """MTU of the replication link."""


class ControllerTable(Table):
    driver: Name
    serial_number: Annotated[
        str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=MAX_SERIAL_CHARS)
    ]
    """Expected serial number. A controller with another one is never instructed. Its driver may
    allow less."""
    console: Text | None = None
    """pyserial URL: device path, /dev/serial/by-id/..., socket://HOST:PORT, rfc2217://HOST:PORT; or
    exec:COMMAND. None: there is no tap on it, and nothing is heard of it."""
    control: Text | None = None
    """Same forms as ``console``. It may be the console's own line, which then carries both. None: it
    is never instructed, and its set is not collected."""
    host: Text | None = None
    """URL of the controller's volume for the host driver: nbd://HOST:PORT,
    nbd+unix:///?socket=PATH, blockdev:///dev/... None: nobody can read it here."""
    host_driver: Name = "nbd"
    console_baud: Annotated[int, Field(ge=300, le=4_000_000)] = 115_200
    control_baud: Annotated[int, Field(ge=300, le=4_000_000)] = 115_200
    options: Annotated[dict[Name, object], Field(max_length=64)] = Field(default_factory=dict)
    """What the driver's ``Options`` takes. A secret is ``{ env = NAME }`` or ``{ file = PATH }``."""

    @property
    def lines(self) -> tuple[str | None, str | None]:
        return self.console, self.control


class PowerTable(Table):
    driver: Name
    resource: Text
    """VISA resource name."""
    volts: Annotated[float, Field(gt=0, le=60)] = 12.0
    limit_a: Annotated[float, Field(gt=0, le=100)] = 3.0
    safe_state: Literal["off", "leave"]
    """State of the outputs after every exit."""


class PolicyTable(Table):
    rules: Annotated[list[Text], Field(min_length=1, max_length=32)]
    """Rule files."""
    instruct: Sides = Field(default_factory=lambda: list(SIDES))
    """Sides to instruct for a rule without ``instruct``, in this order."""
    instructed_by: Literal["harness", "secondary"] = "harness"
    """"secondary": the pair is in autonomic mode. The secondary instructs the primary over their
    own link; the harness sends no frame, it watches, collects and compares."""
    reply_timeout_s: Seconds = 2.0
    boot_timeout_s: Seconds = 10.0
    pull_timeout_s: Seconds = 30.0
    rejoin_timeout_s: Seconds = 20.0
    on_hung_warmstart: Literal["break, power-cycle", "break", "power-cycle", "give-up"] = "give-up"
    """What follows, in this order and each once, when a controller does not come back."""
    power_off_s: Seconds = 1.0
    """Off time of the output in a power cycle."""
    poll_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """In a watch: pause between two questions to a controller, and two canaries, while all is
    well."""
    during_recovery: Literal["join", "next"] = "join"
    """In a watch: a trigger while an incident is being collected is part of it, or becomes an
    incident of its own, for which both sides are saved once they answer again."""
    reaction_budget_us: Annotated[float, Field(gt=0, le=60_000_000)] | None = None
    """From a trigger's read to the end of the first frame's write. A slower reaction is reported; None:
    none is."""
    redrive: bool = False
    """Before the warmstart, save without a restart and send the failing write again, to
    distinguish a transient fault from a deterministic one."""
    redrive_timeout_s: Seconds = 3.0
    """Observation time of a write that was sent again."""

    def recovery(self) -> RecoveryPolicy:
        return RecoveryPolicy(
            reply_timeout_s=self.reply_timeout_s,
            boot_timeout_s=self.boot_timeout_s,
            pull_timeout_s=self.pull_timeout_s,
            rejoin_timeout_s=self.rejoin_timeout_s,
            power_cycle="power-cycle" in self.on_hung_warmstart,
            breaks=frozenset(SIDES if "break" in self.on_hung_warmstart else ()),
        )


class WorkloadTable(Table):
    driver: Name = "nbd"
    """Workload driver: nbd and blockdev are the stamped writer, fio is fio."""
    bytes_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Total amount of host writes; a smaller volume is overwritten repeatedly."""
    write_kib: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 64
    queue_depth: Annotated[int, Field(ge=1, le=256)] = 16

    @property
    def writes(self) -> int:
        return self.bytes_mib * MIB // (self.write_kib * KIB)


class Bench(Table):
    """A bench file. Immutable; ``resolve`` returns the one of a run."""

    bench: BenchTable
    simulation: SimulationTable | None = None
    rig: RigTable | None = None
    primary: ControllerTable
    secondary: ControllerTable
    link: LinkTable
    power: PowerTable | None = None
    notify: NotifyTable | None = None
    breaks: Annotated[dict[Name, BreakList], Field(max_length=9)] = Field(default_factory=dict)
    """What a person sends to a console by name."""
    policy: PolicyTable
    workload: WorkloadTable = Field(default_factory=WorkloadTable)
    _path: Path = PrivateAttr(default=Path())
    _id: str = PrivateAttr(default="")

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._path

    @property
    def id(self) -> str:
        """Name and digest: see freezeframe.harness.bench.benchid. Also ``resolve`` keeps it."""
        return self._id or benchid.bench_id(self.name, self._lines(), self._path)

    @property
    def pair_id(self) -> str:
        """The same of the controllers; "" before ``resolve`` of a bench that is made anew."""
        return benchid.pair_id(self.name, self._lines())

    def _lines(self) -> list[str | None]:
        return [line for side in SIDES for line in self.controller(side).lines]

    @property
    def name(self) -> str:
        return self.bench.name

    def controller(self, side: Side) -> ControllerTable:
        return self.primary if side == "primary" else self.secondary

    @property
    def controlled(self) -> tuple[Side, ...]:
        """Sides that have a control line: all others are only listened to."""
        return tuple(side for side in SIDES if self.controller(side).control is not None)

    @property
    def instruct(self) -> tuple[Side, ...]:
        """Sides that a rule without ``instruct`` instructs, in this order."""
        return tuple(side for side in self.policy.instruct if side in self.controlled)

    def problems(self) -> Iterable[tuple[KeyPath, str]]:
        for where, text in _strings(
            self.model_dump(exclude_none=True, exclude={"notify", "breaks"})
        ):
            for found in _PLACEHOLDER.findall(text):
                if found not in PLACEHOLDERS:
                    yield where, f"unknown placeholder {found}; allowed: {', '.join(PLACEHOLDERS)}"
                elif self.simulation is None and (self.rig is None or found != "{run}"):
                    yield where, f"{found} is only allowed in a bench with [simulation]"
        if self.simulation is not None and self.rig is not None:
            yield ("rig",), "[simulation] and [rig] exclude each other"
        if self.primary.serial_number == self.secondary.serial_number:
            yield (
                ("secondary", "serial_number"),
                "is also the primary's; each controller needs its own",
            )
        lines = {self.primary.console, self.primary.control} - {None}
        for key in ("console", "control"):
            if getattr(self.secondary, key) in lines:
                yield (
                    ("secondary", key),
                    "is also a line of the primary; each controller needs its own",
                )
        for side in SIDES if self.simulation is not None or self.rig is not None else ():
            for key in ("console", "host"):
                if getattr(self.controller(side), key) is None:
                    yield (side, key), "is missing; a bench on this machine has it"
        for side in SIDES if self.simulation is not None else ():
            if len(self.controller(side).serial_number) > control.SERIAL_NUMBER_BYTES:
                most = control.SERIAL_NUMBER_BYTES
                yield (
                    (side, "serial_number"),
                    f"a simulated controller's has at most {most} characters",
                )
        for side in SIDES:
            for name, value in self.controller(side).options.items():
                if not isinstance(value, str | int | float | bool) and not is_source(value):
                    yield (side, "options", name), "is no option; allowed: " + OPTION_WORDS
        for key, wrong in self.link.faults():
            yield ("link", key), wrong
        for where, wrong in self.notify.faults() if self.notify is not None else ():
            yield ("notify", *where), wrong
        for name, wrong in breaktable.faults(self.breaks):
            yield ("breaks", name), wrong
        if "power-cycle" in self.policy.on_hung_warmstart and self.power is None:
            yield (
                ("policy", "on_hung_warmstart"),
                "needs a [power] table; allowed without one: 'break', 'give-up'",
            )
        if not self.controlled:
            yield (
                ("primary", "control"),
                "is missing, and the secondary's too; one of them is needed",
            )
        elif not self.instruct:
            yield (
                ("policy", "instruct"),
                f"names no side with a control line; allowed: {', '.join(map(repr, self.controlled))}",
            )
        if len(set(self.policy.instruct)) != len(self.policy.instruct):
            yield ("policy", "instruct"), "names a side twice"
        if self.policy.redrive and self.policy.instructed_by == "secondary":
            yield (
                ("policy", "redrive"),
                "needs instructed_by = 'harness': in autonomic mode the harness sends no frame",
            )

    def resolve(self, run_dir: Path, supply_port: int) -> Self:
        """Return the bench of one run: placeholders replaced, nothing else changed."""
        values = {"{run}": str(run_dir), "{supply_port}": str(supply_port)}

        def replaced(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: replaced(inner) for key, inner in value.items()}
            if isinstance(value, list):
                return [replaced(inner) for inner in value]
            if isinstance(value, str):
                return _PLACEHOLDER.sub(lambda found: values.get(found[0], found[0]), value)
            return value

        resolved = type(self).model_validate(replaced(self.model_dump()))
        resolved._path, resolved._id = self._path, self.id
        return resolved

    def rule_paths(self) -> list[Path]:
        return [self._path.parent / name for name in self.policy.rules]

    def rules(self) -> RuleSet:
        """The rules of all its rule files; none instructs a side without a control line. UsageError:
        a file is missing or wrong, or a rule waits for what the link's protocol does not show."""
        return self._written_rules().instructing(self.controlled)

    def unanswered_rules(self) -> list[str]:
        """Names of rules that instruct only a side that has no control line: their hits are recorded,
        and nobody is instructed."""
        written, left = self._written_rules(), self.rules()
        return sorted(written.answered - left.answered)

    def _written_rules(self) -> RuleSet:
        found = rules.combine(
            [(str(path), rules.parse_rules(_text(path), str(path))) for path in self.rule_paths()]
        )
        self.link.refuse(found.link)
        return found

    def with_workload(self, overrides: "WorkloadOverrides") -> Self:
        """Return the bench with the workload of a scenario."""
        workload = self.workload.model_copy(update=overrides.model_dump(exclude_none=True))
        return self.model_copy(update={"workload": workload})


# --- scenarios ----------------------------------------------------------------------------------------------
class FaultTable(Table):
    """One fault to arm. Its side follows from the kind, unless given (hung_warmstart is possible
    on both sides)."""

    kind: Annotated[FaultKind, Field(strict=False)]
    side: Side | None = None
    at_write: Annotated[int, Field(ge=1)] = 1
    """Fires at this replicated write, counted from arming."""
    spread_writes: Annotated[int, Field(ge=0)] = 0
    """The seed of the run adds 0 to this number of writes to ``at_write``."""
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    delay_ms: Annotated[int, Field(ge=0, le=600_000)] = 0

    @property
    def on_side(self) -> str:
        return self.side or FAULTS[self.kind].side


class WorkloadOverrides(Table):
    driver: Name | None = None
    bytes_mib: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    write_kib: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] | None = None
    queue_depth: Annotated[int, Field(ge=1, le=256)] | None = None


class WindowTable(Table):
    """``[[expect.window]]``: hits of ``rule`` in the first ``within_s`` of the host's writes are
    wanted: they instruct nobody and fail nothing."""

    rule: Name
    within_s: Seconds


class ExpectTable(Table):
    detected: bool
    window: Annotated[list[WindowTable], Field(max_length=64)] = Field(default_factory=list)
    rules: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list)
    """At least one of these rules must trigger; empty: any rule."""
    power_cycle: bool = False
    """A controller returns only after a BREAK or a power cycle."""
    data_equal: bool = True
    """False: the fault may leave the two sides different in the end."""


class Scenario(Table):
    """A scenario file."""

    name: Name
    title: Text
    description: Annotated[str, Field(max_length=4096)] = ""
    faults: Annotated[list[FaultTable], Field(max_length=MAX_FAULTS)] = Field(default_factory=list)
    workload: WorkloadOverrides = Field(default_factory=WorkloadOverrides)
    expect: ExpectTable
    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        return self._path

    def problems(self) -> Iterable[tuple[KeyPath, str]]:
        delayed = ", ".join(kind for kind, traits in FAULTS.items() if traits.has_delay)
        for index, fault in enumerate(self.faults):
            kind, traits = fault.kind, FAULTS[fault.kind]
            if traits.has_delay and fault.delay_ms == 0:
                yield ("faults", index), f"{kind} needs delay_ms"
            if fault.delay_ms and not traits.has_delay:
                yield ("faults", index, "delay_ms"), f"{kind} has no delay; allowed: {delayed}"
            if fault.on_side != traits.side and not traits.either_side:
                yield ("faults", index, "side"), f"{kind} is the {traits.side}'s"
        if self.expect.rules and not self.expect.detected:
            yield (
                ("expect", "rules"),
                "nothing is expected to be detected, so no rule can be expected",
            )
        if self.faults and not self.expect.detected:
            yield (
                ("expect", "detected"),
                "a fault that is not expected to be detected proves nothing",
            )

    def fault_plan(self, side: Side, seed: int) -> dict[str, Any]:
        """Return the fault plan (SET_FAULTS) for ``side``. The same seed gives the same plan.

        Faults with equal ``at_write`` and ``spread_writes`` fire at the same write.
        """
        entries = []
        for fault in self.faults:
            if fault.on_side == side:
                dice = random.Random(f"{seed}/{fault.at_write}/{fault.spread_writes}")
                entries.append(
                    {
                        "kind": str(fault.kind),
                        "side": side,
                        "at_write": fault.at_write + dice.randint(0, fault.spread_writes),
                        "count": fault.count,
                        "delay_ms": fault.delay_ms,
                    }
                )
        return {"seed": seed, "faults": entries}


# --- finding and reading ------------------------------------------------------------------------------------
F = TypeVar("F", Bench, Scenario)


def load_bench(what: str | Path) -> Bench:
    """Load the bench file at path ``what``, or the built-in bench of that name. UsageError names
    every problem."""
    return _load(what, Bench, builtin_folder(), "bench")


def load_scenario(what: str | Path) -> Scenario:
    """Load a scenario file in the same way."""
    return _load(what, Scenario, builtin_folder() / "scenarios", "scenario")


def builtin_folder() -> Path:
    """Return the folder of the built-in bench files, in a checkout or an installation."""
    return Path(str(resources.files("freezeframe.bench_configs"))).resolve()


def builtin_benches() -> list[str]:
    return sorted(path.stem for path in builtin_folder().glob("*.toml"))


def builtin_scenarios() -> list[str]:
    return sorted(path.stem for path in (builtin_folder() / "scenarios").glob("*.toml"))


def _load(what: str | Path, model: type[F], folder: Path, kind: str) -> F:
    path = Path(what)
    if not path.is_file():
        bare = str(what).removesuffix(".toml")
        path = folder / f"{bare}.toml"
        if not re.fullmatch(r"[A-Za-z0-9._-]+", bare) or not path.is_file():
            known = sorted(one.stem for one in folder.glob("*.toml"))
            raise UsageError(
                f"{what}: no such {kind} file, nor a built-in {kind}{did_you_mean(bare, known)}; built in: "
                f"{', '.join(known)}"
            )
    loaded = configfile.load(_text(path), str(path), model)
    loaded._path = path.absolute()
    return loaded


def _text(path: Path) -> str:
    """Read the text of a configuration file, up to a limit. Raises UsageError: missing,
    unreadable, not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_CONFIG_CHARS + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x})"
        ) from error


def _strings(value: Any, where: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(inner, (*where, key))
