"""The policy server: greeting, authorization, sessions, invalid requests, deadlines and TLS."""

import http.client
import socket
import time
import urllib.parse

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from saccade.errors import InputError
from saccade.policy.contract import Contract
from saccade.robot.remote import protocol
from saccade.robot.remote.client import ConnectionLost, RemotePolicy
from saccade.robot.remote.codec import MessageLimits, decode, encode
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade_testing.toy_policy import TOKEN, ToyPolicy, expected_actions, toy_observation

pytestmark = pytest.mark.real_time

WAIT = 20.0


@pytest.fixture
def chunk_policy():
    return ToyPolicy()


@pytest.fixture
def url(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN, policy="toy", ping_seconds=0.5)) as address:
        yield address


def connect_client(url, token=TOKEN, **options):
    """Return a bare websocket connection and the greeting."""
    options = {"additional_headers": protocol.authorization(token), "proxy": None, "compression": None, **options}
    connection = connect(url, **options)
    return connection, decode(connection.recv(WAIT))


def request_reply(connection, message):
    connection.send(encode(message))
    frame = connection.recv(WAIT)
    return frame if isinstance(frame, str) else decode(frame)


def header(greeting, sequence, **fields):
    return {"session": greeting["session"], "sequence": sequence, "deadline": 5.0, **fields}


def wait_until(condition):
    ends = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_greeting_has_protocol_session_and_contract(url, chunk_policy):
    connection, greeting = connect_client(url)
    with connection:
        assert greeting["protocol"] == "saccade/1" and greeting["policy"] == "toy"
        assert Contract.from_json(greeting["contract"]) == chunk_policy.contract
    wait_until(lambda: not is_busy(url))
    connection, second = connect_client(url)
    connection.close()
    assert second["session"] != greeting["session"]


def is_busy(url):
    try:
        connection, _ = connect_client(url)
    except ConnectionClosed:
        return True
    connection.close()
    return False


def test_replies_have_session_sequence_and_timing(url, chunk_policy):
    connection, greeting = connect_client(url)
    with connection:
        reset = request_reply(connection, header(greeting, 0, request="reset", instruction="go"))
        assert (reset["session"], reset["sequence"]) == (greeting["session"], 0) and "actions" not in reset
        observation = toy_observation()
        reply = request_reply(connection, header(greeting, 5, request="decide", **observation))
        assert (reply["session"], reply["sequence"]) == (greeting["session"], 5)
        np.testing.assert_array_equal(reply["actions"], expected_actions(observation, chunk_policy.contract))
        timing = reply["server_timing"]
        assert 0 <= timing["infer_ms"] <= timing["total_ms"]
    assert chunk_policy.instructions == ["go"]
    assert chunk_policy.threads == {"policy"}


@pytest.mark.parametrize("token", ["", "a-token-for-tests-onlY", "another-token-altogether"])
def test_wrong_token_is_refused(url, token):
    headers = protocol.authorization(token) if token else {}
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=headers, proxy=None)
    assert refused.value.response.status_code == 401
    assert b"Api-Key" in refused.value.response.body and TOKEN.encode() not in refused.value.response.body


def test_two_authorization_headers_are_refused(url):
    headers = [("Authorization", f"Api-Key {TOKEN}"), ("Authorization", "Api-Key other")]
    with pytest.raises(InvalidStatus):
        connect(url, additional_headers=headers, proxy=None)


def test_browser_origin_is_refused_despite_the_token(url):
    with pytest.raises(InvalidStatus) as refused:
        connect_client(url, origin="http://127.0.0.1")
    assert refused.value.response.status_code == 403


def test_only_the_health_check_needs_no_token(url):
    parts = urllib.parse.urlsplit(url)
    for path, status in (("/healthz", 200), ("/", 401), ("/healthz/x", 401)):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == status and (answer.read() == b"OK\n") == (status == 200)


def test_second_client_is_refused_with_a_reason(url):
    first, greeting = connect_client(url)
    with first:
        with pytest.raises(ConnectionClosed) as closed:
            connect_client(url)
        assert (
            closed.value.rcvd.code == protocol.BUSY_CLOSE_CODE
            and "another client is in control" in closed.value.rcvd.reason
        )
        assert "error" not in request_reply(first, header(greeting, 0, request="reset", instruction="go"))


