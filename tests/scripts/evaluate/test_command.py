"""`saccade eval` and `saccade report`: what they plan, and what they refuse before anything moves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from saccade.errors import InputError
from saccade.scripts.checkpoints.find import checkpoint_folder
from saccade.scripts.evaluate.episodes import choose_tasks, plan_jobs
from saccade.scripts.evaluate.options import EvaluateConfig
from saccade.scripts.evaluate.tables import results_table
from saccade.scripts.report import ReportConfig, run
from saccade.sim.desk.tasks.catalogue import find_task
from saccade.sim.libero.options import LiberoOptions


def test_each_task_runs_from_its_first_initial_states():
    jobs = plan_jobs(EvaluateConfig(suites=("desk_object",), tasks=("red_cube", "red_can"), episodes=3))
    assert [(job.task, job.initial_state) for job in jobs] == [
        (task, state) for task in ("red_cube", "red_can") for state in range(3)
    ]
    assert len({job.seed for job in jobs}) == 6


def test_libero_tasks_run_from_all_fifty_states_by_default():
    jobs = plan_jobs(EvaluateConfig(suites=("libero_long",), tasks=("0", "3")))
    assert [job.initial_state for job in jobs] == [*range(50)] * 2 and {job.suite for job in jobs} == {"libero_10"}
    assert len(plan_jobs(EvaluateConfig(suites=("libero_goal",), tasks=("turn_on_the_stove",), episodes=3))) == 3
    with pytest.raises(InputError, match="expected states below 50"):
        EvaluateConfig(suites=("libero_goal",), first_initial_state=1)
    with pytest.raises(InputError, match="options of LIBERO: got suites of the desk"):
        EvaluateConfig(libero=LiberoOptions(protocol="openvla"))


def test_seed_of_an_episode_does_not_depend_on_the_selected_tasks():
    few = plan_jobs(EvaluateConfig(suites=("desk_object",), tasks=("red_cube",), episodes=2))
    all_of_them = {job.key: job for job in plan_jobs(EvaluateConfig(episodes=4))}
    assert all(all_of_them[job.key] == job for job in few)


def test_held_out_tasks_are_selected_by_left_out():
    known, unseen, both = (
        {task.name for task in choose_tasks(EvaluateConfig(left_out=choice))} for choice in ("without", "only", "with")
    )
    assert unseen and not known & unseen
    assert known | unseen == both
    name = min(unseen)
    assert [task.name for task in choose_tasks(EvaluateConfig(tasks=(name,)))] == [name]


def test_instruction_can_be_a_paraphrase():
    base = EvaluateConfig(suites=("desk_object",), tasks=("red_cube",))
    task = find_task("desk_object", "red_cube")
    paraphrased = plan_jobs(EvaluateConfig(**{**vars(base), "instruction_from": "paraphrase"}))
    assert {job.instruction for job in paraphrased} <= set(task.paraphrases)
    assert not any(job.instruction for job in plan_jobs(base))


def test_perturbed_and_swapped_episodes_are_added_to_the_unchanged_ones():
    options = {"suites": ("desk_object", "desk_spatial"), "tasks": ("red_cube", "left"), "episodes": 2}
    base = plan_jobs(EvaluateConfig(**options))
    assert not any(job.perturbation or job.swap or job.other_task_instructions for job in base)
    jobs = plan_jobs(EvaluateConfig(**options, perturb=("camera=1,3", "language"), swap=("position", "instruction")))
    assert [job for job in jobs if not (job.perturbation or job.swap)] == [
        replace(job, other_task_instructions=job_with.other_task_instructions)
        for job, job_with in zip(base, (job for job in jobs if not (job.perturbation or job.swap)), strict=True)
    ]
    changes = {
        name: {str(job.perturbation or job.swap) for job in jobs if job.task == name} for name in ("red_cube", "left")
    }
    everything = {"None", "camera=1", "camera=3", "language=3", "instruction"}
    assert changes == {"red_cube": everything | {"position"}, "left": everything}
    assert len({job.key for job in jobs}) == len(jobs)
    assert all(job.seed in {other.seed for other in base} for job in jobs)
    alone = plan_jobs(EvaluateConfig(**options, swap=("object",), unchanged=False))
    assert [job.swap for job in alone] == ["object"] * 4
    assert not plan_jobs(EvaluateConfig(**options, swap=("instruction",)))[0].other_task_instructions.count(
        "put the red cube in the bin"
    )


def test_a_swap_that_fits_no_task_is_rejected():
    with pytest.raises(InputError, match="swap position: got 10 tasks in which it makes no sense"):
        plan_jobs(EvaluateConfig(suites=("desk_spatial",), swap=("position",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes: got 0"),
        ({"workers": 0}, "workers: got 0"),
        ({"first_initial_state": 990, "episodes": 20}, "initial states 990 to 1009"),
        ({"resume": True}, "resume: got no --out"),
        ({"perturb": ("camra",)}, r"axis of perturbation: got 'camra'.*Did you mean 'camera'\?"),
        ({"perturb": ("camera=6",)}, "level of camera: got 6, expected 1 to 5"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        EvaluateConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ("desk_objects",)}, "Did you mean 'desk_object'"),
        ({"tasks": ("red_cub",)}, "Did you mean 'red_cube'"),
        ({"suites": ("desk_spatial",), "left_out": "only"}, "tasks: got none"),
    ],
)
def test_unknown_names_are_rejected_with_the_nearest_name(options, message):
    with pytest.raises(InputError, match=message):
        plan_jobs(EvaluateConfig(**options))


def test_an_unknown_checkpoint_is_rejected_with_the_nearest_name(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-1000").mkdir()
    with pytest.raises(InputError, match=r"Did you mean '.*step-1000'"):
        checkpoint_folder(str(tmp_path / "checkpoints" / "step-100"))
    with pytest.raises(InputError, match="Did you mean 'starter'"):
        checkpoint_folder("startr")
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    (tmp_path / "training" / "checkpoint").mkdir(parents=True)
    assert checkpoint_folder(str(tmp_path / "training")) == tmp_path / "training" / "checkpoint"


def test_table_shows_success_rates_and_swaps():
    figures = {"rate": 0.5, "low": 0.1, "high": 0.9, "episodes": 2, "errors": 0}
    nothing = {"suite": "s", "task": "b", "rate": None, "low": None, "high": None, "episodes": 0}
    results = {**figures, "tasks": [{"suite": "s", "task": "a", **figures}, nothing]}
    results["protocol"] = {"instruction_from": "task"}
    own = results_table(results)
    assert "success" in own and "50.0 %" in own and "none could be run" in own
    row = {"swap": "object", "question": "another object requested", "followed": figures, "by_heart": figures}
    row["by_chance"] = 0.25
    both = results_table({**results, "swaps": [row]})
    assert "by heart" in both and "none could be run" in both
    alone = results_table({**results, "protocol": {**results["protocol"], "unchanged": False}, "swaps": [row]})
    assert "by heart" in alone and "none could be run" not in alone


def test_report_needs_a_run_folder(tmp_path):
    with pytest.raises(InputError, match="run folder"):
        run(ReportConfig((tmp_path,)))
    with pytest.raises(InputError, match="runs: got none"):
        ReportConfig(())


def test_options_import_neither_torch_nor_mujoco():
    heavy = {"torch", "mujoco", "av", "jinja2"}
    code = f"import sys, saccade.scripts.evaluate.command, saccade.scripts.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
