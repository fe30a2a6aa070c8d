"""`saccade serve`: the starter in its process, tokens, refusals, GPU and round trip."""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import STARTER_FOLDER
from saccade.policy.inference.actor import PolicyActor
from saccade.robot.remote.client import ConnectionLost, RemotePolicy
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade.scripts.bench.arm.round_trip import measure_round_trip
from saccade.scripts.checkpoints.checkpoint_policy import CheckpointPolicy, blank_observation, warm_up
from saccade.scripts.main import main
from saccade.scripts.serve import ServeConfig, find_token

TOKEN = "a-token-for-tests-only"
WAIT = 120.0


@contextlib.contextmanager
def served(*arguments, environment=None):
    """Run `saccade serve --port 0 ...`; yield the process, its output until it is ready, and the address."""
    command = [sys.executable, "-m", "saccade.scripts.main", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killer = threading.Timer(WAIT, process.kill)
    killer.start()
    try:
        printed = ""
        while "saccade run" not in printed:
            line = process.stdout.readline()
            assert line, f"{printed}\n{process.stderr.read()}"
            printed += line
        yield process, printed, re.search(r"ready: (\S+)", printed)[1]
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


def test_served_starter_matches_the_local_policy_and_ends_on_sigterm():
    with served("starter", environment={"SACCADE_TOKEN": TOKEN}) as (process, printed, url):
        assert f"saccade run --policy {url}" in printed and TOKEN not in printed
        actor = PolicyActor(STARTER_FOLDER)
        observation = blank_observation(actor.contract)
        observation["pixels"]["front"][40:80, 40:80] = (200, 30, 30)
        with RemotePolicy(url, TOKEN, WAIT, reset_timeout=WAIT) as policy:
            assert policy.contract == actor.contract and policy.policy == "starter"
            for instruction in ("put the red cube in the bin", "put the green cube in the bin"):
                policy.reset(instruction)
                actor.reset(instruction, seed=0)
                np.testing.assert_allclose(policy.decide(observation), actor.decide(observation), atol=1e-3)
            with pytest.raises(InputError, match="camera wrist"):
                policy.decide({**observation, "pixels": {"front": observation["pixels"]["front"]}})
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=WAIT)
            assert process.returncode == 0 and out.endswith("stopped\n") and "Traceback" not in err
            assert TOKEN not in out + err
            with pytest.raises(ConnectionLost):
                policy.decide(observation)


@pytest.mark.slow
def test_missing_token_is_generated_and_printed():
    environment = {name: value for name, value in os.environ.items() if name != "SACCADE_TOKEN"}
    with served("starter", environment=environment) as (process, printed, url):
        token = re.search(r"token, made for this run: (\S+)", printed)[1]
        with RemotePolicy(url, token, WAIT) as policy:
            policy.reset("go")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT)
        assert process.returncode == 0


@pytest.fixture
def files(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "weak").write_text("1234\n")
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    (tmp_path / "noise.pem").write_text("no certificate")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_folder"], "checkpoint: got 'no_such_folder'"),
        (["--threads", "0"], "--threads: got 0"),
        (["--port", "70000"], "port: got 70000"),
        (["--host", "0.0.0.0"], "host 0.0.0.0: got no certificate"),
        (
            ["--host", "no-such-host.invalid", "--certificate", "noise.pem", "--key", "noise.pem"],
            "certificate: got noise.pem",
        ),
        (["--certificate", "gone.pem", "--key", "gone.key"], "certificate: got no file gone.pem"),
        (["--certificate", "gone.pem"], "key: got nothing"),
        (["--token-file", "gone"], "token file: got gone"),
        (["--token-file", "weak"], "token of weak: got 4 characters"),
        (["--token-file", "bytes"], "token file: got bytes"),
    ],
)
def test_invalid_input_is_refused_in_one_line_before_loading(arguments, message, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setenv("SACCADE_TOKEN", TOKEN)
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"saccade: error: {message}") and captured.err.count("\n") == 1 and not captured.out


def test_port_in_use_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("SACCADE_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"saccade: error: port: got {port}, in use, expected a free port.")


def test_token_comes_from_file_then_environment_then_chance(files, monkeypatch):
    monkeypatch.setenv("SACCADE_TOKEN", "another-token-altogether")
    assert find_token(ServeConfig(token_file=files / "token")) == (TOKEN, False)
    assert find_token(ServeConfig()) == ("another-token-altogether", False)
    monkeypatch.setenv("SACCADE_TOKEN", "weak")
    with pytest.raises(InputError, match="token of SACCADE_TOKEN"):
        find_token(ServeConfig())
    monkeypatch.delenv("SACCADE_TOKEN")
    (one, generated), (other, _) = find_token(ServeConfig()), find_token(ServeConfig())
    assert generated and one != other and len(one) >= 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to decide on")
def test_missing_device_is_refused():
    with pytest.raises(InputError, match="device: got cuda"):
        CheckpointPolicy(STARTER_FOLDER, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_served_gpu_policy_matches_the_local_policy():
    actor, chunk_policy = PolicyActor(STARTER_FOLDER), CheckpointPolicy(STARTER_FOLDER, device="cuda")
    warm_up(chunk_policy)
    observation = blank_observation(actor.contract)
    with (
        serve_in_background(chunk_policy, ServerSettings(token=TOKEN)) as url,
        RemotePolicy(url, TOKEN, WAIT) as policy,
    ):
        for instruction in ("put the red cube in the bin", "put the green cube in the bin"):
            policy.reset(instruction)
            actor.reset(instruction, seed=0)
            np.testing.assert_allclose(policy.decide(observation), actor.decide(observation), atol=0.1)


def test_round_trip_metrics():
    chunk_policy = CheckpointPolicy(STARTER_FOLDER)
    assert warm_up(chunk_policy, 2) > 0
    metrics = measure_round_trip(chunk_policy, 20)
    assert metrics.decisions == 20
    assert 0 < metrics.inference_p50_ms < metrics.round_trip_p50_ms <= metrics.round_trip_p99_ms
    assert all(value > 0 for value in dataclasses.astuple(metrics))
    with pytest.raises(InputError, match="decisions"):
        measure_round_trip(chunk_policy, 0)
