import asyncio
import http.client
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

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
from saccade.robot.remote.worker_thread import WorkerThread
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


def dial(url, token=TOKEN, **options):
    """Return a bare websocket connection and the greeting."""
    options = {"additional_headers": protocol.authorization(token), "proxy": None, "compression": None, **options}
    connection = connect(url, **options)
    return connection, decode(connection.recv(WAIT))


def ask(connection, message):
    connection.send(encode(message))
    frame = connection.recv(WAIT)
    return frame if isinstance(frame, str) else decode(frame)


def heading(greeting, sequence, **fields):
    return {"session": greeting["session"], "sequence": sequence, "deadline": 5.0, **fields}


def until(condition):
    ends = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_it_greets_with_protocol_session_and_contract(url, chunk_policy):
    connection, greeting = dial(url)
    with connection:
        assert greeting["protocol"] == "saccade/1" and greeting["policy"] == "toy"
        assert Contract.from_json(greeting["contract"]) == chunk_policy.contract
    until(lambda: not _busy(url))
    connection, second = dial(url)
    connection.close()
    assert second["session"] != greeting["session"]


def _busy(url):
    try:
        connection, _ = dial(url)
    except ConnectionClosed:
        return True
    connection.close()
    return False


def test_replies_name_what_they_answer_and_how_long_it_took(url, chunk_policy):
    connection, greeting = dial(url)
    with connection:
        reset = ask(connection, heading(greeting, 0, request="reset", instruction="go"))
        assert (reset["session"], reset["sequence"]) == (greeting["session"], 0) and "actions" not in reset
        observation = toy_observation()
        reply = ask(connection, heading(greeting, 5, request="decide", **observation))
        assert (reply["session"], reply["sequence"]) == (greeting["session"], 5)
        np.testing.assert_array_equal(reply["actions"], expected_actions(observation, chunk_policy.contract))
        timing = reply["server_timing"]
        assert 0 <= timing["infer_ms"] <= timing["total_ms"]
    assert chunk_policy.instructions == ["go"]
    assert chunk_policy.threads == {"policy"}


@pytest.mark.parametrize("token", ["", "a-token-for-tests-onlY", "another-token-altogether"])
def test_nobody_gets_in_without_the_token(url, token):
    headers = protocol.authorization(token) if token else {}
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=headers, proxy=None)
    assert refused.value.response.status_code == 401
    assert b"Api-Key" in refused.value.response.body and TOKEN.encode() not in refused.value.response.body


def test_two_tokens_are_none(url):
    headers = [("Authorization", f"Api-Key {TOKEN}"), ("Authorization", "Api-Key other")]
    with pytest.raises(InvalidStatus):
        connect(url, additional_headers=headers, proxy=None)


def test_browsers_are_refused_even_with_the_token(url):
    with pytest.raises(InvalidStatus) as refused:
        dial(url, origin="http://127.0.0.1")
    assert refused.value.response.status_code == 403


def test_health_needs_no_token_and_everything_else_does(url):
    parts = urllib.parse.urlsplit(url)
    for path, status in (("/healthz", 200), ("/", 401), ("/healthz/x", 401)):
        asked = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT)
        asked.request("GET", path)
        answer = asked.getresponse()
        assert answer.status == status and (answer.read() == b"OK\n") == (status == 200)


def test_a_second_client_is_told_why_and_the_first_goes_on(url):
    first, greeting = dial(url)
    with first:
        with pytest.raises(ConnectionClosed) as closed:
            dial(url)
        assert (
            closed.value.rcvd.code == protocol.BUSY_CLOSE_CODE
            and "another client is in control" in closed.value.rcvd.reason
        )
        assert "error" not in ask(first, heading(greeting, 0, request="reset", instruction="go"))


