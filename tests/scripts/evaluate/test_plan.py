"""The steps of `saccade eval`: a plan that costs nothing heavy, its description, and the summary of a run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.scripts.evaluate.comparison import distinct_labels
from saccade.scripts.evaluate.execution import summarize_run
from saccade.scripts.evaluate.options import EvaluateConfig
from saccade.scripts.evaluate.plan import plan_evaluation
from saccade.sim.evaluation.episode import run_episode
from saccade.sim.evaluation.records import RecordFile, error_record
from saccade.sim.evaluation.run_folder import prepare_run_folder
from saccade.sim.perturbation.job import Job
from saccade_testing.fake_world import FakeActor, FakeEnv

ONE_TASK = {"suites": ("desk_object",), "tasks": ("red_cube",), "episodes": 2}


class DescribedWorld:
    """A world of which only the protocol is asked."""

    def describe(self):
        return {"max_steps": 9}


def test_a_plan_holds_what_is_run_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from saccade.scripts.evaluate.options import EvaluateConfig\n"
        "from saccade.scripts.evaluate.plan import plan_evaluation\n"
        "plan = plan_evaluation(EvaluateConfig(suites=('desk_object',), tasks=('red_cube',), episodes=2))\n"
        "print(plan.name, len(plan.jobs), plan.cluster, plan.batch_size, plan.contract.execute > 0)\n"
        "print({'torch', 'mujoco', 'av', 'jinja2', 'lerobot'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["starter 2 None None True", "set()"]


def test_a_plan_takes_given_jobs_and_folders(tmp_path):
    jobs = [Job("desk_object", "red_cube", 7, 1)]
    plan = plan_evaluation(EvaluateConfig(**ONE_TASK, out=tmp_path / "out", batch=4), jobs)
    assert (plan.jobs, plan.out, plan.batch_size) == (tuple(jobs), tmp_path / "out", 4)
    unnamed = plan_evaluation(EvaluateConfig(**ONE_TASK))
    assert unnamed.out.parent == Path("evaluations") and unnamed.out.name.startswith("starter-")
    assert not (tmp_path / "out").exists() and not unnamed.out.exists()


def test_on_a_cluster_every_episode_has_its_own_policy():
    plan = plan_evaluation(EvaluateConfig(**ONE_TASK, cluster="local", device="cuda"))
    assert plan.cluster is not None and plan.cluster.gpu and plan.batch_size is None
    with pytest.raises(InputError, match="cluster: got 'nowhere'"):
        plan_evaluation(EvaluateConfig(**ONE_TASK, cluster="nowhere"))


def test_the_description_names_checkpoint_protocol_and_tasks():
    config = EvaluateConfig(**ONE_TASK, perturb=("camera=1",), swap=("object",), label="mine", kernels="torch")
    run = plan_evaluation(config).describe(DescribedWorld())
    assert list(run) == [
        *("label", "command", "started", "checkpoint", "protocol", "contract", "provenance", "tasks", "planned")
    ]
    assert run["label"] == "mine" and run["checkpoint"]["name"] == "starter" and run["checkpoint"]["digest"]
    assert (run["tasks"], run["planned"]) == ([("desk_object", "red_cube")], 6)
    protocol = run["protocol"]
    assert protocol.pop("perturbation_sha256")
    assert protocol == {
        "seed": 0,
        "instruction_from": "task",
        "device": "cpu",
        "precision": "fp32",
        "kernels": "torch",
        "perturb": ["camera=1"],
        "swap": ["object"],
        "unchanged": True,
        "max_steps": 9,
    }
    plain = plan_evaluation(EvaluateConfig(**ONE_TASK)).describe(DescribedWorld())["protocol"]
    assert set(plain) == {"seed", "instruction_from", "device", "precision", "max_steps"}


def test_the_summary_counts_all_episodes_of_a_run_folder(tmp_path):
    out = tmp_path / "run"
    run = {
        "label": "mine",
        "command": "saccade eval",
        "started": "2026-01-02T03:04:05+00:00",
        "checkpoint": {"name": "starter", "digest": "abc"},
        "protocol": {"seed": 0},
        "contract": {},
        "provenance": {},
        "tasks": [["fake", "reach"]],
        "planned": 3,
    }
    prepare_run_folder(out, run, {"cores": 2}, resume=False, overwrite=False)
    with pytest.raises(InputError, match="no episodes"):
        summarize_run(out)
    file = RecordFile(out / "records.jsonl")
    for state in range(2):
        file.append(run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", state, state)))
    file.append(error_record(Job("fake", "reach", 2, 2), "RuntimeError: lost", 2))
    (out / "report.html").unlink(missing_ok=True)
    results = summarize_run(out)
    assert (results["rate"], results["successes"], results["episodes"], results["errors"]) == (0.5, 1, 2, 1)
    assert (results["label"], results["robustness"], results["swaps"]) == ("mine", None, [])
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "report.html").stat().st_size > 0


def test_labels_of_compared_checkpoints_are_different():
    assert distinct_labels(["runs/a/checkpoint", "runs/b/checkpoint"]) == ["a-checkpoint", "b-checkpoint"]
    assert distinct_labels(["starter", "runs/a"]) == ["starter", "a"]
    with pytest.raises(InputError, match="Give every checkpoint once"):
        distinct_labels(["runs/a", "runs/../runs/a"])
