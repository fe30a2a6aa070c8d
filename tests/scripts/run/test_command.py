"""`saccade run` on the virtual arm, and on the port of a virtual arm as if it were a physical one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from saccade.policy.checkpoint.folder import STARTER_FOLDER
from saccade.robot.governor.recorder import replay_flight_record
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade.scripts.main import main
from saccade.scripts.run import command
from saccade.sim.virtual_arm.faults import Fault
from saccade.sim.virtual_arm.world import VirtualArm
from saccade_testing.nod_policy import NodPolicy
from saccade_testing.toy_policy import TOKEN

pytestmark = pytest.mark.real_time


@pytest.fixture
def nod_policy(monkeypatch):
    """The policy that every checkpoint loads as."""
    nod_policy = NodPolicy()
    monkeypatch.setattr(command, "_checkpoint", lambda config: nod_policy)
    # Keep the normal priority: other processes of the machine must not wait for the tests.
    monkeypatch.setattr(command, "_raise_priority", lambda: None)
    # Allow late ticks, which are frequent on a busy machine; other tests check them.
    monkeypatch.setattr(command, "OVERRUN_SHARE", 1.0)
    monkeypatch.setattr(command, "VIRTUAL_OVERRUNS", 1.0)
    return nod_policy


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_virtual_arm_run_writes_dataset_view_and_summary(nod_policy, tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    arguments = ["--task", "desk_object/red_cube", "desk_spatial/left", "--seconds", "1.5", "--out", str(out)]
    assert main(["run", *arguments, "--record", str(data), "--live-file", str(tmp_path / "view.rrd")]) == 0
    summary, printed = summary_of(out), capsys.readouterr().out
    assert [(each["suite"], each["task"]) for each in summary["episodes"]] == [
        ("desk_object", "red_cube"),
        ("desk_spatial", "left"),
    ]
    # Each task's instruction is given twice: for the warm-up and for the episode.
    assert nod_policy.instructions[1] == "put the red cube in the bin"
    assert "left of the bowl" in nod_policy.instructions[-1]
    assert summary["ended"] == "done"
    assert summary["figures"]["ticks"] > 20 and summary["figures"]["decision_p50_ms"] is not None
    assert "loop: " in printed and "observation to command: " in printed
    assert replay_flight_record(out / "flight.jsonl").identical
    assert (tmp_path / "view.rrd").stat().st_size > 10_000
    assert json.loads((out / "calibration" / "virtual.json").read_text())["gripper"]["id"] == 6
    # Training reads the recorded dataset.
    assert summary["dataset"]["episodes"] == 2
    from saccade.policy.datasets.columns import read_columns

    columns = read_columns(data)
    assert "grounding" not in columns.vectors
    assert len(columns.vectors["action"]) == summary["dataset"]["frames"] > 10
    assert json.loads((data / "meta" / "offer.json").read_text())["control_hz"] == 30.0
    run = json.loads((data / "meta" / "run.json").read_text())
    assert [each["outcome"] for each in run["episodes"]] == [each["outcome"] for each in summary["episodes"]]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.building"))


@pytest.mark.slow
def test_reason_of_an_abstention_is_printed(nod_policy, tmp_path, capsys):
    nod_policy.abstained = "no skill matches the instruction"
    assert main(["run", "--seconds", "0.5", "--out", str(tmp_path / "out")]) == 0
    assert "the policy holds still: no skill matches the instruction" in capsys.readouterr().out
    (episode,) = summary_of(tmp_path / "out")["episodes"]
    assert episode["abstained"] == {"no skill matches the instruction": episode["decisions"]}


@pytest.mark.slow
def test_sigint_stops_the_arm_and_writes_the_summary(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "saccade.scripts.main", "run", "starter"]
    command += ["--seconds", "1", "--episodes", "50", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    killer = threading.Timer(180, process.kill)
    killer.start()
    try:
        printed = ""
        while "episode 0;" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        time.sleep(0.5)
        # A terminal sends Ctrl-C to the whole process group.
        os.killpg(process.pid, signal.SIGINT)
        printed += process.communicate()[0]
    finally:
        killer.cancel()
        process.kill()
    assert process.returncode == 130, printed
    summary = summary_of(out)
    assert summary["ended"] == "interrupted"
    assert 1 <= len(summary["episodes"]) < 50
    assert "Traceback" not in printed
    assert "stopped" in (out / "flight.jsonl").read_text()


# The port and cameras of a virtual arm, used as those of a physical arm.


@pytest.fixture(scope="module")
def world():
    with VirtualArm.start(image_size=128) as world:
        yield world


@pytest.fixture
def physical_options(world, tmp_path):
    """Options of `saccade run` for the port and cameras of the virtual arm."""
    world.clear_faults()
    world.reset()
    world.write_calibration(tmp_path / "calibration", "mine")
    cameras = [f"{name}=saccade_virtual:{camera.source}" for name, camera in world.cameras.items()]
    return [
        *("--robot", "so101", "--port", world.port, "--robot-id", "mine", "--instruction", "nod"),
        *("--calibration-dir", str(tmp_path / "calibration"), "--cameras", *cameras),
        *("--seconds", "1", "--out", str(tmp_path / "out")),
    ]


def goals(world) -> np.ndarray:
    """Return the goals [n, 6] that had torque behind them."""
    joint_trajectory = world.joint_trajectory()
    return joint_trajectory.goals[~np.isnan(joint_trajectory.goals).any(axis=1)]


@pytest.mark.slow
def test_physical_arm_moves_only_with_the_move_option(nod_policy, world, physical_options, tmp_path, capsys):
    before = world.joints()
    assert main(["run", *physical_options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("dry run: the arm gets no torque") and "repeat the command with --move" in printed
    assert len(goals(world)) == 0
    np.testing.assert_allclose(world.joints(), before, atol=0.5)
    summary = summary_of(tmp_path / "out")
    assert summary["dry_run"] and summary["success"] is None
    assert summary["figures"]["chunks"] > 0
    assert main(["run", *physical_options[:-1], str(tmp_path / "again"), "--move"]) == 0
    assert "dry run" not in capsys.readouterr().out
    moved = goals(world)
    assert len(moved) > 0 and moved[:, 5].max() > before[5] + 2
    assert not summary_of(tmp_path / "again")["dry_run"]


@pytest.mark.slow
def test_remote_policy_needs_its_token(nod_policy, world, physical_options, tmp_path, monkeypatch, capsys):
    with serve_in_background(nod_policy, ServerSettings(token=TOKEN)) as url:
        monkeypatch.setenv("SACCADE_TOKEN", "another-token-for-tests")
        assert main(["run", "--policy", url, *physical_options, "--move"]) == 2
        assert "token" in capsys.readouterr().err
        (tmp_path / "token").write_text(TOKEN)
        assert main(["run", "--policy", url, "--token-file", str(tmp_path / "token"), *physical_options, "--move"]) == 0
    assert nod_policy.instructions[-1] == "nod"
    assert summary_of(tmp_path / "out")["policy"] == url
    assert len(goals(world)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("missing", joint="elbow_flex"), "servos of so100_follower mine: got no answer from elbow_flex"),
        (Fault("model", joint="gripper"), "servos of so100_follower mine: got gripper"),
        (Fault("homing", joint="wrist_flex"), "calibration in the servos of so100_follower mine"),
    ],
)
def test_faulty_arm_is_refused_before_torque(nod_policy, world, physical_options, tmp_path, capsys, fault, message):
    world.inject_fault(fault)
    assert main(["run", *physical_options, "--move"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"saccade: error: {message}")
    assert captured.err.count("\n") == 1
    assert len(goals(world)) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["calibration", "camera", "size", "contract", "slow"])
def test_mismatched_setup_is_refused_before_torque(nod_policy, world, physical_options, tmp_path, capsys, case):
    arguments = [*physical_options, "--move"]
    if case == "calibration":
        (tmp_path / "calibration" / "mine.json").unlink()
        message = "calibration of so100_follower mine: got none at"
    elif case == "camera":
        arguments = [each.replace("front.frames", "gone.frames") for each in arguments]
        message = "camera source: got"
    elif case == "size":
        arguments = [f"{each},width=64,height=64" if each.startswith("wrist=") else each for each in arguments]
        message = "camera wrist: got images of 64x64"
    elif case == "contract":
        arguments += ["--robot-options", "use_degrees=false"]
        message = "the policy's contract is not met"
    else:
        nod_policy.decide = lambda observation: time.sleep(0.4) or np.zeros((16, 6), dtype=np.float32)
        message = "policy: got a decision in "
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"saccade: error: {message}")
    assert len(goals(world)) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["path", "type"])
def test_lerobot_rollout_drives_the_virtual_arm_with_the_starter(world, physical_options, tmp_path, policy):
    cameras = {
        name: {"type": "saccade_virtual", **{key: getattr(each, key) for key in ("width", "height", "fps", "source")}}
        for name, each in world.cameras.items()
    }
    named = [f"--policy.path={STARTER_FOLDER}"]
    if policy == "type":
        named = ["--policy.type=saccade", f"--policy.pretrained_path={STARTER_FOLDER}"]
    command = [
        *(sys.executable, "-m", "lerobot.scripts.lerobot_rollout", "--strategy.type=base", *named),
        *("--robot.type=so101_follower", f"--robot.port={world.port}", "--robot.id=mine"),
        *(f"--robot.calibration_dir={tmp_path / 'calibration'}", f"--robot.cameras={json.dumps(cameras)}"),
        # The virtual arm may answer late on a busy machine: LeRobot's driver reads again.
        *("--robot.num_read_retries=20", "--task=put the red cube in the bin", "--duration=2", "--device=cpu"),
        "--return_to_initial_position=false",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = world.joints()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.abs(world.joint_trajectory().positions - before).max() > 20
