"""The training state: it is restored exactly, and no kill or full disk loses it."""

import json
import os
import resource

import pytest
import torch

from saccade.errors import InputError
from saccade.training import state as state_module
from saccade.training.averaging import WeightAverage
from saccade.training.state import TrainingState, discard_state, read_state, write_state


def learner(width=3, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, WeightAverage(model, 0.9)


def take_step(model, optimizer, average):
    model(torch.tensor([[1.0, -2.0]])).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update()


def everything(model, optimizer, average):
    moments = [values[name] for values in optimizer.state_dict()["state"].values() for name in sorted(values)]
    return [*model.state_dict().values(), *moments, *average.tensors().values(), torch.tensor(average.updates)]


@pytest.fixture
def written(tmp_path):
    """A state after two steps: its folder and what was written."""
    parts = learner()
    take_step(*parts)
    take_step(*parts)
    write_state(tmp_path / "training_state", TrainingState(2, 1.5), *parts)
    return tmp_path / "training_state", parts


def check_intact(folder, parts):
    fresh = learner(seed=1)
    assert read_state(folder, *fresh) == TrainingState(2, 1.5)
    assert all(map(torch.equal, everything(*fresh), everything(*parts)))


def test_a_restored_training_continues_exactly(written):
    folder, parts = written
    fresh = learner(seed=1)
    assert read_state(folder, *fresh) == TrainingState(2, 1.5)
    for each in (parts, fresh):
        take_step(*each)
    assert all(map(torch.equal, everything(*fresh), everything(*parts)))
    assert os.listdir(folder.parent) == ["training_state"]


def test_no_state_yet(tmp_path):
    assert read_state(tmp_path / "training_state", *learner()) is None


def test_a_newer_state_replaces_the_older(written):
    folder, parts = written
    take_step(*parts)
    write_state(folder, TrainingState(3, 2.5), *parts)
    assert read_state(folder, *learner()) == TrainingState(3, 2.5)
    assert os.listdir(folder.parent) == ["training_state"]


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_at_any_moment_leaves_a_complete_state(written, monkeypatch, survived):
    folder, parts = written
    take_step(*parts)
    left = iter(range(survived))

    def killed(*_, **__):
        raise KeyboardInterrupt

    def until_killed(real):
        return lambda *arguments: real(*arguments) if next(left, None) is not None else killed()

    with monkeypatch.context() as patch:
        # Killed at the tensors' file or one of the two renames; nothing cleans up after a kill.
        patch.setattr(state_module, "save_file", until_killed(state_module.save_file))
        patch.setattr(os, "rename", until_killed(os.rename))
        patch.setattr(state_module.shutil, "rmtree", lambda *_, **__: None)
        if survived < 3:
            with pytest.raises(KeyboardInterrupt):
                write_state(folder, TrainingState(3, 2.5), *parts)
        else:
            write_state(folder, TrainingState(3, 2.5), *parts)
    fresh = learner()
    assert read_state(folder, *fresh) == (TrainingState(2, 1.5) if survived < 3 else TrainingState(3, 2.5))
    write_state(folder, TrainingState(4, 3.5), *parts)
    assert read_state(folder, *learner()) == TrainingState(4, 3.5)


@pytest.fixture
def small_files():
    """Limit the size of files to a few bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clear_error_and_the_old_state_stays(written, small_files):
    folder, parts = written
    with pytest.raises(InputError, match=r"training_state: got .*expected a disk that takes it.*--resume"):
        write_state(folder, TrainingState(3, 2.5), *learner(seed=2))
    small_files()
    assert os.listdir(folder.parent) == ["training_state"]
    check_intact(folder, parts)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_file_is_refused_and_restores_nothing(written, name, kept):
    folder, _ = written
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    fresh = learner(seed=1)
    before = [tensor.clone() for tensor in everything(*fresh)]
    with pytest.raises(InputError, match=f"{name}: got"):
        read_state(folder, *fresh)
    assert all(map(torch.equal, everything(*fresh), before))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_missing_file_is_refused(written, name):
    (written[0] / name).unlink()
    with pytest.raises(InputError, match=f"{name}: got .*No such file"):
        read_state(written[0], *learner())


@pytest.mark.parametrize("numbers", [[], {"step": 1}, {"step": "1", "seconds": 1.0, "updates": 1}])
def test_numbers_of_wrong_types_are_refused(written, numbers):
    (written[0] / "state.json").write_text(json.dumps(numbers))
    with pytest.raises(InputError, match="expected numbers named step, seconds, updates"):
        read_state(written[0], *learner())


def test_the_state_of_another_network_is_refused(written):
    with pytest.raises(InputError, match="the weights of another network"):
        read_state(written[0], *learner(width=4))


@pytest.mark.parametrize("previous", [".training_state.previous", "training_state.previous"])
def test_kill_between_two_renames_keeps_the_previous_state(written, previous):
    folder, parts = written
    folder.rename(folder.with_name(previous))
    check_intact(folder, parts)
    assert folder.is_dir()


def test_discarding_deletes_interrupted_writes_too(written):
    folder, _ = written
    for name in (".training_state.previous", "training_state.partial"):
        (folder.parent / name).mkdir()
    discard_state(folder)
    assert os.listdir(folder.parent) == []
    discard_state(folder)
