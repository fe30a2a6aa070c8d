"""`saccade bench merge` and `merge-small`: their evaluations, their metrics, and a small complete run."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from saccade.errors import InputError
from saccade.policy.network.presets import PRESETS
from saccade.scripts.bench.merging import command as bench_merge
from saccade.scripts.bench.merging.command import MergeBenchConfig, success_metrics, success_table
from saccade.scripts.bench.merging.preset_small import MergeCostBenchConfig, bench_merge_small
from saccade.scripts.bench.merging.router import RouterDecision, plot_router
from saccade.scripts.main import main
from saccade.sim.evaluation import run_folder

SUITES = ("desk_spatial", "desk_goal")


def results(rate, episodes=20):
    """Return results in which the first episodes of a suite succeed and the others fail."""
    ended = [SimpleNamespace(key=n, outcome="success" if n < rate * episodes else "failure") for n in range(episodes)]
    return {"rate": rate, "episodes": episodes, "records": ended}


@pytest.fixture
def measured():
    rows = {
        "single skills": {"desk_spatial": results(1.0), "desk_goal": results(0.5)},
        "merged": {"desk_spatial": results(0.9), "desk_goal": results(0.5)},
        "merged, oracle router": {"desk_spatial": results(0.95), "desk_goal": results(0.5)},
    }
    return [rows, rows | {"single skills": {"desk_spatial": results(0.8), "desk_goal": results(0.5)}}]


@pytest.fixture
def config(tmp_path):
    return MergeBenchConfig(skills=("a_{seed}", "b_{seed}"), suites=SUITES, seeds=(0, 1), folder=tmp_path)


def test_metrics_are_means_over_suites_then_over_seeds(config, measured):
    metrics = success_metrics(config, measured)
    assert metrics["skills_mean_success"] == pytest.approx((0.75 + 0.65) / 2)
    assert metrics["merged_success"] == pytest.approx(0.7)
    assert metrics["merged_over_skills"] == pytest.approx(1.0)
    assert metrics["joint_success"] is None and metrics["unmasked_success"] is None
    assert metrics["merged_won_against_skills"] == metrics["merged_lost_against_skills"] == 2
    assert metrics["skill_desk_spatial_1"] == 0.8 and metrics["episodes_of_a_policy"] == 40


def test_the_table_has_intervals_and_the_number_of_seeds(config, measured):
    lines = success_table(config, measured)
    assert len(lines) == 4 and all("of 80, 2 seeds" in line for line in lines[1:])
    assert "90.0" in lines[1] and "70.0  59.2 to 78.9" in lines[2]
    assert "+0 -0, p = 1" in lines[1] and "+2 -2, p = 1" in lines[2]


def test_an_existing_evaluation_is_not_run_again(config, tmp_path, monkeypatch):
    asked = []

    def evaluate(options):
        asked.append((options.suites, options.skill))
        options.out.mkdir(parents=True)
        (options.out / "results.json").write_text(json.dumps({"rate": 0.25, "episodes": 20}))

    monkeypatch.setattr(run_folder, "read_evaluation", lambda out: SimpleNamespace(records=()))
    monkeypatch.setattr(bench_merge, "evaluate", evaluate)
    one = bench_merge.SeedEvaluation(config, 0, with_baselines=True)
    for _ in range(2):
        assert one._evaluate_once(tmp_path, "x", "desk_goal", skill="desk_goal")["rate"] == 0.25
    assert asked == [(("desk_goal",), "desk_goal")]


def test_baselines_are_measured_for_the_requested_number_of_seeds(config, monkeypatch):
    def everywhere(self, folder, name):
        return {suite: results(0.5) for suite in self._config.suites}

    monkeypatch.setattr(bench_merge.SeedEvaluation, "_evaluate_all_suites", everywhere)
    monkeypatch.setattr(bench_merge.SeedEvaluation, "_evaluate_once", lambda *_, **__: results(1.0))
    monkeypatch.setattr(bench_merge.SeedEvaluation, "_evaluate_named_skill", lambda *_: results(0.5))
    monkeypatch.setattr(
        bench_merge.SeedEvaluation, "_merge_once", lambda self, name, *_, **__: self._config.folder / name
    )
    config = dataclasses.replace(config, others=("wudi", "mean/none"))
    with_baselines, part = (
        bench_merge.SeedEvaluation(config, seed, with_baselines=seed == 0).rows() for seed in config.seeds
    )
    assert len(part) == 4 and "merged, no expert block kept" in part
    assert {"all merged: wudi", "all merged: mean/none", "merged without masks"} <= with_baselines.keys() - part.keys()
    metrics = success_metrics(config, [with_baselines, part])
    assert metrics["method_mean_none_desk_goal"] == metrics["no_block_kept_success"] == 0.5
    assert metrics["merged_over_skills"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others_seeds": -1}, "--others-seeds: got -1, expected 0 or more"),
        ({"skills": ("a",)}, "skills: got 1 skills and 2 suites"),
        ({"episodes": 0}, "episodes: got 0"),
        ({"seeds": ()}, "seeds: got none"),
        ({"foreign": "desk_memroy"}, "Did you mean 'desk_memory'"),
    ],
)
def test_invalid_options_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **changes)


def test_the_router_plot_shows_both_kinds(tmp_path):
    known_decisions = [
        RouterDecision("a", "a" if place else "b", True, 0.9 + 0.001 * place, 0.8, 0.5) for place in range(60)
    ]
    foreign_decisions = [RouterDecision("c", "a", False, 0.6, 0.2, 8.0 + place) for place in range(20)]
    plot_router(known_decisions, foreign_decisions, tmp_path / "router.png")
    assert (tmp_path / "router.png").stat().st_size > 10_000


def test_small_skills_are_written_merged_and_deleted(small_architecture, monkeypatch, tmp_path, capsys):
    shape = dataclasses.replace(small_architecture, tokenizer="trunk", vocabulary=300, padding=256)
    monkeypatch.setitem(PRESETS, "small", shape)
    folder = tmp_path / "skills"
    metrics, lines = bench_merge_small(MergeCostBenchConfig(folder=folder, count=2, rank=2))
    assert metrics["merge_small_skills"] == 2 and metrics["merge_small_seconds"] > 0
    assert 0 < metrics["merge_small_peak_gib"] < 16 and metrics["merge_small_bytes"] > 0
    assert any("merged skill0, skill1" in line for line in lines) and not folder.exists()

    (folder / "mine").mkdir(parents=True)
    assert main(["bench", "merge-small", "--folder", str(folder)]) == 2
    assert "which is not empty" in capsys.readouterr().err and (folder / "mine").is_dir()
