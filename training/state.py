"""The state of a training, to resume it exactly: weights, optimizer moments, averaged weights and step."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..disk import flush, previous_folder, replace_folder, report_disk_errors, restore_previous
from ..errors import InputError
from .averaging import WeightAverage

WEIGHTS_PREFIX, AVERAGE_PREFIX, OPTIMIZER_PREFIX = "weights/", "average/", "optimizer/"
TENSORS_FILE, NUMBERS_FILE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Progress of a training: finished steps and the seconds that they took."""

    step: int
    seconds: float


def write_state(
    folder: Path,
    state: TrainingState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
) -> None:
    """Write the state of a training; a kill or a full disk leaves the old or the new state complete.

    Args:
        folder: Folder of the state; an older state there is replaced.
        state: Progress of the training.
        model: The network.
        optimizer: Its optimizer.
        average: The average of its weights.

    Raises:
        InputError: The disk is full or cannot be written.
    """
    tensors = {WEIGHTS_PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    tensors |= {AVERAGE_PREFIX + name: tensor for name, tensor in average.average.items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"{OPTIMIZER_PREFIX}{index}/{name}"] = torch.as_tensor(value)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    staging = _staging(folder)
    with report_disk_errors(folder):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            _write_tensors(staging / TENSORS_FILE, plain)
            (staging / NUMBERS_FILE).write_text(json.dumps({**asdict(state), "updates": average.updates}))
            for path in (*staging.iterdir(), staging):
                flush(path)
            replace_folder(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def read_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> TrainingState | None:
    """Restore a state into `model`, `optimizer` and `average`.

    Returns:
        The progress of the training; None if no state was written yet.

    Raises:
        InputError: The state is damaged or belongs to another network; nothing is restored then.
    """
    older = folder.with_name(f"{folder.name}.previous")
    if not folder.exists() and older.is_dir():
        older.rename(folder)  # Version 0.1.0 kept the previous state there, and a kill came between its two renames.
    restore_previous(folder)
    if not folder.exists():
        return None
    tensors = _read_tensors(folder / TENSORS_FILE)
    step, seconds, updates = _read_numbers(folder / NUMBERS_FILE)
    weights, averaged = _with_prefix(WEIGHTS_PREFIX, tensors), _with_prefix(AVERAGE_PREFIX, tensors)
    if _shapes(weights) != _shapes(model.state_dict()) or _shapes(averaged) != _shapes(average.average):
        raise InputError(
            f"training state {folder}",
            got="the weights of another network",
            expected="weights of the network that the options describe",
            fix="Resume with the options of the first run, or train into a new folder.",
        )
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _with_prefix(OPTIMIZER_PREFIX, tensors).items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = tensor
    model.load_state_dict(weights)
    for name, tensor in average.average.items():
        tensor.copy_(averaged[name])
    average.updates = updates
    # The parameter groups hold only options of the training, and these have not changed.
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingState(step, seconds)


def discard_state(folder: Path) -> None:
    """Delete a state, and what an interrupted `write_state` has left."""
    for path in (folder, _staging(folder), previous_folder(folder)):
        shutil.rmtree(path, ignore_errors=True)


def _staging(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(0, str(error)) from error


def _with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged_error(path, error, "a complete safetensors file") from error


def _read_numbers(path: Path) -> tuple[int, float, int]:
    """Return finished steps, seconds and averaged steps."""
    kinds = {"step": (int,), "seconds": (int, float), "updates": (int,)}
    try:
        numbers = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged_error(path, error, "JSON") from error
    wrong = not isinstance(numbers, dict) or any(type(numbers.get(name)) not in kind for name, kind in kinds.items())
    if wrong:
        raise _damaged_error(path, numbers, f"numbers named {', '.join(kinds)}")
    return numbers["step"], numbers["seconds"], numbers["updates"]


def _damaged_error(path: Path, got: object, expected: str) -> InputError:
    fix = "The file was damaged: train again with --overwrite, or from its checkpoint with --init."
    return InputError(str(path), got=got, expected=expected, fix=fix)
