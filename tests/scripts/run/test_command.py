"""`saccade run` as a command: on the virtual arm, on its port as if it were a physical arm, and with bad input."""

from __future__ import annotations

import dataclasses
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

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import STARTER_FOLDER, read_contract
from saccade.robot.governor.recorder import replay_flight_record
from saccade.robot.remote.server_settings import ServerSettings
from saccade.robot.remote.serving import serve_in_background
from saccade.scripts.main import main
from saccade.scripts.run import command
from saccade.scripts.run.arms import camera_configs, desk_starts, robot_config
from saccade.scripts.run.command import TimeScaledPolicy
from saccade.scripts.run.options import RunConfig
from saccade.sim.virtual_arm.faults import Fault
from saccade.sim.virtual_arm.world import VirtualArm

pytestmark = pytest.mark.real_time

TOKEN = "a-token-for-tests-only"
CAMERAS = ("front=opencv:0", "wrist=opencv:2")
PHYSICAL = ("--robot", "so101", "--robot-id", "a", "--instruction", "go")


class Nodder:
    """Decides at once: the gripper opens by a percent a step, the other joints stay; or abstains and says why."""

    def __init__(self, abstains: str | None = None) -> None:
        self.contract = read_contract(STARTER_FOLDER)
        self.abstained, self.skill = abstains, None
        self.instructions: list[str] = []

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def decide(self, observation) -> np.ndarray:
        chunk = np.repeat(observation["agent_pos"][None], self.contract.chunk, axis=0)
        if self.abstained is None:
            chunk[:, 5] = np.minimum(chunk[:, 5] + np.arange(1, len(chunk) + 1), 90.0)
        return chunk