def test_the_server_answers_while_the_policy_thinks_and_forgets_a_client_that_left(url, chunk_policy):
    chunk_policy.gate.clear()
    connection, greeting = dial(url)
    ask(connection, heading(greeting, 0, request="reset", instruction="go"))
    connection.send(encode(heading(greeting, 1, request="decide", **toy_observation())))
    assert chunk_policy.entered.wait(WAIT)
    # Pings are answered and others are served while the policy is busy.
    assert connection.ping().wait(WAIT)
    assert _busy(url)
    connection.close()
    # The decision still runs; whoever comes next gets in all the same, and an answer after it.
    until(lambda: not _busy(url))
    connection, greeting = dial(url)
    with connection:
        chunk_policy.gate.set()
        reply = ask(connection, heading(greeting, 0, request="reset", instruction="stay"))
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
def test_a_request_that_does_not_fit_is_named_and_the_session_goes_on(url, chunk_policy, changes, what):
    connection, greeting = dial(url)
    with connection:
        ask(connection, heading(greeting, 0, request="reset", instruction="go"))
        request = heading(greeting, 1, request="decide", **toy_observation())
        error = ask(connection, {**request, **changes})["error"]
        assert error["kind"] == "input" and error["what"].startswith(what)
        assert all(error[key] for key in ("got", "expected", "fix"))
        assert "actions" in ask(connection, request)


@pytest.mark.parametrize("instruction", ["", "  ", 3, "x" * 2001])
def test_an_instruction_has_to_be_one(url, instruction):
    connection, greeting = dial(url)
    with connection:
        error = ask(connection, heading(greeting, 0, request="reset", instruction=instruction))["error"]
        assert error["what"] == "instruction"
        error = ask(connection, heading(greeting, 1, request="decide", **toy_observation()))["error"]
        assert error["what"] == "instruction" and "reset" in error["fix"]


@pytest.mark.parametrize(("changes", "what"), [({"session": "0" * 32}, "session"), ({"sequence": 4}, "sequence")])
def test_another_session_or_an_old_sequence_ends_it(url, chunk_policy, changes, what):
    connection, greeting = dial(url)
    ask(connection, heading(greeting, 4, request="reset", instruction="go"))
    said = ask(connection, {**heading(greeting, 5, request="decide", **toy_observation()), **changes})
    assert said.startswith(what)
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
def test_what_is_no_message_ends_the_session_with_a_reason(url, frame, code):
    connection, _ = dial(url)
    connection.send(frame)
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.recv(WAIT)
    assert closed.value.rcvd.code == code and closed.value.rcvd.reason


def test_a_message_over_the_limit_is_refused_before_it_is_read(chunk_policy):
    with serve_in_background(chunk_policy, ServerSettings(token=TOKEN, limits=MessageLimits(message=2000))) as url:
        connection, _ = dial(url)
        connection.send(b"\x00" * 3000)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(WAIT)
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    "fails", [ZeroDivisionError("secret"), np.full((3, 2), np.nan, np.float32), np.zeros((2, 2)), None]
)
def test_a_failure_of_the_policy_tells_nothing_about_the_inside(url, chunk_policy, fails, caplog):
    connection, greeting = dial(url)
    ask(connection, heading(greeting, 0, request="reset", instruction="go"))
    if isinstance(fails, Exception):
        chunk_policy.failure = fails
    else:
        chunk_policy.answer = fails if fails is not None else "no array"
    reply = ask(connection, heading(greeting, 1, request="decide", **toy_observation()))
    assert reply["sequence"] == 1 and reply["error"]["kind"] == "failed"
    assert "secret" not in str(reply) and "Traceback" not in str(reply)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(WAIT)
    assert closed.value.rcvd.code == 1011
    assert "Traceback" in caplog.text
    # The next session is none the worse.
    chunk_policy.failure = chunk_policy.answer = None
    until(lambda: not _busy(url))
    with RemotePolicy(url, TOKEN, WAIT) as policy:
        policy.reset("go")
        assert policy.decide(toy_observation()).shape == (3, 2)


