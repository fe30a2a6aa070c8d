"""The client against the real server, and against servers that break the protocol."""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from websockets.sync.server import serve
from websockets.utils import accept_key

from saccade.errors import InputError, WorldError
from saccade.robot.remote import protocol
from saccade.robot.remote.client import ConnectionLost, DeadlineMissed, RemotePolicy
from saccade.robot.remote.codec import decode, encode
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade_testing.toy_policy import TOKEN, ToyPolicy, expected_actions, toy_contract, toy_observation

pytestmark = pytest.mark.real_time

WAIT = 20.0
"""Seconds that a test waits at most for something that comes at once."""

SESSION = "f" * 32


@pytest.fixture
def chunk_policy():
    return ToyPolicy()


@pytest.fixture
def url(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN)) as address:
        yield address


def test_client_returns_the_actions_of_the_server(url, chunk_policy):
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        assert policy.contract == chunk_policy.contract
        policy.reset("put it there")
        for seed in range(5):
            observation = toy_observation(seed)
            actions = policy.decide(observation)
            assert actions.dtype == np.float32
            np.testing.assert_array_equal(actions, expected_actions(observation, chunk_policy.contract))
        assert 0 < policy.timing.inference < policy.timing.round_trip
    assert not policy.is_connected and chunk_policy.instructions == ["put it there"]
    policy.close()


def test_unused_cameras_are_not_sent(url):
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        observation = toy_observation()
        observation["pixels"]["side"] = np.zeros((4000, 4000, 3), np.uint8)
        assert policy.decide(observation).shape == (3, 2)


def test_invalid_observation_is_refused_and_keeps_the_session(url):
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        with pytest.raises(InputError, match="reset"):
            policy.decide(toy_observation())
        with pytest.raises(InputError, match="instruction"):
            policy.reset("")
        policy.reset("go")
        for change, message in (
            (lambda seen: seen["pixels"].pop("wrist"), "camera wrist: got nothing, expected uint8"),
            (lambda seen: seen["pixels"].update(front=np.zeros((4, 6, 3))), "pixels.front: got float64"),
            (lambda seen: seen.update(agent_pos=np.zeros(3)), "agent_pos: got float64"),
            (lambda seen: seen.update(agent_pos=np.array([np.nan, 0.0])), "agent_pos: got numbers that are not finite"),
            (lambda seen: seen.pop("agent_pos"), "agent_pos: got nothing"),
        ):
            observation = toy_observation()
            change(observation)
            with pytest.raises(InputError, match=message):
                policy.decide(observation)
        assert policy.is_connected and policy.decide(toy_observation()).shape == (3, 2)


def test_input_error_of_the_server_reaches_the_client(url, chunk_policy):
    chunk_policy.failure = InputError("prompt", got="Greek", expected="English", fix="Translate it.")
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        with pytest.raises(InputError, match="prompt: got Greek, expected English. Translate it."):
            policy.decide(toy_observation())
        chunk_policy.failure = None
        assert policy.decide(toy_observation()).shape == (3, 2)


def test_client_needs_a_new_session_after_a_missed_deadline(url, chunk_policy):
    with RemotePolicy(url, TOKEN, 0.2) as policy:
        policy.reset("go")
        chunk_policy.gate.clear()
        session, started = policy.session, time.monotonic()
        with pytest.raises(DeadlineMissed):
            policy.decide(toy_observation())
        assert time.monotonic() - started < 5 and not policy.is_connected
        chunk_policy.gate.set()
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="reconnect"):
                policy.decide(toy_observation())
        policy.timeout = WAIT
        reconnect(policy)
        assert policy.session != session
        with pytest.raises(InputError, match="reset"):
            policy.decide(toy_observation())
        policy.reset("go on")
        observation = toy_observation(3)
        np.testing.assert_array_equal(policy.decide(observation), expected_actions(observation, chunk_policy.contract))


def reconnect(policy):
    ends = time.monotonic() + WAIT
    while True:
        try:
            return policy.reconnect()
        # The server needs a moment to notice that the previous client has gone.
        except ConnectionLost as error:
            assert "another client" in str(error) and time.monotonic() < ends
            time.sleep(0.02)


