"""The contents of a checkpoint: the network's weights, its architecture and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ..network.architecture import Architecture
from ..network.model import SaccadeModel
from ..network.tokenizer import TOKENIZER_FILE
from .folder import Checkpoint


def architecture_from_dict(values: Mapping[str, Any], source: str) -> Architecture:
    """Build an architecture from the values in a checkpoint's `config.json`.

    A missing field is newer than the checkpoint; its default is what older versions did.

    Args:
        values: Values by field.
        source: The file, for errors.

    Raises:
        InputError: This version does not know a field, or the values do not fit together.
    """
    unknown = sorted(set(values) - set(Architecture.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"{source}: architecture",
            got=f"unknown fields: {', '.join(unknown)}",
            expected="the fields that this version of Saccade knows",
            fix="Install the version of Saccade that wrote the checkpoint.",
        )
    return Architecture(**values)


MODEL_PREFIX = "model."
"""Prefix of the network's weights in a checkpoint."""

SKILLS_FILE = "skills.json"
"""The file of a merged checkpoint that lists its skills and how they were merged."""


def network_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights by their names in the network, without the tensors of merging and its router."""
    return {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(MODEL_PREFIX)
    }


def read_tokenizer_text(folder: str | Path, checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    """Return the text of a checkpoint's `tokenizer.json`; None for byte tokens.

    Raises:
        InputError: The architecture needs it, and the checkpoint does not have it.
    """
    if architecture.tokenizer == "bytes":
        return None
    if TOKENIZER_FILE not in checkpoint.provenance["files"]:
        raise InputError(
            f"checkpoint {folder}",
            got=f"no {TOKENIZER_FILE}",
            expected="the trunk's tokenizer",
            fix="Copy the checkpoint again.",
        )
    return (Path(folder) / TOKENIZER_FILE).read_text(encoding="utf-8")


def load_tensors(
    model: SaccadeModel, tensors: Mapping[str, torch.Tensor], source: str, *, initialize_missing: bool = False
) -> tuple[str, ...]:
    """Load all weights of a network.

    Args:
        model: The network. One on the meta device takes the tensors themselves, on their device and in their dtype.
        tensors: Weights by name.
        source: The checkpoint, for errors.
        initialize_missing: Whether the history part, if all its weights are missing, starts as the identity.

    Returns:
        The names of the parameters that were initialized.

    Raises:
        InputError: Weights are missing, left over or of another shape.
    """
    tensors, new_parameters = dict(tensors), {}
    history = model.history
    if initialize_missing and history is not None and not any(name.startswith("history.") for name in tensors):
        reference = next(iter(tensors.values()))
        history.to_empty(device=reference.device).to(reference.dtype).start_as_identity()
        new_parameters = {f"history.{name}": tensor for name, tensor in history.state_dict().items()}
    tensors |= new_parameters
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    other = sorted(name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape)
    if missing or extra or other:
        parts = [
            f"{len(names)} {what} ({names[0]}, ...)"
            for what, names in (("missing", missing), ("left over", extra), ("of another shape", other))
            if names
        ]
        raise InputError(
            f"weights in {source}",
            got="; ".join(parts),
            expected=f"exactly the {len(own)} tensors of this architecture",
            fix="Take config.json and the weights from the same checkpoint.",
        )
    on_meta_device = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(tensors, assign=on_meta_device)
    if on_meta_device:
        model.trunk.restore_rotation()
    return tuple(new_parameters)
