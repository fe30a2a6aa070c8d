import json

import numpy as np
import pytest

from saccade.errors import InputError, WorldError
from saccade.scripts.bench.command import DemonstratorBenchConfig, run
from saccade.scripts.bench.demonstrator import plan_demonstration_jobs
from saccade.scripts.bench.simulator import SimBenchConfig, measure_steps
from saccade.sim.desk.environment import DeskEnv


def test_sim_measures_speed_and_writes_metrics(tmp_path, capsys):
    out = tmp_path / "metrics.json"
    assert run(SimBenchConfig(image_size=32, runs=1, workers=1, out=out)) == 0
    content = json.loads(out.read_text())
    assert content["figures"]["desk_steps_per_second"] > 0
    # On a machine with one core, one worker is the default and is omitted.
    assert content["command"].replace(" --workers 1", "") == f"saccade bench sim --image-size 32 --runs 1 --out {out}"
    assert "steps per second and process" in capsys.readouterr().out


def test_sim_gives_no_speed_when_a_replay_differs(monkeypatch):
    reset, states = DeskEnv.reset, iter(range(100))

    def reset_elsewhere(self, *, seed, options):
        return reset(self, seed=seed, options={"initial_state": next(states)})

    monkeypatch.setattr(DeskEnv, "reset", reset_elsewhere)
    with pytest.raises(WorldError, match="gave other states"):
        measure_steps(SimBenchConfig(image_size=16, runs=1))


def test_sim_gives_no_speed_when_images_are_black(monkeypatch):
    observe = DeskEnv.observe

    def observe_black(self):
        observation = observe(self)
        return {**observation, "pixels": {name: np.zeros_like(view) for name, view in observation["pixels"].items()}}

    monkeypatch.setattr(DeskEnv, "observe", observe_black)
    with pytest.raises(WorldError, match="camera is empty"):
        measure_steps(SimBenchConfig(image_size=16, runs=1))


@pytest.mark.slow
def test_demonstrator_reports_the_success_rate_of_each_task(tmp_path, capsys):
    out = tmp_path / "metrics.json"
    assert run(DemonstratorBenchConfig(suites=("desk_spatial",), states=1, workers=1, out=out)) == 0
    metrics = json.loads(out.read_text())["figures"]
    rates = [rate for name, rate in metrics.items() if name.startswith("desk_spatial/")]
    assert len(rates) == 10 and metrics["demonstrator_success_min"] == min(rates) and metrics["episodes"] == 10
    assert "lowest: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: SimBenchConfig(task="red_cub"), "Did you mean 'red_cube'"),
        (lambda: SimBenchConfig(runs=0), "runs: got 0"),
        (lambda: DemonstratorBenchConfig(suites=("desk_spacial",)), "Did you mean 'desk_spatial'"),
        (lambda: DemonstratorBenchConfig(states=0), "states: got 0"),
        (lambda: DemonstratorBenchConfig(suites=("desk_goal", "libero_goal")), "expected suites of one world"),
        (lambda: DemonstratorBenchConfig(suites=("libero_goal",), first_state=45, states=10), "states below 50"),
    ],
)
def test_invalid_options_are_rejected(make, problem):
    with pytest.raises(InputError, match=problem):
        make()


def test_demonstrator_uses_the_given_initial_states():
    config = DemonstratorBenchConfig(suites=("desk_spatial",), first_state=5, states=12)
    jobs = list(plan_demonstration_jobs(config))
    assert [job.states for job in jobs[:2]] == [range(5, 15), range(15, 17)] and len(jobs) == 20