def test_policy_failure_on_the_server_is_a_world_error(url, chunk_policy):
    chunk_policy.failure = ZeroDivisionError("secret")
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        with pytest.raises(WorldError, match="policy: got a failure") as failed:
            policy.decide(toy_observation())
        assert "secret" not in str(failed.value) and not policy.is_connected


def test_client_reports_a_stopped_server_and_does_not_reconnect_by_itself(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN)) as url:
        policy = RemotePolicy(url, TOKEN, WAIT)
        policy.reset("go")
    with pytest.raises(ConnectionLost, match="the server is stopping"):
        policy.decide(toy_observation())
    assert not policy.is_connected
    with pytest.raises(ConnectionLost, match="no policy server at"):
        policy.reconnect()


def test_wrong_token_and_second_client_give_different_errors(url):
    with pytest.raises(InputError, match="token for .*: got a wrong one") as refused:
        RemotePolicy(url, "another-token-altogether")
    assert "another-token" not in str(refused.value)
    with RemotePolicy(url, TOKEN, WAIT), pytest.raises(ConnectionLost, match="another client is in control"):
        RemotePolicy(url, TOKEN, WAIT)


def test_reconnect_refuses_a_different_contract(chunk_policy):
    settings = ServerSettings(token=TOKEN)
    with serve_in_background(chunk_policy, settings) as url:
        policy = RemotePolicy(url, TOKEN, WAIT)
        port = int(url.rpartition(":")[2])
    with serve_in_background(ToyPolicy(toy_contract(chunk=4)), ServerSettings(token=TOKEN, port=port)):
        with pytest.raises(InputError, match="contract of"):
            policy.reconnect()
        assert not policy.is_connected and policy.contract == chunk_policy.contract


@contextlib.contextmanager
def broken_server(behave):
    """Run a server that sends a valid greeting and then calls `behave(connection)`."""
    over = threading.Event()

    def handle(connection):
        connection.send(encode(protocol.greeting(toy_contract(), "toy", SESSION, 1000)))
        behave(connection)
        over.wait(WAIT)

    with serve(handle, "127.0.0.1", 0, compression=None, close_timeout=0.2) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown()


def reply_with(*changes, raw=None):
    """Return a behaviour that replies correctly except in the last reply, which has changes or is raw bytes."""

    def behave(connection):
        with contextlib.suppress(Exception):
            for change in ({}, *changes):
                request = decode(connection.recv())
                reply = {"session": request["session"], "sequence": request["sequence"]}
                reply["server_timing"] = {"infer_ms": 1.0}
                if request["request"] == "decide":
                    reply["actions"] = np.zeros((3, 2), np.float32)
                reply.update(change)
                reply = {key: value for key, value in reply.items() if value is not ...}
                connection.send(raw if raw is not None and request["request"] == "decide" else encode(reply))

    return behave


def reply_with_nan():
    array = {
        b"__ndarray__": True,
        b"data": np.full((3, 2), np.nan, np.float32).tobytes(),
        b"dtype": "<f4",
        b"shape": [3, 2],
    }
    heading = {"session": SESSION, "sequence": 1, "server_timing": {"infer_ms": 1.0}}
    return msgpack.packb({**heading, "actions": array})


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (reply_with({"session": "e" * 32}), "another request"),
        (reply_with({"sequence": 0}), "another request"),
        (reply_with({"sequence": True}), "another request"),
        (reply_with({"sequence": ...}), "another request"),
        (reply_with({"session": np.zeros(3)}), "another request"),
        (reply_with({"actions": ...}), "actions of"),
        (reply_with({"actions": np.zeros((4, 2), np.float32)}), "actions of"),
        (reply_with({"actions": np.zeros((3, 2))}), "actions of"),
        (reply_with({"actions": [[0.0, 0.0]] * 3}), "actions of"),
        (reply_with({"server_timing": ...}), "server_timing"),
        (reply_with({"error": "no map"}), "error"),
        (reply_with({"error": {"kind": "odd", "what": "", "got": "", "expected": "", "fix": ""}}), "error.kind"),
        (reply_with({}, raw=reply_with_nan()), "not finite"),
        (reply_with({}, raw=b"\xc1"), "answered wrongly"),
        (reply_with({}, raw="an error as text"), "says: an error as text"),
    ],
)
def test_invalid_reply_ends_the_session(behave, message):
    with broken_server(behave) as url, RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        with pytest.raises(ConnectionLost, match=message):
            policy.decide(toy_observation())
        assert not policy.is_connected