def test_server_stays_responsive_during_a_decision(url, chunk_policy):
    chunk_policy.gate.clear()
    connection, greeting = connect_client(url)
    request_reply(connection, header(greeting, 0, request="reset", instruction="go"))
    connection.send(encode(header(greeting, 1, request="decide", **toy_observation())))
    assert chunk_policy.entered.wait(WAIT)
    # Pings are answered and others are served while the policy is busy.
    assert connection.ping().wait(WAIT)
    assert is_busy(url)
    connection.close()
    # The next client gets in while the decision still runs, and an answer after it.
    wait_until(lambda: not is_busy(url))
    connection, greeting = connect_client(url)
    with connection:
        chunk_policy.gate.set()
        reply = request_reply(connection, header(greeting, 0, request="reset", instruction="stay"))
        assert reply["session"] == greeting["session"] and "error" not in reply
    assert chunk_policy.instructions == ["go", "stay"]


BAD = toy_observation()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"request": "load"}, "request"),
        ({"deadline": 0.0}, "deadline"),
        ({"deadline": 1}, "deadline"),
        ({"deadline": 1e9}, "deadline"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": True}, "sequence"),
        ({"session": 7}, "session"),
        ({"pixels": {"front": BAD["pixels"]["front"]}}, "camera wrist"),
        ({"pixels": {**BAD["pixels"], "wrist": np.zeros((6, 4, 3), np.uint8)}}, "pixels.wrist"),
        ({"pixels": {**BAD["pixels"], "wrist": np.zeros((4, 6, 3), np.float32)}}, "pixels.wrist"),
        ({"pixels": 3}, "pixels"),
        ({"agent_pos": np.zeros(3, np.float32)}, "agent_pos"),
        ({"agent_pos": np.zeros(2, np.int64)}, "agent_pos"),
        ({"agent_pos": [0.0, 0.0]}, "agent_pos"),
        ({"agent_pos": np.full(2, 1e300)}, "agent_pos"),
        ({"agent_pos": None}, "agent_pos"),
    ],
)
def test_invalid_request_is_refused_and_keeps_the_session(url, chunk_policy, changes, what):
    connection, greeting = connect_client(url)
    with connection:
        request_reply(connection, header(greeting, 0, request="reset", instruction="go"))
        request = header(greeting, 1, request="decide", **toy_observation())
        error = request_reply(connection, {**request, **changes})["error"]
        assert error["kind"] == "input" and error["what"].startswith(what)
        assert all(error[key] for key in ("got", "expected", "fix"))
        assert "actions" in request_reply(connection, request)


@pytest.mark.parametrize("instruction", ["", "  ", 3, "x" * 2001])
def test_invalid_instruction_is_refused(url, instruction):
    connection, greeting = connect_client(url)
    with connection:
        error = request_reply(connection, header(greeting, 0, request="reset", instruction=instruction))["error"]
        assert error["what"] == "instruction"
        error = request_reply(connection, header(greeting, 1, request="decide", **toy_observation()))["error"]
        assert error["what"] == "instruction" and "reset" in error["fix"]


@pytest.mark.parametrize(("changes", "what"), [({"session": "0" * 32}, "session"), ({"sequence": 4}, "sequence")])
def test_wrong_session_or_old_sequence_ends_the_session(url, chunk_policy, changes, what):
    connection, greeting = connect_client(url)
    request_reply(connection, header(greeting, 4, request="reset", instruction="go"))
    text = request_reply(connection, {**header(greeting, 5, request="decide", **toy_observation()), **changes})
    assert text.startswith(what)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(WAIT)
    assert closed.value.rcvd.code == 1008 and what in closed.value.rcvd.reason
    assert not chunk_policy.threads


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\xa1a\xc1", 1007),
        (b"no msgpack at all", 1007),
        (
            b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08aaaaaaaa\xc4\x05dtype\xa2|O\xc4\x05shape\x91\x01",
            1007,
        ),
        ("text", 1003),
    ],
)
def test_malformed_frame_ends_the_session_with_a_reason(url, frame, code):
    connection, _ = connect_client(url)
    connection.send(frame)
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.recv(WAIT)
    assert closed.value.rcvd.code == code and closed.value.rcvd.reason


