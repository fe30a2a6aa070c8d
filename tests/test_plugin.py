"""Saccade as a plugin of LeRobot's commands: train, resume and evaluate at a small scale."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saccade
from saccade.policy.checkpoint.folder import read_checkpoint
from saccade.policy.loading import load_policy

ROOT = Path(saccade.__file__).parent

# Run all commands in one process, as LeRobot takes ten seconds to import; and in the root of the repository, where the
# folder `kernels` must not shadow the library.
COMMANDS = """
import json, sys
import lerobot.scripts.lerobot_eval as evaluation, lerobot.scripts.lerobot_train as training
mains = {"lerobot-train": training.main, "lerobot-eval": evaluation.main}
for command in json.loads(sys.argv[1]):
    sys.argv = command
    mains[command[0]]()
"""


def run(*commands: list[str]) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    return output


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    from saccade.scripts.collect import CollectConfig
    from saccade.scripts.collect import run as collect

    folder = tmp_path_factory.mktemp("collected") / "red"
    options = {"suites": ("desk_object",), "tasks": ("red_cube",), "image_size": 32, "workers": 1}
    assert collect(CollectConfig(out=folder, episodes=2, **options)) == 0
    return folder


def test_distribution_has_the_plugin_name():
    names = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    assert "lerobot_policy_saccade" in names


def test_lerobot_trains_resumes_and_evaluates(demonstrations, tmp_path):
    out = tmp_path / "run"
    train = [
        "lerobot-train",
        "--policy.type=saccade",
        "--policy.device=cpu",
        "--policy.architecture.trunk_layers=2",
        "--policy.architecture.expert_blocks=2",
        "--policy.n_action_steps=16",
        "--dataset.repo_id=local/red",
        f"--dataset.root={demonstrations}",
        f"--output_dir={out}",
        "--steps=2",
        "--save_freq=1",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
    ]
    first = out / "checkpoints" / "000001" / "pretrained_model"
    second = out / "checkpoints" / "000002" / "pretrained_model"
    # Step 2 runs twice: a resumed training gives the loss of an uninterrupted one.
    resume = ["lerobot-train", "--resume=true", f"--config_path={first / 'train_config.json'}"]
    evaluate = [
        "lerobot-eval",
        f"--policy.path={second}",
        "--policy.device=cpu",
        "--env.type=saccade_desk",
        "--env.task=desk_object",
        "--env.tasks=[red_cube]",
        "--env.image_size=32",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'evaluation'}",
    ]
    output = run(train, resume, evaluate)
    losses = [line.split("loss:")[1].split()[0] for line in output.splitlines() if "step:2 " in line]
    assert len(losses) == 2 and losses[0] == losses[1]
    assert "grounding_loss:" in output

    checkpoint = read_checkpoint(second)
    assert checkpoint.config["type"] == "saccade" and checkpoint.config["architecture"]["trunk_layers"] == 2
    assert checkpoint.contract.execute == 16
    assert checkpoint.provenance["dataset_fingerprint"]
    assert load_policy(second).architecture.trunk_layers == 2

    results = json.loads((tmp_path / "evaluation" / "eval_info.json").read_text())
    assert results["overall"]["n_episodes"] == 1
    assert Path(results["overall"]["video_paths"][0]).stat().st_size > 0
