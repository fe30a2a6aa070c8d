"""The server answers openpi's own client, from recorded bytes.

The files are what `openpi-client` 0.1.2 (numpy 1.26.4, websockets 17.4) sent to our server with a `ToyPolicy`:
the handshake of `WebsocketClientPolicy(host, port, api_key=TOKEN)` and the masked frame of one `infer`: images and
state of `toy_observation(0)`, in openpi's flat form (float64 for the state, one more scalar) and in the desk's.
"""

import re
import socket
import urllib.parse

import numpy as np
import pytest

from saccade.robot.remote.codec import decode
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade_testing.toy_policy import DATA, TOKEN, ToyPolicy, expected_actions, toy_observation

WAIT = 20.0
FORMS = ("flat", "nested")


class RawConnection:
    """A bare socket to the server that reads websocket frames."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.settimeout(WAIT)

    def read(self, size):
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "the server has closed"
            data += part
        return data

    def head(self):
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += self.read(1)
        return data

    def frame(self):
        """Return opcode and payload of the next frame, which a server never masks nor, here, fragments."""
        first, length = self.read(2)
        assert first & 0x80 and length < 0x80
        if length >= 126:
            length = int.from_bytes(self.read(2 if length == 126 else 8), "big")
        return first & 0x0F, self.read(length)


@pytest.fixture
def chunk_policy():
    return ToyPolicy()


@pytest.fixture
def connection(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN)) as url:
        connection = RawConnection(url)
        yield connection
        connection.socket.close()


def recorded(name):
    return (DATA / f"openpi_{name}.bin").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_recorded_requests_get_their_actions(connection, chunk_policy, form):
    connection.socket.sendall(recorded(f"{form}_handshake"))
    assert connection.head().startswith(b"HTTP/1.1 101 ")
    opcode, metadata = connection.frame()
    assert opcode == 2 and decode(metadata)["protocol"] == "saccade/1"
    for again in (False, True):
        connection.socket.sendall(recorded(f"{form}_frame"))
        opcode, reply = connection.frame()
        reply = decode(reply)
        assert opcode == 2 and set(reply) == {"actions", "server_timing"}
        np.testing.assert_array_equal(reply["actions"], expected_actions(toy_observation(0), chunk_policy.contract))
        assert reply["server_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in reply["server_timing"]) == again
    # openpi sends the instruction with every observation; a change of it resets the policy.
    assert chunk_policy.instructions == ["put the red cube in the bin"]


def test_error_is_one_text_line_and_keeps_the_connection(connection, chunk_policy):
    connection.socket.sendall(recorded("flat_handshake"))
    connection.head()
    connection.frame()
    # Change one letter of a camera's name in the masked frame: an XOR of the plain letters leaves the mask in place.
    frame = bytearray(recorded("flat_frame"))
    start = 8 if frame[1] & 0x7F == 126 else 6
    mask = frame[start - 4 : start]
    payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(frame[start:]))
    place = payload.index(b"observation/front")
    frame[start + place] ^= ord("o") ^ ord("p")
    connection.socket.sendall(frame)
    opcode, text = connection.frame()
    assert opcode == 1 and text.startswith(b"camera front: got nothing") and b"\n" not in text
    connection.socket.sendall(recorded("flat_frame"))
    assert connection.frame()[0] == 2


def test_missing_api_key_is_refused(connection):
    connection.socket.sendall(re.sub(rb"Authorization: [^\r]*\r\n", b"", recorded("flat_handshake")))
    assert connection.head().startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("form", FORMS)
def test_recordings_come_from_the_real_client(form):
    handshake = recorded(f"{form}_handshake")
    assert handshake.startswith(b"GET / HTTP/1.1\r\n") and b"websockets/17.4" in handshake
    assert f"Authorization: Api-Key {TOKEN}".encode() in handshake
