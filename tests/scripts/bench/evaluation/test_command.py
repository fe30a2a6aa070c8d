"""`saccade bench evaluation`: metrics are medians, and none is given unless the outcomes agree."""

from __future__ import annotations

import json
import sys

import pytest

from saccade.errors import InputError, WorldError
from saccade.scripts.bench.evaluation import command as bench
from saccade.scripts.bench.evaluation.cluster import count_lost_and_duplicate
from saccade.scripts.bench.evaluation.options import EvaluationBenchConfig
from saccade.scripts.bench.evaluation.timed_commands import CommandTiming, run_and_poll


def test_metrics_are_medians_of_rounds_with_and_without_the_start(monkeypatch):
    lerobot_runs = iter(
        [
            CommandTiming(30.0, 0.5, [True, False]),
            CommandTiming(60.0, 0.5, [True, False]),
            CommandTiming(40.0, 0.6, [True, False]),
        ]
    )
    saccade_runs = iter(
        [
            CommandTiming(10.0, 0.1, [True, False]),
            CommandTiming(10.0, 0.1, [True, False]),
            CommandTiming(20.0, 0.1, [True, False]),
        ]
    )
    monkeypatch.setattr(bench, "run_lerobot", lambda config, out: next(lerobot_runs))
    monkeypatch.setattr(bench, "run_saccade", lambda config, out: next(saccade_runs))
    metrics, lines = bench.bench_evaluation(EvaluationBenchConfig(episodes=2, rounds=3, cluster=False))
    assert metrics["episodes_per_hour_over_lerobot_eval"] == 3.0
    assert metrics["episodes_per_hour_over_lerobot_eval_steady"] == 5.0
    assert (metrics["episodes_per_hour"], metrics["lerobot_episodes_per_hour"]) == (720, 180)
    assert (metrics["successes"], metrics["episodes"], metrics["rounds"]) == (1, 2, 3)
    assert "3.00 times" in lines[0] and "1 of 2 succeeded" in lines[-1]


def test_no_metrics_when_outcomes_differ(monkeypatch):
    monkeypatch.setattr(bench, "run_lerobot", lambda config, out: CommandTiming(3.0, 1.0, [True, False, True]))
    monkeypatch.setattr(bench, "run_saccade", lambda config, out: CommandTiming(1.0, 1.0, [True, True, False]))
    with pytest.raises(WorldError, match=r"initial states 1, 2 have other outcomes .* no speed is given"):
        bench.bench_evaluation(EvaluationBenchConfig(episodes=3, cluster=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 1}, "episodes: got 1, expected 2 or more"),
        ({"episodes": 51}, "episodes: got 51, expected at most 50"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"task": "red_cub"}, "Did you mean 'red_cube'"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        EvaluationBenchConfig(**options)


def test_a_failing_command_is_reported_with_its_output():
    with pytest.raises(WorldError, match=r"failed: no such policy"):
        list(run_and_poll([sys.executable, "-c", "import sys; sys.exit('no such policy')"]))


def test_lost_and_duplicate_episodes_are_counted(tmp_path):
    def record(state, outcome="success"):
        return json.dumps({"suite": "s", "task": "t", "initial_state": state, "seed": 1, "outcome": outcome}) + "\n"

    lines = [record(0), record(1, "error"), record(1), record(2), record(2, "failure"), record(3, "error")]
    (tmp_path / "records.jsonl").write_text("".join(lines))
    assert count_lost_and_duplicate(tmp_path, 4) == {"ray_episodes_lost": 1, "ray_episodes_double": 1}
