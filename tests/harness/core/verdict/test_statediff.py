"""What two controllers should agree on and do not, a row each."""

import pytest

from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.core.verdict.statediff import UUID_PRIMARY_BIT, differences, field_rows

STATE = {"uuids": [0xA0 | UUID_PRIMARY_BIT, 0, 0xB0], "protocol_version": 101, "dirty_blocks": 0}


def row(
    primary: dict[str, object], secondary: dict[str, object]
) -> list[tuple[str, object, object]]:
    found = differences(STATE | primary, STATE | secondary, {})
    return [(one.field, one.primary, one.secondary) for one in found]


def test_the_bit_that_marks_a_primary_is_no_difference() -> None:
    assert row({}, {"uuids": [0xA0, 0, 0xB0]}) == []


@pytest.mark.parametrize("theirs", [[0xC0], [0xA2, 0, 0], [], None, ["A0"]])
def test_another_generation_of_data_is_a_row(theirs: object) -> None:
    (found,) = row({}, {"uuids": theirs})
    is_number = theirs in ([0xC0], [0xA2, 0, 0])
    shown = f"{theirs[0]:016X}" if is_number and isinstance(theirs, list) else None
    assert found == ("data generation (current UUID)", f"{0xA0:016X}", shown)


def test_other_fields_are_rows_of_their_own() -> None:
    found = row({"dirty_blocks": 3}, {"protocol_version": 96})
    assert found == [("protocol version", 101, 96), ("blocks out of sync", 3, 0)]


def test_of_all_fields_those_that_differ_come_first_and_are_marked() -> None:
    primary = RootCauseSet(header={"serial": "A"}, state={"same": 7, "role": 1}, events=[])
    secondary = RootCauseSet(header={"serial": "B"}, state={"same": 7, "own": 5}, events=[])
    rows = [(row.name, row.differs) for row in field_rows(primary, secondary)]
    assert rows == [("role", True), ("set: serial", True), ("own", True), ("same", False)]
    assert not any(row.differs for row in field_rows(primary, primary))
    assert all(row.differs for row in field_rows(primary, None))
