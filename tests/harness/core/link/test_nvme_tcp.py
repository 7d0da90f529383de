"""NVMe/TCP: what a header says of itself, and when a host leaves. The PDUs are written from the
specification; captures of real mirrors are in ``test_pdus.py``."""

import pytest

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.messages import Leaving, Malformed
from freezeframe.harness.core.link.nvme_tcp import parse_header
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Flow, StreamData, StreamOpened
from freezeframe.harness.wire import nvme_tcp as nvme
from freezeframe.harness.wire.nvme_tcp import COMMON_HEADER, HEADER_BYTES, PduFlag, PduType

CAPSULE, CAPSULE_BYTES = PduType.CAPSULE_CMD, HEADER_BYTES[PduType.CAPSULE_CMD]


@pytest.mark.parametrize(
    ("kind", "flags", "header_bytes", "data_at", "length", "why"),
    [
        (CAPSULE, 0, CAPSULE_BYTES, 0, CAPSULE_BYTES, None),
        (CAPSULE, 0, CAPSULE_BYTES, CAPSULE_BYTES, CAPSULE_BYTES + 512, None),
        (CAPSULE, PduFlag.HEADER_DIGEST, CAPSULE_BYTES, 0, CAPSULE_BYTES + 4, None),
        (8, 0, 24, 0, 24, "no PDU begins with type 0x08 and a header of 24 bytes"),
        (CAPSULE, 0, 24, 0, 24, "no PDU begins with type 0x04 and a header of 24 bytes"),
        (PduType.CAPSULE_RESP, 0, 24, 0, 24, "a PDU of type CAPSULE_RESP from the wrong end"),
        (CAPSULE, 0, CAPSULE_BYTES, 71, 600, "CAPSULE_CMD with its data at byte 71"),
        (PduType.IC_REQ, 0, 128, 128, 130, "IC_REQ with its data at byte 128"),
        (CAPSULE, 0, CAPSULE_BYTES, 0, 71, "CAPSULE_CMD of 71 bytes"),
        (CAPSULE, 0, CAPSULE_BYTES, 0, 76, "CAPSULE_CMD of 76 bytes without data"),
    ],
)
def test_a_header_of_nvme_is_whole_in_itself_or_says_what_is_wrong(
    kind: int, flags: int, header_bytes: int, data_at: int, length: int, why: str | None
) -> None:
    header = COMMON_HEADER.pack(kind, flags, header_bytes, data_at, length)
    found = parse_header(b"xx" + header, 2, True)
    if why is not None:
        assert found == why
    else:
        assert not isinstance(found, str) and (found.kind, found.length_bytes) == (kind, length)


@pytest.mark.parametrize(
    ("register", "value", "leaves"),
    [
        (nvme.CONTROLLER_CONFIGURATION, 0x4000, True),
        (nvme.CONTROLLER_CONFIGURATION, 0x8001, True),
        (nvme.CONTROLLER_CONFIGURATION, 1, False),
        (nvme.CONTROLLER_CONFIGURATION + 4, 0x4000, False),
    ],
)
def test_a_host_leaves_by_shutting_the_controller_down_and_by_nothing_else_that_it_sets(
    register: int, value: int, leaves: bool
) -> None:
    command = bytearray(64)
    command[0], command[nvme.FABRICS_TYPE_AT] = nvme.FABRICS_OPCODE, nvme.FABRICS_PROPERTY_SET
    nvme.PROPERTY.pack_into(command, nvme.PROPERTY_AT, 1, register, value)
    stream = COMMON_HEADER.pack(PduType.IC_REQ, 0, 128, 0, 128) + bytes(120)
    stream += COMMON_HEADER.pack(CAPSULE, 0, CAPSULE_BYTES, 0, CAPSULE_BYTES) + command
    follower, flow = Follower(byname.find("nvme_tcp")(LinkOptions())), Flow(0, 0, "a", 1, "b", 4420)
    seen = [*follower.on(StreamOpened(flow, 0, 1, True, True))]
    seen += follower.on(StreamData(flow, 1, 2, 0, stream))
    assert any(isinstance(one, Leaving) for one in seen) is leaves
    assert not any(isinstance(one, Malformed) for one in seen), seen
