"""Read what a checkpoint holds: the network's weights, its architecture and its tokenizer."""

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
    """Read an architecture back; raises InputError for fields that this version does not know.

    A field that is missing is younger than the checkpoint; its default is what was done before there was a choice.
    """
    unknown = sorted(set(values) - set(Architecture.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"{source}: architecture",
            got=f"unknown fields: {', '.join(unknown)}",
            expected="the fields that this version of Saccade knows",
            fix="Use the version that wrote the checkpoint.",
        )
    return Architecture(**values)


PREFIX = "model."
"""How the names of the network's weights begin in a checkpoint."""


SKILLS_FILE = "skills.json"
"""The file of a merged checkpoint that says which skills it has, and how they were merged."""


def network_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights by their names in the network: without what merging and its router go by."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(PREFIX)}


def read_tokenizer_text(folder: str | Path, checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    """Return the text of a checkpoint's tokenizer, None where it reads bytes; InputError if it is not part of it."""
    if architecture.tokenizer == "bytes":
        return None
    if TOKENIZER_FILE not in checkpoint.provenance["files"]:
        raise InputError(
            f"checkpoint {folder}", got=f"no {TOKENIZER_FILE}", expected="the trunk's tokenizer", fix="Copy it again."
        )
    return (Path(folder) / TOKENIZER_FILE).read_text(encoding="utf-8")


def load_tensors(
    model: SaccadeModel, tensors: Mapping[str, torch.Tensor], source: str, *, initialize_missing: bool = False
) -> tuple[str, ...]:
    """Load weights, every one of them; raises InputError that names what is missing, left over or of another shape.

    A model that was built on the meta device takes the tensors themselves, on their device and in their dtype. With
    `initialize_missing`, a part that has a method `start_as_identity`, and of which nothing is there, starts so; the names of such
    parameters are returned.
    """
    tensors, new_parameters = dict(tensors), {}
    for name, part in model.named_modules():
        if (
            initialize_missing
            and hasattr(part, "start_as_identity")
            and not any(each.startswith(f"{name}.") for each in tensors)
        ):
            reference = next(iter(tensors.values()))
            part.to_empty(device=reference.device).to(reference.dtype).start_as_identity()
            new_parameters |= {f"{name}.{each}": tensor for each, tensor in part.state_dict().items()}
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
            fix="The configuration and the weights are not of one checkpoint.",
        )
    on_meta_device = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(tensors, assign=on_meta_device)
    if on_meta_device:
        model.trunk.restore_rotation()
    return tuple(new_parameters)