def test_oversized_message_is_refused(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN, limits=MessageLimits(message=2000))) as url:
        connection, _ = connect_client(url)
        connection.send(b"\x00" * 3000)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(WAIT)
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    "fails", [ZeroDivisionError("secret"), np.full((3, 2), np.nan, np.float32), np.zeros((2, 2)), None]
)
def test_policy_failure_reveals_no_details(url, chunk_policy, fails, caplog):
    connection, greeting = connect_client(url)
    request_reply(connection, header(greeting, 0, request="reset", instruction="go"))
    if isinstance(fails, Exception):
        chunk_policy.failure = fails
    else:
        chunk_policy.answer = fails if fails is not None else "no array"
    reply = request_reply(connection, header(greeting, 1, request="decide", **toy_observation()))
    assert reply["sequence"] == 1 and reply["error"]["kind"] == "failed"
    assert "secret" not in str(reply) and "Traceback" not in str(reply)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(WAIT)
    assert closed.value.rcvd.code == 1011
    assert "Traceback" in caplog.text
    # The failure does not affect the next session.
    chunk_policy.failure = chunk_policy.answer = None
    wait_until(lambda: not is_busy(url))
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        assert policy.decide(toy_observation()).shape == (3, 2)


def test_actions_after_the_deadline_are_not_sent(url, chunk_policy):
    chunk_policy.gate.clear()
    connection, greeting = connect_client(url)
    request_reply(connection, header(greeting, 0, request="reset", instruction="go"))
    connection.send(encode({**header(greeting, 1, request="decide", **toy_observation()), "deadline": 0.05}))
    assert chunk_policy.entered.wait(WAIT)
    time.sleep(0.1)
    chunk_policy.gate.set()
    reply = decode(connection.recv(WAIT))
    assert reply["error"]["kind"] == "late" and "actions" not in reply


def test_client_without_pong_loses_control(url):
    parts = urllib.parse.urlsplit(url)
    # A client whose machine loses power after the handshake: it answers nothing and never closes.
    with socket.create_connection((parts.hostname, parts.port)) as half_open:
        lines = ("GET / HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade")
        lines += ("Sec-WebSocket-Key: VpdMwkj0tF+gFKQXqSwv4Q==", "Sec-WebSocket-Version: 13")
        half_open.sendall("\r\n".join([*lines, f"Authorization: Api-Key {TOKEN}", "", ""]).encode())
        assert half_open.recv(12) == b"HTTP/1.1 101"
        assert is_busy(url)
        wait_until(lambda: not is_busy(url))


def test_server_survives_a_foreign_protocol(url):
    parts = urllib.parse.urlsplit(url)
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-x\r\n\r\n", b"\xff" * 2000):
        with socket.create_connection((parts.hostname, parts.port)) as line:
            line.settimeout(WAIT)
            line.sendall(noise)
            line.shutdown(socket.SHUT_WR)
            while line.recv(4096):
                pass
    assert not is_busy(url)


def test_port_in_use_is_refused(url, chunk_policy):
    port = urllib.parse.urlsplit(url).port
    for settings, what in (
        (ServerSettings(token=TOKEN, port=port), "port"),
        (ServerSettings(token=TOKEN, host="127.0.0.1", port=port), "port"),
    ):
        with pytest.raises(InputError, match="in use") as refused, serve_in_background(chunk_policy, settings):
            pass
        assert refused.value.what == what
        with pytest.raises(InputError, match="in use"):
            settings.check_bindable()


def test_server_with_a_certificate_accepts_only_tls(certificate, chunk_policy):
    pem, key = certificate
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN, certificate=pem, key=key)) as url:
        assert url.startswith("wss://")
        with RemotePolicy(url, TOKEN, WAIT, certificate=pem) as policy:
            policy.reset("go")
            assert policy.decide(toy_observation()).shape == (3, 2)
        with pytest.raises(InputError, match="certificate of wss"):
            RemotePolicy(url, TOKEN)
        with pytest.raises((InputError, ConnectionLost)):
            RemotePolicy(url.replace("wss", "ws"), TOKEN)
