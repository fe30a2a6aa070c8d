import json
from types import SimpleNamespace

import pytest

from saccade.errors import InputError, WorldError
from saccade.policy.checkpoint import folder as checkpoint
from saccade.scripts import collect
from saccade.scripts.collect import choose_tasks
from saccade.scripts.evaluate import command as evaluate
from saccade.scripts.quickstart import command as quickstart
from saccade.scripts.quickstart.command import claim_folder, run
from saccade.scripts.quickstart.options import QuickstartConfig, new_tasks
from saccade.scripts.quickstart.stages import Quickstart
from saccade.scripts.train import command as train


class FakeCommands:
    """Replaces the other commands: writes their outputs, and stops where `interrupt_at` says."""

    def __init__(self, monkeypatch, starter):
        self.calls, self.interrupt_at = [], None
        monkeypatch.setattr(collect, "collect_demonstrations", self.collect)
        monkeypatch.setattr(train, "train_policy", self.train)
        monkeypatch.setattr(evaluate, "evaluate", self.evaluate)
        monkeypatch.setattr(quickstart, "write_comparison", lambda quickstart: None)
        monkeypatch.setattr(checkpoint, "find_checkpoint", lambda name: starter)
        monkeypatch.setattr(checkpoint, "read_contract", lambda folder: None)

    def _record(self, call):
        self.calls.append(call)
        if call == self.interrupt_at:
            raise KeyboardInterrupt

    def collect(self, config):
        self._record(config.out.name)
        config.out.mkdir(parents=True)
        (config.out / "collection.json").write_text("{}")
        return SimpleNamespace(episodes=3, frames=300, tasks=(SimpleNamespace(failures=1),))

    def train(self, config):
        folder = config.out / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (config.out / "train.json").write_text("{}")
        (folder / "provenance.json").write_text(json.dumps({"step": 1}))
        self._record("train resumed" if config.resume else "train")
        (folder / "provenance.json").write_text(json.dumps({"step": config.loop.steps}))
        return SimpleNamespace(steps=config.loop.steps, loss=0.5, checkpoint=folder)

    def evaluate(self, config, jobs):
        self._record(config.out.name)
        config.out.mkdir(parents=True)
        rate = {"evaluation_before": 0.1, "evaluation_after": 0.9, "evaluation_swapped": 0.04}[config.out.name]
        successes = round(rate * len(jobs))
        metrics = {"episodes": len(jobs), "successes": successes, "rate": rate, "low": 0.0, "high": 1.0}
        swaps = [{"swap": "object", "by_heart": metrics}] if config.swap else []
        results = {"errors": 0, **(metrics | {"rate": 1.0} if swaps else metrics), "swaps": swaps}
        (config.out / "results.json").write_text(json.dumps(results))
        return config.out, results


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    return FakeCommands(monkeypatch, tmp_path / "starter")


def test_new_and_rehearsed_tasks_are_disjoint():
    job = Quickstart(QuickstartConfig())
    new, known = (choose_tasks(job.collection(rehearsal=rehearsal)) for rehearsal in (False, True))
    assert set(new) == set(new_tasks()) and len(new) >= 3
    assert not set(new) & set(known)


@pytest.mark.parametrize("broken", ["demonstrations", "rehearsal", "evaluation_before", "train", "evaluation_swapped"])
def test_a_second_run_continues_where_the_first_stopped(broken, fakes, tmp_path, capsys):
    config = QuickstartConfig(out=tmp_path / "out")
    fakes.interrupt_at = broken
    with pytest.raises(KeyboardInterrupt):
        run(config)
    fakes.interrupt_at = None
    assert run(config) == 0
    order = ["demonstrations", "rehearsal", "evaluation_before", "train", "evaluation_after", "evaluation_swapped"]
    place = order.index(broken)
    again = "train resumed" if broken == "train" else broken
    assert fakes.calls == [*order[:place], broken, again, *order[place + 1 :]]
    assert capsys.readouterr().out.strip().endswith(f"Report: {tmp_path / 'out' / 'report.html'}")
    assert run(config) == 0, "a finished quickstart only prints its metrics again"
    assert len(fakes.calls) == len(order) + 1


def test_metrics_are_written_by_name(fakes, tmp_path):
    run(QuickstartConfig(out=tmp_path / "out", rehearsal=0))
    content = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    assert set(content) == {"figures", "command", "commit", "machine", "versions", "date"}
    assert content["command"] == f"saccade quickstart --out {tmp_path / 'out'} --rehearsal 0"
    metrics = content["figures"]
    assert (metrics["success_before"], metrics["success_rate"], metrics["swapped_success_rate"]) == (0.1, 0.9, 0.04)
    assert metrics["episodes"] == 50
    names = {"success_low", "success_high", "minutes_total", "minutes_collect", "minutes_train", "minutes_eval"}
    assert names < set(metrics)
    assert fakes.calls == ["demonstrations", "evaluation_before", "train", "evaluation_after", "evaluation_swapped"]


