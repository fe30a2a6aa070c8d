"""What a training needs to go on exactly where it stopped: weights, optimiser, average and step, all as safetensors."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..errors import InputError
from .averaging import WeightAverage


@dataclass(frozen=True)
class TrainingState:
    """Steps done and the seconds that they took."""

    step: int
    seconds: float


def write_state(
    folder: Path,
    state: TrainingState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
) -> None:
    """Write the state; a kill at any moment leaves the old one or the new one, whole."""
    staging, previous = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".previous")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tensors = {f"weights/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.average.items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, staging / "state.safetensors")
    (staging / "state.json").write_text(json.dumps({**asdict(state), "updates": average.updates}))
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.rename(folder, previous)
    os.rename(staging, folder)
    shutil.rmtree(previous, ignore_errors=True)


def read_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> TrainingState | None:
    """Restore a state into model, optimiser and average; None when there is none yet.

    Raises InputError when it belongs to another network.
    """
    previous = folder.with_name(folder.name + ".previous")
    if not folder.exists() and previous.exists():
        os.rename(previous, folder)
    if not folder.exists():
        return None
    tensors = load_file(folder / "state.safetensors")
    values = json.loads((folder / "state.json").read_text())
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != own:
        raise InputError(
            f"training state {folder}",
            got="the weights of another network",
            expected="the network that the options describe",
            fix="Resume with the options of the first run, or train into a new folder.",
        )
    model.load_state_dict(weights)
    for name, tensor in average.average.items():
        tensor.copy_(tensors[f"average/{name}"])
    average.updates = values["updates"]
    restored = optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": restored["param_groups"]})
    return TrainingState(step=values["step"], seconds=values["seconds"])
