"""Digests of weights: they show whether skills have the same base weights, independent of folder names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch

from ..checkpoint.contents import MODEL_PREFIX
from ..pretrained.adaptation import EXPERT_PREFIX
from .profile import ROUTING_PREFIX


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of the names, dtypes, shapes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def base_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digests that a skill records of its base weights.

    A skill's checkpoint holds the base weights next to its LoRA factors, except for the expert, which is fully trained.
    Merging needs the base weights of the expert again.

    Args:
        tensors: The base weights by their names in the network.

    Returns:
        `weights`: digest of all weights; `expert`: digest of those of the expert.
    """
    expert = {name: tensor for name, tensor in tensors.items() if name.startswith(EXPERT_PREFIX)}
    return {"weights": weights_digest(tensors), "expert": weights_digest(expert)}


def learned_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of the tensors that a skill learned: LoRA factors, expert and profile.

    Merging reads only these tensors of a skill, so it verifies them without reading the whole file.

    Args:
        tensors: The tensors of the skill's checkpoint.
    """
    names = [
        name for name in tensors if re.search(rf"\.lora_[AB]\.|^{MODEL_PREFIX}{EXPERT_PREFIX}|^{ROUTING_PREFIX}", name)
    ]
    return weights_digest({name: tensors[name] for name in names})