def test_from_scratch_skips_the_evaluation_before(fakes, tmp_path):
    run(QuickstartConfig(out=tmp_path / "out", from_scratch=True))
    metrics = json.loads((tmp_path / "out" / "quickstart.json").read_text())["figures"]
    assert metrics["success_before"] is None and metrics["success_rate"] == 0.9
    assert fakes.calls == ["demonstrations", "train", "evaluation_after", "evaluation_swapped"]


def test_every_evaluation_state_goes_to_one_task_in_turn(monkeypatch, tmp_path):
    requested = []

    def record_jobs(config, jobs):
        requested.extend(jobs)
        return tmp_path, {"errors": 1}

    monkeypatch.setattr(evaluate, "evaluate", record_jobs)
    job = Quickstart(QuickstartConfig(out=tmp_path))
    with pytest.raises(WorldError, match="1 episodes failed to run"):
        job._evaluate("swapped")
    assert sorted(each.initial_state for each in requested) == list(range(50))
    counts = [sum(each.task == task.name for each in requested) for task in new_tasks()]
    assert max(counts) - min(counts) <= 1
    assert all(each.swap == "object" for each in requested)


def test_other_options_and_other_files_are_rejected(tmp_path):
    claim_folder(QuickstartConfig(out=tmp_path / "out"))
    claim_folder(QuickstartConfig(out=tmp_path / "out", workers=7))
    with pytest.raises(InputError, match=r"steps: got 7, expected None.*--overwrite"):
        claim_folder(QuickstartConfig(out=tmp_path / "out", steps=7))
    (tmp_path / "out" / "mine").touch()
    claim_folder(QuickstartConfig(out=tmp_path / "out", steps=7, overwrite=True))
    assert not (tmp_path / "out" / "mine").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").touch()
    with pytest.raises(InputError, match="holds other files"):
        claim_folder(QuickstartConfig(out=tmp_path / "foreign", overwrite=True))
    assert (tmp_path / "foreign" / "mine").exists()


@pytest.mark.parametrize("options", [{"episodes": 2}, {"episodes": 51}, {"steps": 0}, {"rehearsal": -1}])
def test_numbers_out_of_range_are_rejected(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}: got"):
        QuickstartConfig(**options)


def test_a_missing_starter_is_reported_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "STARTER_FOLDER", tmp_path / "nothing")
    with pytest.raises(InputError, match="no such folder"):
        run(QuickstartConfig(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def write_untrained_policy(folder):
    """Write the checkpoint of an untrained policy."""
    from saccade.policy.checkpoint.contents import MODEL_PREFIX
    from saccade.policy.checkpoint.folder import collect_provenance, write_checkpoint
    from saccade.policy.contract import Contract, Normalization
    from saccade.policy.core import PolicyCore
    from saccade.policy.lerobot_files import lerobot_files
    from saccade.policy.network.presets import find_preset
    from saccade.sim.desk.environment import desk_offer

    offer = desk_offer(128)
    ranges = Normalization(
        state_low=(-100.0,) * 6,
        state_high=(100.0,) * 6,
        action_low=((-5.0,) * 5 + (0.0,),) * 16,
        action_high=((5.0,) * 5 + (100.0,),) * 16,
        relative=(True,) * 5 + (False,),
    )
    parts = {"cameras": offer.cameras, "state": offer.state, "action": offer.action, "control_hz": offer.control_hz}
    core = PolicyCore(find_preset("tiny"), Contract(**parts, normalization=ranges, chunk=16, execute=8))
    config_json, text_files = lerobot_files(core.architecture, core.contract)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    write_checkpoint(folder, tensors, config_json, core.contract, collect_provenance([], {}, None), text_files)


@pytest.mark.slow
def test_quickstart_runs_end_to_end_with_the_smallest_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "STARTER_FOLDER", tmp_path / "starter")
    write_untrained_policy(tmp_path / "starter")
    out = tmp_path / "out"
    sizes = {"demonstrations": 1, "rehearsal": 0, "batch_size": 4, "steps": 2, "episodes": 3, "videos": 1, "threads": 1}
    config = QuickstartConfig(out=out, workers=1, **sizes)
    assert run(config) == 0
    metrics = json.loads((out / "quickstart.json").read_text())["figures"]
    assert all(metrics[name] is not None for name in metrics)
    assert (out / "report.html").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "[4/5]" in output and "remaining" in output and f"Report: {out / 'report.html'}" in output
    assert run(config) == 0
    assert capsys.readouterr().out.count("already done") == 5
