"""Packet sizes where the length of the length changes."""

import pytest

from fedmq.transport import packet_size


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [
        (0, 2),
        (127, 129),
        (128, 131),
        (16_383, 16_386),
        (16_384, 16_388),
        (2_097_151, 2_097_155),
        (2_097_152, 2_097_157),
        (packet_size.LARGEST_REMAINING, packet_size.LARGEST_PACKET),
    ],
)
def test_the_length_takes_one_to_four_bytes(remaining: int, expected: int) -> None:
    """The limits of MQTT 5 table 1-1."""
    assert packet_size.packet(remaining) == expected


def test_a_short_puback_and_disconnect_leave_out_what_is_empty() -> None:
    """Sections 3.4.2.1 and 3.14.2.1."""
    assert packet_size.puback(reason=0, properties=1) == 4
    assert packet_size.puback(reason=0x10, properties=1) == 5
    assert packet_size.puback(reason=0x10, properties=8) == 13
    assert packet_size.disconnect(reason=0, properties=1) == 2
    assert packet_size.disconnect(reason=0x8E, properties=1) == 3
