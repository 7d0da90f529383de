"""The health's table: the first row that applies, and every reason of that row."""

import pytest

from freezeframe.harness.core.policy.health import Health, HealthInputs, HealthStatus, status


def view(**fields: object) -> HealthInputs:
    quiet: dict[str, object] = {
        "decided": "", "unseen": "", "busy": "", "unready": (), "missing": (), "unheard": (),
    }  # fmt: skip
    return HealthInputs(**(quiet | fields))  # type: ignore[arg-type]


ROWS = [
    ({"decided": "by a person"}, Health.DISARMED),
    ({"unseen": "no console"}, Health.BLIND),
    ({"busy": "incident 1"}, Health.DISARMED),
    ({"unready": ("primary: silent", "secondary: silent")}, Health.DISARMED),
    ({"missing": ("link capture: gone",)}, Health.DEGRADED),
    ({"unheard": ("primary console: no canary",)}, Health.UNREHEARSED),
]


def test_armed_has_no_reason() -> None:
    assert status(view()) == HealthStatus(Health.ARMED)
    assert str(status(view())) == "armed"


@pytest.mark.parametrize(("fields", "health"), ROWS)
def test_each_row_alone(fields: dict[str, object], health: Health) -> None:
    judged = status(view(**fields))
    assert judged.health is health
    assert all(part in judged.why for value in fields.values() for part in _texts(value))


@pytest.mark.parametrize("first", range(len(ROWS)))
def test_an_earlier_row_wins(first: int) -> None:
    fields: dict[str, object] = {}
    for row, _ in ROWS[first:]:
        fields |= row
    assert status(view(**fields)).health is ROWS[first][1]


def test_a_health_without_its_reason_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        HealthStatus(Health.BLIND)
    with pytest.raises(AssertionError):
        HealthStatus(Health.ARMED, "because")


def _texts(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("fields", "health"), ROWS)
def test_withheld_frames_are_disarmed_and_hide_nothing(
    fields: dict[str, object], health: Health
) -> None:
    loaded = status(view(**fields))
    withheld = status(view(**fields, withheld="dry run"))
    if health.has_frames:
        assert withheld == HealthStatus(Health.DISARMED, f"dry run; {loaded.why}")
    else:
        assert withheld == loaded
    assert str(status(view(withheld="dry run"))) == "disarmed: dry run"