def test_an_answer_after_the_deadline_is_not_sent(url, chunk_policy):
    chunk_policy.gate.clear()
    connection, greeting = dial(url)
    ask(connection, heading(greeting, 0, request="reset", instruction="go"))
    connection.send(encode({**heading(greeting, 1, request="decide", **toy_observation()), "deadline": 0.05}))
    assert chunk_policy.entered.wait(WAIT)
    time.sleep(0.1)
    chunk_policy.gate.set()
    reply = decode(connection.recv(WAIT))
    assert reply["error"]["kind"] == "late" and "actions" not in reply


def test_a_client_that_answers_no_ping_gives_up_control(url):
    parts = urllib.parse.urlsplit(url)
    # A peer whose machine has lost its power: it has shaken hands and says nothing any more, not even goodbye.
    with socket.create_connection((parts.hostname, parts.port)) as half_open:
        lines = ("GET / HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade")
        lines += ("Sec-WebSocket-Key: VpdMwkj0tF+gFKQXqSwv4Q==", "Sec-WebSocket-Version: 13")
        half_open.sendall("\r\n".join([*lines, f"Authorization: Api-Key {TOKEN}", "", ""]).encode())
        assert half_open.recv(12) == b"HTTP/1.1 101"
        assert _busy(url)
        until(lambda: not _busy(url))


def test_a_foreign_protocol_is_turned_away_and_the_server_lives(url):
    parts = urllib.parse.urlsplit(url)
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-x\r\n\r\n", b"\xff" * 2000):
        with socket.create_connection((parts.hostname, parts.port)) as line:
            line.settimeout(WAIT)
            line.sendall(noise)
            line.shutdown(socket.SHUT_WR)
            while line.recv(4096):
                pass
    assert not _busy(url)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"token": "short"}, "token"),
        ({"token": "a token with spaces in it"}, "token"),
        ({"port": 70000}, "port"),
        ({"host": "0.0.0.0"}, "host 0.0.0.0"),
        ({"host": "example.org"}, "host example.org"),
        ({"host": "::"}, "host ::"),
        ({"certificate": Path("x.pem")}, "key"),
        ({"key": Path("x.key")}, "certificate"),
        ({"ping_seconds": 0.0}, "ping_seconds"),
    ],
)
def test_invalid_settings_are_refused(changes, what):
    with pytest.raises(InputError) as refused:
        ServerSettings(**{"token": TOKEN, **changes})
    assert refused.value.what.startswith(what)
    assert TOKEN not in repr(ServerSettings(token=TOKEN))


def test_a_port_in_use_and_a_foreign_address_are_named(url, chunk_policy):
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key, made by OpenSSL's command."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "server.pem", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=saccade test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command to make a certificate with")
    return paths


def test_with_a_certificate_it_speaks_tls_alone(certificate, chunk_policy):
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


def test_certificates_that_do_not_fit_are_named(certificate, tmp_path):
    pem, key = certificate
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    for changes, said in (
        ({"certificate": tmp_path / "gone.pem", "key": key}, "no file"),
        ({"certificate": noise, "key": key}, "certificate: got"),
        ({"certificate": pem, "key": noise}, "certificate: got"),
    ):
        with pytest.raises(InputError, match=said):
            ServerSettings(token=TOKEN, **changes).context()


def test_a_worker_works_in_order_and_passes_errors_on():
    async def main():
        worker, done = WorkerThread("one"), []
        first = worker.submit(lambda: done.append(1))
        broken = worker.submit(lambda: 1 / 0)
        dropped = worker.submit(lambda: done.append(2))
        dropped.cancel()
        last = worker.submit(lambda: threading.current_thread().name)
        await first
        with pytest.raises(ZeroDivisionError):
            await broken
        assert await last == "one"
        worker.close(WAIT)
        return done

    assert asyncio.run(main())[:1] == [1]
