"""Options of `saccade run`: refusals, robots and cameras built from them, episodes, and the summary."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import STARTER_FOLDER, read_contract
from saccade.scripts.main import main
from saccade.scripts.run.arms import camera_configs, desk_starts, robot_config
from saccade.scripts.run.command import TimeScaledPolicy
from saccade.scripts.run.options import RunConfig
from saccade_testing.nod_policy import NodPolicy
from saccade_testing.toy_policy import TOKEN

CAMERAS = ("front=opencv:0", "wrist=opencv:2")
PHYSICAL = ("--robot", "so101", "--robot-id", "a", "--instruction", "go")


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        (["--ramp-share", "0"], "ramp_share: got 0.0"),
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
def test_invalid_options_are_refused_in_one_line_without_files(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SACCADE_TOKEN", raising=False)
    Path("token").write_text(TOKEN)
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"saccade: error: {message}")
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_missing_server_is_a_world_error_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SACCADE_TOKEN", TOKEN)
    assert main(["run", "--policy", "ws://127.0.0.1:1", "--out", str(tmp_path / "out")]) == 3
    assert "no policy server at ws://127.0.0.1:1" in capsys.readouterr().err


def test_non_empty_folders_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert main(["run", "--record", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert (tmp_path / "file").read_text() == "mine"
    assert "Choose another" in capsys.readouterr().err


def test_live_view_without_rerun_names_the_extra_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["run", "--live", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'lerobot_policy_saccade[rerun]'" in capsys.readouterr().err


def test_robot_options_build_any_lerobot_robot():
    options = ("left_arm_config.port=/dev/ttyACM0", "right_arm_config.port=/dev/ttyACM1")
    fields = {"instruction": "go", "cameras": CAMERAS, "robot_id": "pair"}
    robot = robot_config(RunConfig(robot="bi-so101", robot_options=options, **fields))
    assert (robot.type, robot.id) == ("bi_so_follower", "pair")
    assert (robot.left_arm_config.port, robot.right_arm_config.port) == ("/dev/ttyACM0", "/dev/ttyACM1")
    with pytest.raises(InputError, match=r"robot: got 'so102'.*so101"):
        robot_config(RunConfig(robot="so102", **fields))
    with pytest.raises(InputError, match="zort"):
        robot_config(RunConfig(robot="so101", port="/dev/null", robot_options=("zort=1",), **fields))
    single = robot_config(RunConfig(robot="so101", port="/dev/null", robot_options=("use_degrees=false",), **fields))
    assert single.use_degrees is False


def test_cameras_default_to_the_image_size_of_the_contract():
    specs = read_contract(STARTER_FOLDER).cameras
    cameras = camera_configs(("front=opencv:0", "wrist=opencv:/dev/video2,fps=60,width=640,height=480"), specs)
    assert (cameras["front"].index_or_path, cameras["front"].width, cameras["front"].fps) == (0, 128, 30)
    assert (str(cameras["wrist"].index_or_path), cameras["wrist"].width) == ("/dev/video2", 640)
    with pytest.raises(InputError, match="two of that name"):
        camera_configs(("front=opencv:0", "front=opencv:1"), specs)
    with pytest.raises(InputError, match="camera front"):
        camera_configs(("front=opencv:0,zort=1", "wrist=opencv:1"), specs)


def test_virtual_arm_episodes_match_those_of_an_evaluation():
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
def test_slowed_policy_gives_no_step_beyond_the_age_limit(speed):
    chunk_policy = TimeScaledPolicy(NodPolicy(), speed)
    contract = chunk_policy.contract
    observation = {"agent_pos": np.zeros(6, dtype=np.float32)}
    assert contract.control_hz == pytest.approx(30 * speed)
    assert chunk_policy.decide(observation).shape == (contract.chunk, 6)
    assert contract.chunk / contract.control_hz <= 0.55
    assert 1 <= contract.execute < contract.chunk


def test_run_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().speed = 0.5


def test_every_episode_counts_except_an_interrupted_one():
    from saccade.robot.session.summary import EpisodeSummary
    from saccade.scripts.run.log import RunLog, summarize, summary_lines

    def summarize_run(ended, *episodes):
        log = RunLog(NodPolicy(), lambda number: {}, lambda: None, dry_run=False)
        for index, (by, outcome) in enumerate(episodes):
            log.on_episode_end(EpisodeSummary(index, "go", by, 1.0, 3, outcome))
        return summarize(log, None, facts={}, ended=ended, counts_success=True)

    done = ("condition", {"success": True, "seconds": 1.0})
    stopped = ("stopped: overruns", None)
    summary = summarize_run("done", done, stopped, done)
    assert (summary["success"]["successes"], summary["success"]["episodes"]) == (2, 3)
    assert "success: 66.7 % (2 of 3, 95 % interval 20.8 to 93.9)" in summary_lines(summary, None)
    interrupted = summarize_run("interrupted", done, stopped)
    assert interrupted["success"]["episodes"] == 1
    assert "ended: interrupted" in summary_lines(interrupted, None)
