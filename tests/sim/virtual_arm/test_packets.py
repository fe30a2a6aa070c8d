"""Packets of the servo protocol are found in a stream of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from saccade.sim.virtual_arm.bus import packet, pop_packet


def test_packets_are_found_among_other_bytes():
    pending = bytearray(b"\xff\x00\xff" + packet(3, 2, b"\x38\x02") + b"\x11\xff\xff")
    assert pop_packet(pending) == (3, 2, b"\x38\x02")
    assert pop_packet(pending) is None
    pending += packet(1, 1)[2:]
    assert pop_packet(pending) == (1, 1, b"")


def test_damaged_packet_does_not_hide_the_next():
    damaged = bytearray(packet(3, 2, b"\x38\x02"))
    damaged[-1] ^= 1
    assert pop_packet(damaged + packet(4, 1)) == (4, 1, b"")


@given(st.binary(max_size=80), st.integers(0, 252), st.integers(1, 131), st.binary(max_size=20))
def test_packet_is_found_after_random_bytes(noise, identifier, instruction, parameters):
    # Padding: noise that looks like the beginning of a long packet swallows what follows until it is complete.
    pending = bytearray(noise + bytes(260) + packet(identifier, instruction, parameters) + bytes(260))
    found = []
    while (each := pop_packet(pending)) is not None:
        found.append(each)
    assert (identifier, instruction, parameters) in found
