"""Checkpoints: whole or not at all, verified to the byte, never a pickle."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint import folder as checkpoint_module
from saccade.policy.checkpoint.folder import collect_provenance, read_checkpoint, read_contract, write_checkpoint
from saccade.policy.contract import ActionSpec, CameraSpec, Contract, Normalization, StateSpec

FILES = ("model.safetensors", "config.json", "contract.json", "provenance.json")
CONTRACT = Contract(
    cameras=(CameraSpec("front", 8, 8),),
    state=StateSpec(("a.pos",), ("degrees",)),
    action=ActionSpec(("a.pos",), ("degrees",)),
    control_hz=30,
    normalization=Normalization((0,), (1,), ((0,),), ((1,),), (True,)),
    chunk=1,
    execute=1,
)


def write(folder: Path, value: float = 1.0, **extra: str) -> Path:
    tensors = {"weight": torch.full((3, 2), value), "counts": torch.arange(4)}
    provenance = {"seeds": {10: 1, 2: 0}, "command": ("saccade", "train")}
    return write_checkpoint(folder, tensors, {"width": 8}, CONTRACT, provenance, extra)


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_round_trip(tmp_path):
    folder = write(tmp_path / "new" / "starter", **{"README.md": "# A card\n"})
    assert {path.name for path in folder.iterdir()} == {*FILES, "README.md"}
    read = read_checkpoint(folder)
    assert torch.equal(read.tensors["weight"], torch.ones(3, 2)) and read.tensors["counts"].dtype == torch.int64
    assert read.config == {"width": 8} and read.contract == CONTRACT == read_contract(folder)
    assert read.provenance["command"] == ["saccade", "train"]
    assert set(read.provenance["files"]) == {*FILES[:3], "README.md"}
    assert beside(folder) == ["starter"]


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"head": weight, "tied": weight, "turned": weight.t(), "parameter": torch.nn.Parameter(weight)}
    write_checkpoint(tmp_path / "tied", tensors, {}, CONTRACT, {})
    read = read_checkpoint(tmp_path / "tied").tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", [*FILES, "README.md"])
def test_every_flipped_byte_is_found(tmp_path, name):
    folder = write(tmp_path / "starter", **{"README.md": "card"})
    path = folder / name
    original = path.read_bytes()
    for place in range(0, len(original), max(1, len(original) // 40)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        if name == "provenance.json" and original[place : place + 1].isspace():
            continue
        with pytest.raises(InputError, match="copy the checkpoint again"):
            read_checkpoint(folder)
    path.write_bytes(original)
    read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_and_truncated_files_are_named(tmp_path, name):
    folder = write(tmp_path / "starter")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=name):
        read_checkpoint(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: got no such file"):
        read_checkpoint(folder)


def test_missing_contract_has_a_fix_that_says_why(tmp_path):
    folder = write(tmp_path / "starter")
    (folder / "contract.json").unlink()
    for read in (read_checkpoint, read_contract):
        with pytest.raises(InputError, match="must not act without its conventions and statistics"):
            read(folder)


def test_missing_statistics_are_refused(tmp_path, monkeypatch):
    document = json.loads(CONTRACT.to_json())
    del document["normalization"]
    monkeypatch.setattr(Contract, "to_json", lambda self: json.dumps(document))
    folder = write(tmp_path / "starter")
    with pytest.raises(InputError, match=r"contract\.json\.normalization: got nothing.*must not act without its stat"):
        read_checkpoint(folder)


def test_nothing_is_unpickled(tmp_path):
    folder = write(tmp_path / "starter")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights are never opened"):
        read_checkpoint(folder)

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="sha256"):
        read_checkpoint(folder)


def test_provenance_cannot_point_outside_the_folder(tmp_path):
    folder = write(tmp_path / "starter")
    record = json.loads((folder / "provenance.json").read_text())
    del record["digest"]
    record["files"]["../../secret"] = record["files"]["config.json"]
    record["digest"] = checkpoint_module._digest(record)
    (folder / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="no list of files"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_path_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder"):
        read_checkpoint(tmp_path / name)


def test_an_earlier_checkpoint_is_replaced(tmp_path):
    folder = write(tmp_path / "starter", 1.0, **{"old.md": "old"})
    write(folder, 2.0)
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 2.0
    assert not (folder / "old.md").exists()
    assert beside(folder) == ["starter"]


def test_a_damaged_checkpoint_can_be_replaced(tmp_path):
    folder = write(tmp_path / "starter")
    (folder / "provenance.json").write_text("{")
    write(folder, 2.0)
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 2.0


def test_foreign_folder_is_never_overwritten(tmp_path):
    thesis = tmp_path / "documents"
    thesis.mkdir()
    write(thesis)  # empty: free to take
    (thesis / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        write(thesis, 2.0)
    assert (thesis / "thesis.tex").read_text() == "years of work"
    assert read_checkpoint(thesis).tensors["weight"][0, 0] == 1.0
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_text("someone else's")
    with pytest.raises(InputError, match="move its contents elsewhere"):
        write(foreign)
    (tmp_path / "link").symlink_to(thesis)
    with pytest.raises(InputError, match="a file or a link"):
        write(tmp_path / "link")


def test_names_that_escape_the_folder_or_clash_are_refused(tmp_path):
    for name in ("../x", "a/b", "config.json", ".."):
        with pytest.raises(InputError, match="extra file"):
            write(tmp_path / "starter", **{name: ""})
    with pytest.raises(InputError, match="the key digest"):
        write_checkpoint(tmp_path / "starter", {}, {}, CONTRACT, {"digest": ""})
    assert not (tmp_path / "starter").exists()


@pytest.mark.parametrize("kilobytes", [1, 100])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, kilobytes):
    folder = write(tmp_path / "starter")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, limits[1]))
    try:
        with pytest.raises(InputError, match=r"what was there before is untouched") as caught:
            write_checkpoint(folder, {"weight": torch.zeros(100_000)}, {}, CONTRACT, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 1.0
    assert beside(folder) == ["starter"]


@pytest.mark.parametrize("step", ["_write_tensors", "_file_record", "flush", "replace_folder"])
def test_interruption_leaves_the_previous_checkpoint(tmp_path, monkeypatch, step):
    folder = write(tmp_path / "starter")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint_module, step, interrupt)
        write(folder, 2.0)
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 1.0
    assert beside(folder) == ["starter"]


def test_process_killed_during_replacement_leaves_a_whole_checkpoint(tmp_path):
    folder = write(tmp_path / "starter")
    folder.rename(tmp_path / ".starter.previous")  # killed between the two renames
    (tmp_path / ".starter.partial").mkdir()  # and earlier, while writing
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 1.0
    folder.rename(tmp_path / ".starter.previous")
    write(folder, 2.0)
    assert read_checkpoint(folder).tensors["weight"][0, 0] == 2.0
    assert beside(folder) == ["starter"]


def test_provenance_names_the_origin(tmp_path):
    provenance = collect_provenance(["saccade", "train"], {"training": 1}, "sha256:0")
    assert provenance["versions"]["torch"].startswith("2.")
    assert provenance["seeds"] == {"training": 1} and provenance["dataset_fingerprint"] == "sha256:0"
    assert provenance["date"].endswith("+00:00")
    assert checkpoint_module._commit(tmp_path) is None
    write_checkpoint(tmp_path / "starter", {}, {}, CONTRACT, provenance)
    assert read_checkpoint(tmp_path / "starter").provenance["commit"] == provenance["commit"]


def test_commit_is_of_the_packages_own_checkout(tmp_path):
    for arguments in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"),
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    commit = checkpoint_module._commit(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "package").mkdir()
    assert checkpoint_module._commit(tmp_path / "package") is None
    (tmp_path / "package" / "file").touch()
    assert checkpoint_module._commit(tmp_path) == f"{commit}+changes"


def test_the_contract_is_read_without_torch(tmp_path):
    folder = write(tmp_path / "starter")
    code = (
        "import sys; from saccade.policy.checkpoint.folder import read_contract;"
        f"print(read_contract({str(folder)!r}).chunk, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
