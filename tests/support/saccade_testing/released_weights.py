"""Small checkpoint folders in the layout of CogVLA and OpenVLA-OFT releases, with weights computed from their names.

Nothing big is stored: `recorded/*_layout.json` lists names, shapes and dtypes, every tensor follows from its name, and
`recorded/*.safetensors` holds what the public code computed on exactly these folders (see `recorded/README.md`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from . import TESTS

RECORDED = TESTS / "policy" / "recorded"
VARIANTS = ("cogvla", "oft", "oft_film")
SHARDS = 3
TOKENS = ("pos_embed", "cls_token", "reg_token", "latent", "vision_aggr_featurizer", "vision_aggr_fused_featurizer")


def named_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 tensor that belongs to a name: normal numbers seeded by the name's CRC-32, scaled by its kind.

    Norm weights 1 + 0.1 z, LayerScale 0.5 + 0.1 z, biases 0.1 z, embeddings and learned tokens 0.5 z, the rest
    z / sqrt(fan in).
    """
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("scale_factor"):
        scale, offset = 0.1, 0.5
    elif len(shape) == 1:
        scale, offset = 0.1, 1.0 if name.endswith(".weight") else 0.0
    elif name.endswith(("embed_tokens.weight", *TOKENS)):
        scale, offset = 0.5, 0.0
    else:
        scale, offset = float(np.prod(shape[1:])) ** -0.5, 0.0
    return torch.from_numpy(normal * np.float32(scale) + np.float32(offset))


def layout(variant: str) -> dict:
    """Return what a variant's released folder holds: its tensors file by file, and its documents."""
    return json.loads((RECORDED / f"{variant}_layout.json").read_text())


def listed(patterns: dict) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield name, shape and dtype of a file's tensors; `{8-31}` in a pattern stands for the numbers 8 to 31."""
    for pattern, (shape, dtype) in patterns.items():
        numbers = re.search(r"\{(\d+)-(\d+)\}", pattern)
        if numbers is None:
            yield pattern, tuple(shape), dtype
            continue
        for number in range(int(numbers[1]), int(numbers[2]) + 1):
            yield pattern.replace(numbers[0], str(number)), tuple(shape), dtype


def tensors(patterns: dict, *, released_types: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, in float32 or with the dtypes of the release."""
    made = {}
    for name, shape, dtype in listed(patterns):
        weight = named_weight(name, shape)
        made[name] = weight.to(getattr(torch, dtype)) if released_types else weight
    return made


def write_released(folder: Path, variant: str, *, released_types: bool = False) -> Path:
    """Write a variant's folder with the language model merged, as `get_vla` of the public code reads it."""
    content = layout(variant)
    _write_parts(folder, content, "merged", released_types)
    adapter = tensors(content["adapter"])
    model = tensors(content["merged"]["model.safetensors"])
    scaling = content["documents"]["lora_adapter/adapter_config.json"]
    scaling = scaling["lora_alpha"] / scaling["r"]
    for name, weight in model.items():
        factor = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if factor.format("A") in adapter:
            down, up = adapter[factor.format("A")].flatten(1), adapter[factor.format("B")].flatten(1)
            model[name] = weight + scaling * (up @ down).view_as(weight)
    if released_types:
        kinds = {name: dtype for name, _, dtype in listed(content["merged"]["model.safetensors"])}
        model = {name: weight.to(getattr(torch, kinds[name])) for name, weight in model.items()}
    _write_shards(folder, model)
    return folder


def write_unmerged(folder: Path, base: Path, variant: str, *, released_types: bool = False) -> Path:
    """Write a variant's folder as training leaves it without merging, and the OpenVLA `base` that it adapts.

    The two together describe the same policy as `write_released`.
    """
    content = layout(variant)
    _write_parts(folder, content, "unmerged", released_types)
    _write_shards(base, tensors(content["base"], released_types=released_types))
    (base / "config.json").write_text(json.dumps(content["base_config"], indent=2))
    return folder


def _write_parts(folder: Path, content: dict, kind: str, released_types: bool) -> None:
    """Write all but the model: components, adapter, documents, tokenizer."""
    (folder / "lora_adapter").mkdir(parents=True)
    for name, patterns in content[kind].items():
        if name.endswith(".pt"):
            torch.save(tensors(patterns, released_types=released_types), folder / name)
    adapter = tensors(content["adapter"], released_types=released_types)
    for name, weight in adapter.items():
        if ".base_layer." in name:  # OpenVLA-OFT's adapter carries the base's own output layer along
            own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            adapter[name] = named_weight(own, tuple(weight.shape)).to(weight.dtype)
    save_file(adapter, folder / "lora_adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    for name, document in content["documents"].items():
        if kind == "unmerged" and name not in content["unmerged_documents"]:
            continue
        (folder / name).write_text(json.dumps(document, indent=2))
    (folder / "tokenizer.json").write_text((RECORDED / "tokenizer.json").read_text())


def _write_shards(folder: Path, model: dict[str, torch.Tensor]) -> None:
    """Write a model in several shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(model)
    size, index = -(-len(names) // SHARDS), {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {name: model[name].contiguous() for name in names[shard * size : (shard + 1) * size]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(part, file))
    total = sum(weight.numel() * weight.element_size() for weight in model.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))
