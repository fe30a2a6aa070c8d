"""The training loop: bit-exact resume, log lines, and saved files that stay complete."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from saccade.errors import InputError
from saccade.policy.core import PolicyCore
from saccade.policy.datasets.dataset_contract import fit_dataset_contract
from saccade.training.configuration import LoopConfig
from saccade.training.dataset import DemonstrationDataset
from saccade.training.loop import train

CONFIG = LoopConfig(steps=6, batch_size=4, warmup=2, save_every=3, log_every=1, learning_rate=1e-2, average=0.9)


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    root, _ = make_dataset((14, 9))
    return DemonstrationDataset(root, 3, cache_folder=tmp_path_factory.mktemp("frames"), progress=False)


@pytest.fixture(params=["no", "bf16"])
def accelerator(request):
    yield Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def plain():
    yield Accelerator(cpu=True, mixed_precision="no")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(dataset, small_architecture):
    """Return a function that trains a policy, always with the same initial weights, in a folder."""

    def run(folder, accelerator, config=CONFIG, *, data=dataset, contract=None, **options):
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        core = PolicyCore(small_architecture, contract or fit_dataset_contract(data.sources[0], chunk=3, execute=2))
        saved = {}
        options = {"save": lambda path, tensors, step: saved.update({step: copied(tensors)})} | options
        result = train(core, data, config, folder, accelerator=accelerator, progress=False, **options)
        return result, saved, core

    return run


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def killed_at(step):
    def report(line):
        if line["step"] == step:
            raise KeyboardInterrupt

    return report


def test_a_killed_and_resumed_training_is_bit_exact(run, accelerator, tmp_path):
    _, whole, _ = run(tmp_path / "whole", accelerator)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", accelerator, report=killed_at(5))
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    result, parts, _ = run(tmp_path / "parts", accelerator, resume=True)
    assert list(whole) == [3, 6] and list(parts) == [6]
    assert same(whole[6], parts[6])
    state = [(tmp_path / name / "training_state" / "state.safetensors").read_bytes() for name in ("whole", "parts")]
    assert state[0] == state[1]
    logs = [
        [{key: value for key, value in line.items() if "second" not in key} for line in lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert result.steps == 6 and result.loss == logs[0][-1]["loss"]


def test_a_kill_before_the_first_state_starts_again(run, plain, tmp_path):
    _, whole, _ = run(tmp_path / "whole", plain)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", plain, report=killed_at(2))
    _, parts, _ = run(tmp_path / "parts", plain, resume=True)
    assert same(whole[6], parts[6])
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]


def test_resuming_a_finished_training_changes_nothing(run, plain, tmp_path):
    first, _, _ = run(tmp_path, plain)
    again, saved, _ = run(tmp_path, plain, resume=True)
    assert saved == {}
    assert (again.steps, again.loss, again.grounding) == (6, first.loss, first.grounding)
    assert len(lines(tmp_path)) == 6


def test_without_resume_an_old_log_is_replaced(run, plain, tmp_path):
    run(tmp_path, plain)
    run(tmp_path, plain, dataclasses.replace(CONFIG, steps=2))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_log_lines_at_every_interval_and_every_checkpoint(run, plain, tmp_path):
    reported = []
    config = dataclasses.replace(CONFIG, steps=7, save_every=3, log_every=2)
    run(tmp_path, plain, config, report=reported.append)
    found = lines(tmp_path)
    assert reported == found
    assert [line["step"] for line in found] == [2, 3, 4, 6, 7]
    assert set(found[0]) == {
        *("step", "loss", "grounding", "gradient_norm", "learning_rate", "samples_per_second", "seconds"),
    }
    assert [line["learning_rate"] for line in found] == [config.learning_rate_at(line["step"] - 1) for line in found]
    assert all(line["samples_per_second"] > 0 for line in found)
    assert [line["seconds"] for line in found] == sorted(line["seconds"] for line in found)


def test_seconds_continue_after_a_resume(run, plain, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, plain, report=killed_at(4))
    path = tmp_path / "training_state" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1000.0}))
    result, _, _ = run(tmp_path, plain, resume=True)
    assert lines(tmp_path)[-1]["seconds"] > 1000 and result.seconds > 1000


def test_the_loss_falls(run, plain, tmp_path):
    config = dataclasses.replace(CONFIG, steps=40, batch_size=16, save_every=40)
    run(tmp_path, plain, config)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_checkpoint_holds_the_average_and_the_core_the_weights(run, plain, tmp_path):
    _, saved, core = run(tmp_path / "averaged", plain)
    weights = core.model.state_dict()
    assert saved[6].keys() == weights.keys()
    assert not same(saved[6], weights)
    _, saved, core = run(tmp_path / "plain", plain, dataclasses.replace(CONFIG, average=0.0))
    assert all(torch.allclose(saved[6][name], tensor) for name, tensor in core.model.state_dict().items())
    assert core.model.training


def test_without_labels_there_is_no_pointing_loss(run, plain, tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(dataset, "grounding", None)
    result, saved, _ = run(tmp_path, plain)
    assert result.grounding == 0 and result.loss > 0 and list(saved) == [3, 6]


def test_a_loss_that_is_not_finite_ends_the_training_before_it_saves(run, plain, tmp_path, dataset, monkeypatch):
    run(tmp_path, plain, dataclasses.replace(CONFIG, steps=3))
    state = (tmp_path / "training_state" / "state.safetensors").read_bytes()
    monkeypatch.setattr(dataset, "action", dataset.action.copy())
    dataset.action[:] = float("nan")
    contract = fit_dataset_contract(dataset.sources[0], chunk=3, execute=2)
    saved = []
    config = dataclasses.replace(CONFIG, log_every=1000)
    with pytest.raises(InputError, match=r"training: got loss nan.*the last checkpoint is kept"):
        run(
            tmp_path,
            plain,
            config,
            contract=contract,
            resume=True,
            save=lambda path, tensors, step: saved.append(step),
        )
    assert saved == []
    assert (tmp_path / "training_state" / "state.safetensors").read_bytes() == state


def test_an_error_while_saving_ends_the_training_and_its_thread(run, plain, tmp_path):
    def refuse(path, tensors, step):
        raise InputError("checkpoint", got="a full disk", expected="room", fix="Make some.")

    with pytest.raises(InputError, match="a full disk"):
        run(tmp_path, plain, save=refuse)
    assert not (tmp_path / "training_state").exists()


def test_cameras_are_found_by_name_in_any_order(run, plain, tmp_path, dataset, monkeypatch):
    contract = fit_dataset_contract(dataset.sources[0], chunk=3, execute=2)
    batches, loss = [], PolicyCore.loss

    def noted(core, batch, model):
        batches.append(batch)
        return loss(core, batch, model)

    monkeypatch.setattr(PolicyCore, "loss", noted)
    for name, cameras in (("recorded", contract.cameras), ("swapped", contract.cameras[::-1])):
        changed = dataclasses.replace(contract, cameras=cameras)
        run(tmp_path / name, plain, dataclasses.replace(CONFIG, steps=1), contract=changed)
    recorded, swapped = batches
    assert recorded.images.equal(swapped.images.flip(1)) and not recorded.images.equal(swapped.images)
    labels = [batch.grounding[:, 6:].unflatten(1, (2, 4)) for batch in batches]
    assert labels[0].equal(labels[1].flip(1)) and not labels[0].equal(labels[1])
    assert recorded.grounding[:, :6].equal(swapped.grounding[:, :6])


def test_a_camera_that_was_not_recorded_is_refused(run, plain, tmp_path, dataset):
    contract = fit_dataset_contract(dataset.sources[0], chunk=3, execute=2)
    cameras = (contract.cameras[0], dataclasses.replace(contract.cameras[1], name="top"))
    with pytest.raises(InputError, match="cameras: got front, wrist, expected top among them"):
        run(tmp_path, plain, contract=dataclasses.replace(contract, cameras=cameras))
