"""A checkpoint folder: weights, configuration, contract and provenance, written atomically and verified when read.

    model.safetensors   the weights, never a pickle
    config.json         how to build the network
    contract.json       conventions and statistics, see `contract`
    provenance.json     the origin of the checkpoint, and the sha256 of every other file

Only the functions that read or write weights import torch and safetensors: `read_contract` runs without them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...disk import flush, replace_folder, report_disk_errors, restore_previous
from ...errors import InputError
from ..contract import Contract

if TYPE_CHECKING:
    import torch

MODEL_FILE, CONFIG_FILE, CONTRACT_FILE, PROVENANCE_FILE = (
    "model.safetensors",
    "config.json",
    "contract.json",
    "provenance.json",
)
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
DISK_FIX = "Free space or choose another folder; what was there before is untouched."
COPY_AGAIN = "The file was damaged after it was written: copy the checkpoint again, or train again."
PACKAGES = (
    *("lerobot_policy_saccade", "accelerate", "gymnasium", "lerobot", "mujoco", "numpy"),
    *("safetensors", "timm", "torch", "transformers", "triton"),
)


STARTER_FOLDER = Path(__file__).resolve().parents[2] / "starter"
"""The checkpoint in this package."""


def find_checkpoint(name: str) -> Path:
    """Return a checkpoint's folder: `starter` is the one in this package; the folder of a training works, too."""
    if name == "starter":
        return STARTER_FOLDER
    folder = Path(name)
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint folder.

    Attributes:
        tensors: Weights by name, on the CPU.
        config: How to build the network.
        contract: Conventions and statistics.
        provenance: The origin of the checkpoint, and the sha256 of every other file.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    contract: Contract
    provenance: dict[str, Any]


def write_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    contract: Contract,
    provenance: Mapping[str, Any],
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint; an earlier checkpoint in the folder is replaced.

    The files are written to a folder beside it, flushed to the disk and then renamed, so that a kill or a full disk
    leaves the earlier checkpoint.

    Args:
        folder: The checkpoint folder.
        tensors: Weights by name.
        config: How to build the network.
        contract: Conventions and statistics.
        provenance: The result of `collect_provenance`.
        extra_files: Further texts by plain file name, such as a model card.

    Returns:
        The folder, absolute.

    Raises:
        InputError: The folder has other files, a name is reserved or not plain, or the disk refuses.
    """
    folder = Path(os.path.abspath(folder))
    texts = {
        CONFIG_FILE: _json_text(config),
        CONTRACT_FILE: contract.to_json(),
        **_check_extra_names(extra_files or {}),
    }
    # Through JSON once, so that the digest is that of what a reader parses.
    record = json.loads(_json_text(provenance))
    if reserved := {"files", "digest"} & set(record):
        fix = "Rename the key: these two hold the sha256 of the files."
        raise InputError("provenance", got=f"the key {min(reserved)}", expected="other keys", fix=fix)
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        with report_disk_errors(folder, fix=DISK_FIX):
            _refuse_foreign_files(folder)
            shutil.rmtree(staging, ignore_errors=True)  # left by an earlier run that was killed
            staging.mkdir(parents=True)
            _write_tensors(staging / MODEL_FILE, tensors)
            for name, text in texts.items():
                (staging / name).write_text(text, encoding="utf-8")
            record["files"] = {name: _file_record(staging / name) for name in sorted([MODEL_FILE, *texts])}
            (staging / PROVENANCE_FILE).write_text(_json_text({**record, "digest": _digest(record)}), encoding="utf-8")
            for path in (*staging.iterdir(), staging):
                flush(path)
            replace_folder(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read and verify a checkpoint; nothing is unpickled.

    Raises:
        InputError: A file is missing, its sha256 is not the recorded one, or the contract does not parse.
    """
    import safetensors
    import safetensors.torch

    folder = Path(folder)
    checkpoint = verify_checkpoint(folder)
    try:
        tensors = safetensors.torch.load_file(folder / MODEL_FILE)
    except safetensors.SafetensorError as error:
        raise InputError(str(folder / MODEL_FILE), got=error, expected="safetensors", fix=COPY_AGAIN) from None
    return replace(checkpoint, tensors=tensors)


def verify_checkpoint(folder: str | Path, *, weights: bool = True) -> Checkpoint:
    """Verify a checkpoint and read it without its weights, for callers that open the weights themselves.

    Args:
        folder: The checkpoint folder.
        weights: Whether to verify the file of weights, too.

    Raises:
        InputError: As in `read_checkpoint`.
    """
    folder = Path(folder)
    provenance = _verify_provenance(folder)
    contract = read_contract(folder, provenance)
    for name in provenance["files"]:
        if weights or name != MODEL_FILE:
            _verify_file(folder, name, provenance)
    return Checkpoint({}, _read_object(folder / CONFIG_FILE), contract, provenance)


def read_contract(folder: str | Path, provenance: Mapping[str, Any] | None = None) -> Contract:
    """Read and verify a checkpoint's contract alone, without torch; `provenance` saves reading that file again."""
    folder = Path(folder)
    _verify_file(folder, CONTRACT_FILE, provenance or _verify_provenance(folder))
    return Contract.from_json((folder / CONTRACT_FILE).read_bytes(), str(folder / CONTRACT_FILE))


