"""Load a checkpoint folder as a policy that is ready to act."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError
from .checkpoint.contents import SKILLS_FILE, architecture_from_dict, load_tensors, network_tensors, read_tokenizer_text
from .checkpoint.folder import read_checkpoint
from .core import PolicyCore
from .network.architecture import ENABLEABLE_FIELDS
from .network.presets import with_enabled_fields
from .pretrained.adaptation import read_lora_adaptation


def load_policy(
    folder: str | Path,
    *,
    fold_lora: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    change: Sequence[str] = (),
) -> PolicyCore:
    """Load a checkpoint folder as a policy in evaluation mode.

    Args:
        folder: The checkpoint folder.
        fold_lora: Whether to merge LoRA factors into the weights; false keeps them, for further training.
        device: Device of the weights.
        dtype: Floating point type of the weights.
        change: Fields of the architecture to change, FIELD=VALUE, see `architecture.with_enabled_fields`. New parts
            start as the identity; `PolicyCore.new_parameters` names their parameters.

    Raises:
        InputError: The checkpoint is incomplete, damaged or of another version, or a change does not fit.
    """
    checkpoint = read_checkpoint(folder)
    values = checkpoint.config.get("architecture")
    if not isinstance(values, dict):
        raise InputError(
            f"{folder}/config.json",
            got="no architecture",
            expected="a Saccade checkpoint",
            fix="Give the path of a Saccade checkpoint.",
        )
    stored_architecture = architecture_from_dict(values, f"{folder}/config.json")
    architecture = with_enabled_fields(stored_architecture, change)
    adds_parts = any(
        getattr(architecture, name) and not getattr(stored_architecture, name) for name in ENABLEABLE_FIELDS
    )
    adaptation = read_lora_adaptation(checkpoint.config, f"{folder}/config.json")
    text = read_tokenizer_text(folder, checkpoint, architecture)
    if SKILLS_FILE in checkpoint.provenance["files"]:
        from .merging.merged import load_merged

        return load_merged(folder, checkpoint, architecture, text, device=device, dtype=dtype)
    # On the meta device: seven billion random numbers, all replaced later, take minutes and 28 GB.
    with torch.device("meta"):
        core = PolicyCore(architecture, checkpoint.contract, text)
        if adaptation is not None:
            core.add_lora(adaptation)
    # Copied: tensors in the file are not aligned, and CPU kernels round unaligned ones in another order.
    tensors = {name: tensor.to(device, dtype, copy=True) for name, tensor in network_tensors(checkpoint).items()}
    core.new_parameters = load_tensors(core.model, tensors, str(folder), initialize_missing=adds_parts)
    if fold_lora:
        core.fold_lora()
    core.model.eval()
    return core