def test_late_reply_is_discarded():
    release = threading.Event()

    def behave(connection):
        with contextlib.suppress(Exception):
            reply_with()(connection)
            request = decode(connection.recv())
            release.wait(WAIT)
            reply = {"session": request["session"], "sequence": request["sequence"], "server_timing": {"infer_ms": 1.0}}
            connection.send(encode({**reply, "actions": np.ones((3, 2), np.float32)}))

    with broken_server(behave) as url, RemotePolicy(url, TOKEN, 0.1) as policy:
        policy.reset("go")
        with pytest.raises(DeadlineMissed):
            policy.decide(toy_observation())
        release.set()
        time.sleep(0.1)
        with pytest.raises(ConnectionLost, match="reconnect"):
            policy.decide(toy_observation())


def test_server_that_stops_reading_does_not_block_the_client():
    contract = toy_contract()
    stall = threading.Event()

    def serve_one(listener):
        line, _ = listener.accept()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b""
        while b"\r\n\r\n" not in request:
            request += line.recv(4096)
        key = next(
            row.split(b": ")[1] for row in request.split(b"\r\n") if row.lower().startswith(b"sec-websocket-key")
        )
        rows = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        line.sendall("\r\n".join([*rows, f"Sec-WebSocket-Accept: {accept_key(key.decode())}", "", ""]).encode())
        for message in (
            encode(protocol.greeting(contract, "toy", SESSION, 1000)),
            encode({"session": SESSION, "sequence": 0, "server_timing": {"infer_ms": 1.0}}),
        ):
            line.sendall(b"\x82\x7e" + len(message).to_bytes(2, "big") + message)
        stall.wait(WAIT)
        line.close()

    contract = replace(contract, cameras=tuple(replace(each, height=2000, width=1500) for each in contract.cameras))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one, args=(listener,), daemon=True)
        thread.start()
        policy = RemotePolicy(f"ws://127.0.0.1:{listener.getsockname()[1]}", TOKEN, 0.5)
        policy.reset("go")
        image = np.zeros((2000, 1500, 3), np.uint8)
        started = time.monotonic()
        with pytest.raises(DeadlineMissed):
            policy.decide({"pixels": {"front": image, "wrist": image}, "agent_pos": np.zeros(2, np.float32)})
        assert time.monotonic() - started < 10 and not policy.is_connected
        stall.set()


@pytest.mark.parametrize(
    "greeting",
    [
        {"hello": "openpi"},
        {"protocol": "saccade/2"},
        {"protocol": np.zeros(3)},
        {"protocol": "saccade/1", "session": 3, "policy": "x", "contract": "{}"},
        {"protocol": "saccade/1", "session": "s", "policy": "x", "contract": "{}"},
        {},
    ],
)
def test_invalid_greeting_is_refused(greeting):
    def handle(connection):
        connection.send(encode(greeting))

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(InputError):
                RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", TOKEN)
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "message", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\xff" * 50, b""]
)
def test_server_that_speaks_no_websocket_is_refused(message):
    def serve_one(listener):
        line, _ = listener.accept()
        line.recv(4096)
        line.sendall(message)
        line.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve_one, args=(listener,), daemon=True).start()
        with pytest.raises(InputError, match="protocol of ws"):
            RemotePolicy(f"ws://127.0.0.1:{listener.getsockname()[1]}", TOKEN)


def test_silent_and_absent_servers_are_reported():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DeadlineMissed, match="no answer"):
            RemotePolicy(url, TOKEN, connect_timeout=0.2)
    with pytest.raises(ConnectionLost, match="start `saccade serve`"):
        RemotePolicy(url, TOKEN)
