"""`saccade train`: training, fine-tuning, resuming, and bad input in one line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import read_checkpoint
from saccade.policy.contract import CameraSpec, StateSpec
from saccade.policy.datasets.columns import read_columns
from saccade.policy.loading import load_policy
from saccade.scripts.main import main
from saccade_testing.toy_training import NAMES, SHORT, config, content, record, refused, train


def test_training_writes_checkpoint_state_log_and_options(trained, demonstrations):
    assert sorted(os.listdir(trained)) == ["checkpoint", "log.jsonl", "train.json", "training_state"]
    assert [json.loads(line)["step"] for line in (trained / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    provenance = read_checkpoint(trained / "checkpoint").provenance
    options = json.loads((trained / "train.json").read_text())
    assert provenance["step"] == 4 and provenance["seeds"] == {"seed": 0}
    assert provenance["dataset_fingerprint"] == options["dataset_fingerprint"]
    assert provenance["options"] == {key: options[key] for key in provenance["options"]}


def test_contract_is_fitted_with_relative_joint_targets(trained):
    contract = load_policy(trained / "checkpoint").contract
    assert [camera.name for camera in contract.cameras] == ["front", "wrist"]
    assert (contract.control_hz, contract.chunk, contract.execute) == (30, 3, 2)
    assert contract.normalization.relative == (True, False)


def test_statistics_cover_all_datasets(demonstrations, tmp_path):
    other = record(tmp_path / "other", seed=1)
    train(demonstrations, tmp_path / "one")
    train(demonstrations, tmp_path / "both", data=(demonstrations, other))
    one, both = (load_policy(tmp_path / name / "checkpoint").contract.normalization for name in ("one", "both"))
    assert one.state_low != both.state_low
    columns = [read_columns(folder).vectors for folder in (demonstrations, other)]
    states = np.concatenate([vectors["observation.state"] for vectors in columns]).astype(np.float64)
    np.testing.assert_allclose(both.state_low, np.quantile(states, 0.01, axis=0), rtol=1e-6)


def test_training_works_without_grounding_labels(demonstrations, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(demonstrations, unlabelled)
    info = json.loads((unlabelled / "meta" / "info.json").read_text())
    del info["features"]["grounding"]
    (unlabelled / "meta" / "info.json").write_text(json.dumps(info))
    result = train(unlabelled, tmp_path / "run")
    assert result.steps == 4 and result.grounding == 0


def test_a_dataset_without_an_offer_is_read_by_its_joint_names(demonstrations, tmp_path):
    undeclared = tmp_path / "undeclared"
    shutil.copytree(demonstrations, undeclared)
    (undeclared / "meta" / "offer.json").unlink()
    train(undeclared, tmp_path / "run")
    contract = load_policy(tmp_path / "run" / "checkpoint").contract
    assert contract.action.gripper.name == "gripper.pos" and contract.normalization.relative == (True, False)


def test_fine_tuning_keeps_the_contract_of_the_checkpoint(trained, tmp_path):
    other = record(tmp_path / "other", seed=5)
    still = dataclasses.replace(SHORT, steps=1, learning_rate=1e-9, weight_decay=0.0)
    train(other, tmp_path / "run", init=str(trained), chunk=7, execute=7, loop=still)
    before, after = (load_policy(folder / "checkpoint") for folder in (trained, tmp_path / "run"))
    assert after.contract == before.contract
    for name, tensor in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    assert read_checkpoint(tmp_path / "run" / "checkpoint").provenance["init"] == str(trained)


def test_a_killed_training_resumes_bit_for_bit(trained, demonstrations, tmp_path, monkeypatch):
    from saccade.training import loop

    write_state = loop.write_state

    def killed(folder, state, *rest):
        if state.step == 4:
            raise KeyboardInterrupt
        write_state(folder, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train(demonstrations, tmp_path / "run")
    train(demonstrations, tmp_path / "run", resume=True, threads=1)
    weights = [(folder / "checkpoint" / "model.safetensors").read_bytes() for folder in (trained, tmp_path / "run")]
    assert weights[0] == weights[1]
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"step": 4,') == 1


def test_overwrite_deletes_everything_that_resume_reads(trained, demonstrations, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    shutil.copytree(trained / "training_state", out / ".training_state.previous")
    shutil.copytree(trained / "checkpoint", out / ".checkpoint.previous")
    from saccade.training import loop

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(demonstrations, out, overwrite=True)
    assert sorted(os.listdir(out)) == ["log.jsonl", "train.json"]
    assert (out / "log.jsonl").read_text() == ""


def test_a_too_long_instruction_is_reported_before_anything_is_deleted(demonstrations, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = content(tmp_path / "run")
    refused("instruction: got .* bytes", demonstrations, tmp_path / "run",
            overwrite=True, change=("text_length=3",))  # fmt: skip
    assert content(tmp_path / "run") == before


def test_a_folder_in_use_is_not_changed(trained, demonstrations, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = content(out)
    refused("which holds a training.*--resume", demonstrations, out)
    refused("dataset .*nowhere", tmp_path / "nowhere", out, overwrite=True)
    refused("checkpoint .*nowhere", demonstrations, out, overwrite=True, init=str(tmp_path / "nowhere"))
    refused("resume: steps: got 9, expected 4", demonstrations, out, resume=True,
            loop=dataclasses.replace(SHORT, steps=9))  # fmt: skip
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        refused("which holds other files", demonstrations, tmp_path / "foreign", overwrite=overwrite)
    refused("a file", demonstrations, tmp_path / "foreign" / "thesis.txt")
    assert content(out) == before
    assert os.listdir(tmp_path / "foreign") == ["thesis.txt"]


def test_resume_needs_the_options_of_the_first_run(trained, demonstrations, tmp_path):
    refused("--resume: got no training", demonstrations, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    path = out / "train.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps(options | {"overwrite": True}))
    often = dataclasses.replace(SHORT, save_every=1, log_every=3)
    assert train(demonstrations, out, resume=True, loop=often).steps == 4  # finished already
    for change, message in (
        ({"precision": "bf16"}, "resume: precision: got no, expected bf16"),
        ({"loop": options["loop"] | {"seed": 3}}, "resume: seed: got 0, expected 3"),
        ({"processes": 2}, "resume: processes: got 1, expected 2"),
        ({"dataset_fingerprint": "other"}, "resume: dataset_fingerprint"),
    ):
        path.write_text(json.dumps(options | change))
        refused(message, demonstrations, out, resume=True)
    for text in ("{", "[]"):
        path.write_text(text)
        refused("train.json: got a damaged file", demonstrations, out, resume=True)


def test_a_damaged_state_is_rejected_and_kept(trained, demonstrations, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    path = out / "training_state" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    log = (out / "log.jsonl").read_bytes()
    refused("state.safetensors: got .*damaged.*--overwrite", demonstrations, out, resume=True)
    assert (out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": (CameraSpec("front", 32, 32), CameraSpec("top", 32, 32))}, "cameras.wrist"),
        ({"state": StateSpec(NAMES, ("radians", "percent"))}, "state.units"),
        ({"control_hz": 15}, "control_hz"),
    ],
)
def test_demonstrations_of_another_environment_do_not_fit_a_checkpoint(trained, tmp_path, change, message):
    other = record(tmp_path / "other", **change)
    with pytest.raises(InputError, match=message):
        train(other, tmp_path / "run", init=str(trained))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execute": 4}, "--execute: got 4, expected 1 to --chunk"),
        ({"threads": 0}, "threads: got 0"),
        ({"preset": "tinny"}, "preset: got 'tinny'.*Did you mean 'tiny'"),
        ({"resume": True, "overwrite": True}, "--resume: got --resume and --overwrite"),
    ],
)
def test_invalid_options_are_rejected(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, tmp_path / "run", **options)


def test_a_tracker_that_is_not_installed_is_rejected(demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"--report-to: got wandb.*lerobot_policy_saccade\[wandb\]", demonstrations, tmp_path / "run",
            report_to=("wandb",))  # fmt: skip


def test_the_log_is_sent_to_trackers(demonstrations, tmp_path, monkeypatch):
    from accelerate import Accelerator

    logged = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config: logged.append(config["precision"]))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: logged.append((step, sorted(values)[:2])))
    train(demonstrations, tmp_path / "run", report_to=("wandb",))
    assert logged == ["no", *((step, ["gradient_norm", "grounding"]) for step in (1, 2, 3, 4))]


def test_the_command_reports_bad_input_in_one_line(demonstrations, tmp_path, capsys):
    out, options = str(tmp_path / "run"), ["--chunk", "3", "--execute", "2", "--device", "cpu", "--steps", "2"]
    for arguments, message in (
        (["--data", str(tmp_path / "nowhere"), *options], "no such folder"),
        (["--data", str(demonstrations), *options, "--init", str(tmp_path)], "contract.json"),
        (["--data", str(demonstrations), *options, "--preset", "huge"], "preset"),
        (["--data", str(demonstrations), *options, "--steps", "0"], "steps: got 0"),
    ):
        assert main(["train", "--out", out, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("saccade: error: ") and error.count("\n") == 1 and message in error
        assert not os.path.exists(out)


def test_the_command_trains(demonstrations, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--chunk", "3", "--execute", "2", "--device", "cpu", "--steps", "2", "--batch-size", "2"]
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments]) == 0
    assert "trained to step 2" in capsys.readouterr().out
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments]) == 2
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments, "--resume"]) == 0


def test_options_are_parsed_without_torch():
    probe = (
        "import sys; import saccade.scripts.train.command; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