@pytest.fixture
def nodder(monkeypatch):
    """The policy of every checkpoint."""
    nodder = Nodder()
    monkeypatch.setattr(command, "_checkpoint", lambda config: nodder)
    # Other processes of the machine must not wait for the tests.
    monkeypatch.setattr(command, "_raise_priority", lambda: None)
    # A busy machine makes ticks late, which is tested elsewhere.
    monkeypatch.setattr(command, "OVERRUN_SHARE", 1.0)
    monkeypatch.setattr(command, "VIRTUAL_OVERRUNS", 1.0)
    return nodder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# Options.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_folder"], "checkpoint: got 'no_such_folder'"),
        (["starter", "--policy", "ws://127.0.0.1:1"], "policy: got starter and ws://127.0.0.1:1"),
        (["--token-file", "token"], "token file, certificate: got no --policy"),
        (["--task", "red_cube"], "task: got 'red_cube', expected SUITE/TASK"),
        (["--task", "desk_object/red_cub"], "task of desk_object: got 'red_cub'"),
        (["--task", "desk/red_cube"], "suite: got 'desk'"),
        (["--speed", "3"], "speed: got 3.0, expected 0.25 to 1"),
        (["--share", "0"], "share: got 0.0"),
        (["--ramp-share", "2"], "ramp_share: got 2.0"),
        (["--seconds", "-1"], "seconds: got -1.0"),
        (["--episodes", "0"], "--episodes: got 0"),
        (["--threads", "0"], "--threads: got 0"),
        (["--instruction", " "], "instruction: got no words"),
        (["--keep", "successes"], "keep: got successes"),
        (["--live-file", "view.txt"], "live_file: got view.txt"),
        (["--port", "/dev/null"], "--port: got --robot virtual-so101"),
        (["--move"], "--move: got --robot virtual-so101"),
        (["--robot", "so101", "--robot-id", "a", "--cameras", *CAMERAS], "instruction: got none"),
        ([*PHYSICAL, "--port", "/dev/null"], "cameras: got none"),
        ([*PHYSICAL, "--task", "desk_object/red_cube"], "--task: got --robot so101"),
        ([*PHYSICAL, "--dry-run"], "--dry-run: got --robot so101"),
        ([*PHYSICAL, "--speed", "0.5"], "--speed: got --robot so101"),
        ([*PHYSICAL, "--port", "/dev/no_such", "--cameras", *CAMERAS], "port of so101_follower: got no such device"),
        ([*PHYSICAL, "--cameras", *CAMERAS], "port of so101_follower: got none"),
        ([*PHYSICAL, "--port", "/dev/null", "--cameras", "front=opencv:0"], "camera wrist: got only front"),
        ([*PHYSICAL, "--port", "/dev/null", "--cameras", "front"], "camera: got 'front'"),
        ([*PHYSICAL, "--port", "/dev/null", "--cameras", "front=opncv:0"], "type of camera front: got 'opncv'"),
        (["--policy", "ws://127.0.0.1:1"], "token: got none"),
        (["--policy", "http://127.0.0.1:1", "--token-file", "token"], "address of the policy: got 'http"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing_behind(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SACCADE_TOKEN", raising=False)
    Path("token").write_text(TOKEN)
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"saccade: error: {said}")
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_server_that_is_not_there_is_one_line_but_no_input_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SACCADE_TOKEN", TOKEN)
    assert main(["run", "--policy", "ws://127.0.0.1:1", "--out", str(tmp_path / "out")]) == 3
    assert "no policy server at ws://127.0.0.1:1" in capsys.readouterr().err


def test_folders_that_hold_something_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert main(["run", "--record", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert (tmp_path / "file").read_text() == "mine"
    assert "Choose another" in capsys.readouterr().err


def test_the_live_view_without_rerun_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["run", "--live", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'lerobot_policy_saccade[rerun]'" in capsys.readouterr().err


def test_any_robot_of_lerobots_by_name_with_its_fields_two_arms_among_them():
    options = ("left_arm_config.port=/dev/ttyACM0", "right_arm_config.port=/dev/ttyACM1")
    given = {"instruction": "go", "cameras": CAMERAS, "robot_id": "pair"}
    robot = robot_config(RunConfig(robot="bi-so101", robot_options=options, **given))
    assert (robot.type, robot.id) == ("bi_so_follower", "pair")
    assert (robot.left_arm_config.port, robot.right_arm_config.port) == ("/dev/ttyACM0", "/dev/ttyACM1")
    with pytest.raises(InputError, match=r"robot: got 'so102'.*so101"):
        robot_config(RunConfig(robot="so102", **given))
    with pytest.raises(InputError, match="zort"):
        robot_config(RunConfig(robot="so101", port="/dev/null", robot_options=("zort=1",), **given))
    single = robot_config(RunConfig(robot="so101", port="/dev/null", robot_options=("use_degrees=false",), **given))
    assert single.use_degrees is False


def test_cameras_get_the_policys_size_unless_told_otherwise():
    specs = read_contract(STARTER_FOLDER).cameras
    cameras = camera_configs(("front=opencv:0", "wrist=opencv:/dev/video2,fps=60,width=640,height=480"), specs)
    assert (cameras["front"].index_or_path, cameras["front"].width, cameras["front"].fps) == (0, 128, 30)
    assert (str(cameras["wrist"].index_or_path), cameras["wrist"].width) == ("/dev/video2", 640)
    with pytest.raises(InputError, match="two of that name"):
        camera_configs(("front=opencv:0", "front=opencv:1"), specs)
    with pytest.raises(InputError, match="camera front"):
        camera_configs(("front=opencv:0,zort=1", "wrist=opencv:1"), specs)


def test_the_virtual_arms_episodes_are_those_of_an_evaluation():
    from saccade.scripts.evaluate.episodes import plan_jobs
    from saccade.scripts.evaluate.options import EvaluateConfig

    starts = desk_starts(RunConfig(task=("desk_object/red_cube", "desk_spatial/left"), episodes=3, initial_state=2))
    jobs = plan_jobs(
        EvaluateConfig(
            suites=("desk_object", "desk_spatial"), tasks=("red_cube", "left"), episodes=3, first_initial_state=2
        )
    )
    assert [(each.suite, each.task, each.initial_state, each.seed) for each in starts] == [
        (job.suite, job.task, job.initial_state, job.seed) for job in jobs
    ]


@pytest.mark.parametrize("speed", [1.0, 0.5, 0.25])
def test_a_slowed_policy_gives_no_step_that_is_too_old_to_play(speed):
    chunk_policy = TimeScaledPolicy(Nodder(), speed)
    contract = chunk_policy.contract
    observation = {"agent_pos": np.zeros(6, dtype=np.float32)}
    assert contract.control_hz == pytest.approx(30 * speed)
    assert chunk_policy.decide(observation).shape == (contract.chunk, 6)
    assert contract.chunk / contract.control_hz <= 0.55
    assert 1 <= contract.execute < contract.chunk


# Runs.


@pytest.mark.slow
def test_a_run_on_the_virtual_arm_is_recorded_viewed_and_summarised(nodder, tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    arguments = ["--task", "desk_object/red_cube", "desk_spatial/left", "--seconds", "1.5", "--out", str(out)]
    assert main(["run", *arguments, "--record", str(data), "--live-file", str(tmp_path / "view.rrd")]) == 0
    summary, printed = summary_of(out), capsys.readouterr().out
    assert [(each["suite"], each["task"]) for each in summary["episodes"]] == [
        ("desk_object", "red_cube"),
        ("desk_spatial", "left"),
    ]
    # Each task's own words were said, once for the warm-up and once for the episode.
    assert nodder.instructions[1] == "put the red cube in the bin"
    assert "left of the bowl" in nodder.instructions[-1]
    assert summary["ended"] == "done"
    assert summary["figures"]["ticks"] > 20 and summary["figures"]["decision_p50_ms"] is not None
    assert "loop: " in printed and "observation to command: " in printed
    assert replay_flight_record(out / "flight.jsonl").identical
    assert (tmp_path / "view.rrd").stat().st_size > 10_000
    assert json.loads((out / "calibration" / "virtual.json").read_text())["gripper"]["id"] == 6
    # What was recorded is what the package trains on.
    assert summary["dataset"]["episodes"] == 2
    from saccade.policy.datasets.columns import read_columns

    columns = read_columns(data)
    assert "grounding" not in columns.vectors
    assert len(columns.vectors["action"]) == summary["dataset"]["frames"] > 10
    assert json.loads((data / "meta" / "offer.json").read_text())["control_hz"] == 30.0
    told = json.loads((data / "meta" / "run.json").read_text())
    assert [each["outcome"] for each in told["episodes"]] == [each["outcome"] for each in summary["episodes"]]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.building"))


@pytest.mark.slow
def test_the_reason_of_an_abstention_is_printed(nodder, tmp_path, capsys):
    nodder.abstained = "no skill knows these words"
    assert main(["run", "--seconds", "0.5", "--out", str(tmp_path / "out")]) == 0
    assert "the policy holds still: no skill knows these words" in capsys.readouterr().out
    (episode,) = summary_of(tmp_path / "out")["episodes"]
    assert episode["abstained"] == {"no skill knows these words": episode["decisions"]}


@pytest.mark.slow
def test_ctrl_c_stops_the_arm_and_the_summary_is_still_written(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "saccade.scripts.main", "run", "starter"]
    command += ["--seconds", "1", "--episodes", "50", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    patience = threading.Timer(180, process.kill)
    patience.start()
    try:
        printed = ""
        while "episode 0;" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        time.sleep(0.5)
        # As a terminal does it: the whole process group gets the signal.
        os.killpg(process.pid, signal.SIGINT)
        printed += process.communicate()[0]
    finally:
        patience.cancel()
        process.kill()
    assert process.returncode == 130, printed
    summary = summary_of(out)
    assert summary["ended"] == "interrupted"
    assert 1 <= len(summary["episodes"]) < 50
    assert "Traceback" not in printed
    assert "stopped" in (out / "flight.jsonl").read_text()


# A virtual arm's port and cameras, as a physical arm's.


@pytest.fixture(scope="module")
def world():
    with VirtualArm.start(image_size=128) as world:
        yield world


@pytest.fixture
def plugged(world, tmp_path):
    """The options of an arm that is plugged in."""
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
def test_a_physical_arm_does_not_move_unless_told_to(nodder, world, plugged, tmp_path, capsys):
    before = world.joints()
    assert main(["run", *plugged]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("dry run: the arm gets no torque") and "repeat the command with --move" in printed
    assert len(goals(world)) == 0
    np.testing.assert_allclose(world.joints(), before, atol=0.5)
    summary = summary_of(tmp_path / "out")
    assert summary["dry_run"] and summary["success"] is None
    assert summary["figures"]["chunks"] > 0
    assert main(["run", *plugged[:-1], str(tmp_path / "again"), "--move"]) == 0
    assert "dry run" not in capsys.readouterr().out
    moved = goals(world)
    assert len(moved) > 0 and moved[:, 5].max() > before[5] + 2
    assert not summary_of(tmp_path / "again")["dry_run"]


@pytest.mark.slow
def test_a_remote_policy_decides_and_only_with_its_token(nodder, world, plugged, tmp_path, monkeypatch, capsys):
    with serve_in_background(nodder, ServerSettings(token=TOKEN)) as url:
        monkeypatch.setenv("SACCADE_TOKEN", "another-token-for-tests")
        assert main(["run", "--policy", url, *plugged, "--move"]) == 2
        assert "token" in capsys.readouterr().err
        (tmp_path / "token").write_text(TOKEN)
        assert main(["run", "--policy", url, "--token-file", str(tmp_path / "token"), *plugged, "--move"]) == 0
    assert nodder.instructions[-1] == "nod"
    assert summary_of(tmp_path / "out")["policy"] == url
    assert len(goals(world)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("missing", joint="elbow_flex"), "servos of so100_follower mine: got no answer from elbow_flex"),
        (Fault("model", joint="gripper"), "servos of so100_follower mine: got gripper"),
        (Fault("homing", joint="wrist_flex"), "calibration in the servos of so100_follower mine"),
    ],
)
def test_an_arm_that_is_not_what_it_should_be_is_refused_before_torque(
    nodder, world, plugged, tmp_path, capsys, fault, said
):
    world.inject_fault(fault)
    assert main(["run", *plugged, "--move"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"saccade: error: {said}")
    assert captured.err.count("\n") == 1
    assert len(goals(world)) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["calibration", "camera", "size", "contract", "slow"])
def test_what_does_not_fit_is_refused_before_torque(nodder, world, plugged, tmp_path, capsys, case):
    arguments = [*plugged, "--move"]
    if case == "calibration":
        (tmp_path / "calibration" / "mine.json").unlink()
        said = "calibration of so100_follower mine: got none at"
    elif case == "camera":
        arguments = [each.replace("front.frames", "gone.frames") for each in arguments]
        said = "camera source: got"
    elif case == "size":
        arguments = [f"{each},width=64,height=64" if each.startswith("wrist=") else each for each in arguments]
        said = "camera wrist: got images of 64x64"
    elif case == "contract":
        arguments += ["--robot-options", "use_degrees=false"]
        said = "the policy's contract is not met"
    else:
        nodder.decide = lambda observation: time.sleep(0.4) or np.zeros((16, 6), dtype=np.float32)
        said = "policy: got a decision in "
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"saccade: error: {said}")
    assert len(goals(world)) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["path", "type"])
def test_lerobots_own_rollout_drives_the_virtual_arm_with_our_policy(world, plugged, tmp_path, policy):
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
        # A busy machine may keep the world from answering in time; LeRobot's driver then asks again.
        *("--robot.num_read_retries=20", "--task=put the red cube in the bin", "--duration=2", "--device=cpu"),
        "--return_to_initial_position=false",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = world.joints()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.abs(world.joint_trajectory().positions - before).max() > 20


def test_the_options_of_the_command_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().speed = 0.5


def test_every_episode_counts_but_an_interrupted_one():
    from saccade.robot.session.summary import EpisodeSummary
    from saccade.scripts.run.log import RunLog, summarize, summary_lines

    def told(ended, *episodes):
        log = RunLog(Nodder(), lambda number: {}, lambda: None, dry_run=False)
        for index, (by, outcome) in enumerate(episodes):
            log.on_episode_end(EpisodeSummary(index, "go", by, 1.0, 3, outcome))
        return summarize(log, None, facts={}, ended=ended, counts_success=True)

    done = ("condition", {"success": True, "seconds": 1.0})
    stopped = ("stopped: overruns", None)
    summary = told("done", done, stopped, done)
    assert (summary["success"]["successes"], summary["success"]["episodes"]) == (2, 3)
    assert "success: 66.7 % (2 of 3, 95 % interval 20.8 to 93.9)" in summary_lines(summary, None)
    interrupted = told("interrupted", done, stopped)
    assert interrupted["success"]["episodes"] == 1
    assert "ended: interrupted" in summary_lines(interrupted, None)
