"""Small checkpoint folders in the layout of VLA-Adapter and MergeVLA releases, with weights computed from their names.

`recorded/vla_adapter_layout.json` and `recorded/mergevla_layout.json` list names, shapes and types; what the public
code computed on exactly these folders lies beside them (see `recorded/vla_adapter_README.md`).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .released_weights import layout, listed
from .released_weights import named_weight as plain_weight

TRAINED = "30000_checkpoint.pt"
"""How the names of the pickled parts end as training writes them; published folders have `checkpoint.pt` instead."""

SCALING = 2.0
"""Scaling of a LoRA product: lora_alpha / r."""


def named_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 tensor that belongs to a name, as `released_weights` does it.

    Two kinds of tensor are its own: action queries 0.5 z, as embeddings are, and gates 0.5 + 0.5 z, so that none is 0.
    """
    # What the plain rule makes of these two is z / sqrt(width) and 0.1 z.
    if name.endswith("action_queries.weight"):
        return plain_weight(name, shape) * (0.5 * shape[1] ** 0.5)
    if name.endswith("gating_factor"):
        return plain_weight(name, shape) * 5 + 0.5
    return plain_weight(name, shape)


def tensors(patterns: dict, *, released_types: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a file's list, in float32 or with the dtypes of the release."""
    return {
        name: named_weight(name, shape).to(getattr(torch, dtype) if released_types else torch.float32)
        for name, shape, dtype in listed(patterns)
    }


def write_released(
    folder: Path, variant: str, *, original: bool = False, ending: str = TRAINED, released_types: bool = False
) -> Path:
    """Write the folder of a fine-tuned policy and return it; `variant` is "vla_adapter" or "mergevla".

    `original`: with the action head of VLA-Adapter before "Pro". `released_types`: bfloat16, as published.
    """
    content = layout(variant)
    (folder / "lora_adapter").mkdir(parents=True)
    parts = {**content["merged"], **(content["original"] if original else {})}
    model = tensors(parts.pop("model.safetensors"), released_types=released_types)
    save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    for name, patterns in parts.items():
        torch.save(tensors(patterns, released_types=released_types), folder / name.replace(TRAINED, ending))
    adapter = adapter_tensors(variant)
    if released_types:
        adapter = {name: weight.bfloat16() for name, weight in adapter.items()}
    save_file(adapter, folder / "lora_adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    for name, document in content["documents"].items():
        (folder / name).write_text(json.dumps(document, indent=2))
    return folder


def write_base(folder: Path, variant: str, *, released_types: bool = False) -> Path:
    """Write the folder of the vision-language model that `write_released` has adapted, before that, and return it.

    Model and adapter obey merged = base + 2 B A; the action queries of the base are zeros.
    """
    folder.mkdir(parents=True)
    content, adapter = layout(variant), adapter_tensors(variant)
    model = tensors(content["merged"]["model.safetensors"])
    model["action_queries.weight"].zero_()
    for name, weight in model.items():
        factor = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if factor.format("A") in adapter:
            down, up = adapter[factor.format("A")].flatten(1), adapter[factor.format("B")].flatten(1)
            weight.sub_(SCALING * (up @ down).view_as(weight))
    if released_types:
        model = {name: weight.bfloat16() for name, weight in model.items()}
    save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content["documents"]["config.json"], indent=2))
    return folder


def adapter_tensors(variant: str) -> dict[str, torch.Tensor]:
    """Return what `lora_adapter/adapter_model.safetensors` holds.

    The output layer is adapted too, but no loss reaches it: its second factor stays zero. Its own weight, the
    embeddings that it is tied to, is saved along.
    """
    made = tensors(layout(variant)["adapter"])
    output = "base_model.model.language_model.lm_head."
    made[output + "lora_B.weight"].zero_()
    kept = output + "base_layer.weight"
    made[kept] = named_weight("language_model.model.embed_tokens.weight", tuple(made[kept].shape))
    return made
