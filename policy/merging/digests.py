"""Where a skill began: the digest by which skills of one beginning are known, whatever its folder was called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch

from ..checkpoint.contents import PREFIX as MODEL_PREFIX
from ..pretrained.adaptation import EXPERT_PREFIX
from .profile import ROUTING_PREFIX


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named weights: of names, dtypes, shapes and bytes, in the names' order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def base_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return what a skill records of the weights that it begins with: `weights`, all of them, and the `expert` alone.

    A skill's checkpoint holds the others as they were, beside its factors; those of the expert are needed again when
    skills are merged.
    """
    expert = {name: tensor for name, tensor in tensors.items() if name.startswith(EXPERT_PREFIX)}
    return {"weights": weights_digest(tensors), "expert": weights_digest(expert)}


def learned_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of what a skill has learned, from its checkpoint's tensors: factors, expert, profile.

    It is all that merging reads of a skill, so that nothing else has to be read to know that it is whole.
    """
    names = [
        name for name in tensors if re.search(rf"\.lora_[AB]\.|^{MODEL_PREFIX}{EXPERT_PREFIX}|^{ROUTING_PREFIX}", name)
    ]
    return weights_digest({name: tensors[name] for name in names})