def collect_provenance(command: list[str], seeds: Mapping[str, int], dataset_fingerprint: str | None) -> dict[str, Any]:
    """Return the origin of a checkpoint: command, seeds, dataset, package versions, commit, date and platform.

    `commit` is None for an installed package and ends in "+changes" where the checkout differs from its commit.
    """
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": list(command),
        "seeds": dict(seeds),
        "dataset_fingerprint": dataset_fingerprint,
        "commit": _commit(Path(__file__).resolve().parents[2]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _commit(package: Path) -> str | None:
    """Return the commit of the checkout whose root is `package`; a package installed into another checkout has none."""

    def git_output(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git_output("rev-parse", "--show-toplevel")).resolve() != package:
            return None
        return git_output("rev-parse", "HEAD") + ("+changes" if git_output("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _verify_provenance(folder: Path) -> dict[str, Any]:
    _require_files(folder)
    path = folder / PROVENANCE_FILE
    provenance = _read_object(path)
    digest = provenance.pop("digest", None)
    if digest != _digest(provenance):
        raise InputError(str(path), got="contents that do not match their digest", expected="its own", fix=COPY_AGAIN)
    if not _is_file_record(provenance.get("files")):
        raise InputError(f"{path}: files", got="no list of files", expected="bytes and sha256 of each", fix=COPY_AGAIN)
    return provenance


def _is_file_record(files: object) -> bool:
    if not isinstance(files, dict) or not {MODEL_FILE, CONFIG_FILE, CONTRACT_FILE} <= set(files):
        return False
    return all(map(_is_plain_file_name, files)) and all(
        isinstance(each, dict) and set(each) == {"bytes", "sha256"} for each in files.values()
    )


def _require_files(folder: Path) -> None:
    restore_previous(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        fix = f"Give the folder that holds {MODEL_FILE} and {CONTRACT_FILE}."
        raise InputError(f"checkpoint {folder}", got=got, expected="a folder", fix=fix)
    for name in (CONTRACT_FILE, MODEL_FILE, CONFIG_FILE, PROVENANCE_FILE):
        if (folder / name).is_file():
            continue
        fix = COPY_AGAIN
        if name == CONTRACT_FILE:
            fix = f"Copy the {name} that training wrote: a policy must not act without its conventions and statistics."
        if name == MODEL_FILE and any(path.suffix in PICKLE_SUFFIXES for path in folder.iterdir()):
            fix = "Convert the weights to safetensors first: pickled weights are never opened."
        raise InputError(str(folder / name), got="no such file", expected="a complete checkpoint", fix=fix)


def _verify_file(folder: Path, name: str, provenance: Mapping[str, Any]) -> None:
    path, recorded = folder / name, provenance["files"][name]
    if not path.is_file():
        raise InputError(
            str(path), got="no such file", expected=f"the one recorded in {PROVENANCE_FILE}", fix=COPY_AGAIN
        )
    got = _file_record(path)
    if got != recorded:
        shown, expected = (f"{each['bytes']} bytes with sha256 {each['sha256'][:12]}" for each in (got, recorded))
        raise InputError(str(path), got=shown, expected=expected, fix=COPY_AGAIN)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), got=f"text that is no JSON ({error})", expected="JSON", fix=COPY_AGAIN) from None
    if not isinstance(value, dict):
        raise InputError(str(path), got=type(value).__name__, expected="a JSON object", fix=COPY_AGAIN)
    return value


def _is_plain_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..")


def _check_extra_names(extra_files: Mapping[str, str]) -> Mapping[str, str]:
    for name in extra_files:
        if not _is_plain_file_name(name) or name in (MODEL_FILE, CONFIG_FILE, CONTRACT_FILE, PROVENANCE_FILE):
            fix = "Choose another file name, without a folder."
            raise InputError(f"extra file {name!r}", got="a reserved name or a path", expected="a plain name", fix=fix)
    return extra_files


def _refuse_foreign_files(folder: Path) -> None:
    """Raise InputError unless the folder is absent, empty, or has only files that `write_checkpoint` wrote."""
    fix = "Choose another folder, or move its contents elsewhere first."
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"checkpoint {folder}", got="a file or a link", expected="a folder or nothing", fix=fix)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present:
        return
    known: set[str] = set()
    if PROVENANCE_FILE in present:
        # A damaged checkpoint may be replaced, too; its provenance cannot list more than the four files.
        with contextlib.suppress(InputError):
            known = set(_read_object(folder / PROVENANCE_FILE).get("files", ()))
        known |= {MODEL_FILE, CONFIG_FILE, CONTRACT_FILE, PROVENANCE_FILE}
    foreign = sorted(present - known)
    if foreign:
        got = f"a folder that holds {', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''}"
        raise InputError(f"checkpoint {folder}", got=got, expected="a checkpoint, or an empty folder", fix=fix)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    import safetensors
    import safetensors.torch

    plain, seen = {}, set()
    for name, learned in tensors.items():
        tensor = learned.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights, views): copy the second one.
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        safetensors.torch.save_file(plain, path)
    except safetensors.SafetensorError as error:
        raise OSError(0, str(error)) from error


def _file_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
