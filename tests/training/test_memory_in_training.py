"""History switched on in a trained policy: new parameters are reported, resume is bit-exact, misfits are refused."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import read_checkpoint
from saccade.policy.loading import load_policy
from saccade.policy.network.presets import PRESETS
from saccade.scripts.train.command import train_policy
from saccade.scripts.train.options import TrainConfig
from saccade.training.configuration import LoopConfig

LOOP = LoopConfig(steps=4, batch_size=4, run=2, warmup=0, save_every=2, log_every=1, average=0.5)
MEMORY = ("history=3", "history_selected=2")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory, small_architecture):
    monkeypatch.setitem(PRESETS, "tiny", small_architecture)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def train(demonstrations, tmp_path):
    """Return a function that trains in a folder of `tmp_path` and returns the folder."""

    def train(name, **options):
        made = {"chunk": 3, "execute": 2, "loop": LOOP, "precision": "no", "device": "cpu", "threads": 1} | options
        train_policy(TrainConfig(data=(demonstrations[0],), out=tmp_path / name, **made), progress=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        return tmp_path / name

    return train


def test_history_is_switched_on_trained_and_reported(train, capsys):
    before = train("before")
    capsys.readouterr()
    after = train("after", init=str(before), change=MEMORY)
    assert (
        "newly initialised, not in" in (said := capsys.readouterr().out) and "history.age, history.norm.weight" in said
    )
    core = load_policy(after / "checkpoint")
    assert core.architecture.history == 3 and core.contract == load_policy(before / "checkpoint").contract
    assert core.model.history.output.weight.abs().sum() > 0
    provenance = read_checkpoint(after / "checkpoint").provenance
    assert len(provenance["fresh"]) == 12 and provenance["options"]["change"] == list(MEMORY)
    capsys.readouterr()
    again = train("again", init=str(after), change=("history_selected=3",))
    assert "new beside" not in capsys.readouterr().out
    assert load_policy(again / "checkpoint").model.history.selected == 3


def test_a_killed_training_with_history_resumes(train, monkeypatch):
    from saccade.training import loop

    before, write_state = train("before"), loop.write_state
    whole = train("whole", init=str(before), change=MEMORY)

    def killed(folder, state, *rest):
        if state.step == 4:
            raise KeyboardInterrupt
        write_state(folder, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train("parts", init=str(before), change=MEMORY)
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = train("parts", init=str(before), change=MEMORY, resume=True)
    one, other = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_runs_change_the_order_of_frames_and_not_on_resume(train):
    out = train("run", change=MEMORY)
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(torch.tensor(losses).isfinite())
    with pytest.raises(InputError, match="resume: run: got 1, expected 2"):
        train("run", change=MEMORY, resume=True, loop=LoopConfig(**{**vars(LOOP), "run": 1}))


def test_changes_that_a_trained_policy_does_not_support_are_refused(train, tmp_path):
    before = train("before")
    for change, message in (
        (("mask=mutual",), "change: got mask, in a policy that is trained"),
        (("history=3",), "architecture.history_selected: got 0, with a history of 3"),
        (("histry=3",), "Did you mean 'history'"),
    ):
        with pytest.raises(InputError, match=message):
            train("refused", init=str(before), change=change)
    with pytest.raises(InputError, match="--preset: got --preset and --init, expected one of them"):
        train("refused", init=str(before), preset="small")
    assert not (tmp_path / "refused").exists()
