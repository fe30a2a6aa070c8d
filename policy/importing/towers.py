"""The vision towers of OpenVLA and its descendants, as they lie in released files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InputError
from .released import ReleasedCheckpoint
from .weights import Conversion, WeightSource, merge_lora

if TYPE_CHECKING:
    from ...perception.pretrained_tower import PretrainedTower

type ColourNormalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the three colours, as fractions of white."""

RELEASED_NAMES = ("featurizer", "fused_featurizer")
"""What the first and the second tower are called."""

UNUSED_LAYERS = r"(blocks\.{last}\.|norm\.|fc_norm\.|attn_pool\.|head)"
"""What follows the block whose features are taken."""


def tower_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the towers' names in timm; raises InputError unless they are two, with timm's own activations."""
    names, layers = config.get("timm_model_ids"), config.get("timm_override_act_layers")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        fix = "Only checkpoints with two towers, such as dinosiglip-vit-so-224px, can be imported."
        raise InputError("config.json: timm_model_ids", got=names, expected="the names of two towers", fix=fix)
    if layers is not None and (not isinstance(layers, list) or any(layers)):
        fix = "Towers with other activations than timm gives them cannot be imported."
        raise InputError("config.json: timm_override_act_layers", got=layers, expected="null for each", fix=fix)
    return tuple(names)


def image_size(config: Mapping[str, Any]) -> int:
    """Return the height and width of the pictures in pixels; raises InputError unless both towers have the same."""
    sizes = config.get("image_sizes")
    if not isinstance(sizes, list) or len(set(map(str, sizes))) != 1 or type(sizes[0]) is not int or sizes[0] < 1:
        fix = "Only towers that see pictures of the same size can be imported."
        raise InputError("config.json: image_sizes", got=sizes, expected="one size twice", fix=fix)
    return sizes[0]


def released_colour_normalization(released: ReleasedCheckpoint) -> list[ColourNormalization]:
    """Return by what the pictures of each tower are normalised.

    `tvf_normalize_params` wins over `means` and `stds`, as in the released code: the former were rounded to bfloat16
    when the checkpoint was converted, and training has used them so.
    """
    preprocessor = released.read_json("preprocessor_config.json")
    given = preprocessor.get("tvf_normalize_params")
    if not given:
        means, stds = preprocessor.get("means"), preprocessor.get("stds")
        both = isinstance(means, list) and isinstance(stds, list)
        given = [{"mean": mean, "std": std} for mean, std in zip(means, stds, strict=False)] if both else (means, stds)
    towers = given if isinstance(given, list) and all(isinstance(each, dict) for each in given) else []
    colour_normalization = [(each.get("mean"), each.get("std")) for each in towers]
    fits = all(_are_three_numbers(part) for pair in colour_normalization for part in pair) and all(
        min(std) > 0 for _, std in colour_normalization
    )
    if len(colour_normalization) != 2 or not fits:
        fix = "Copy the file again from the release."
        what = "preprocessor_config.json: tvf_normalize_params"
        raise InputError(what, got=given, expected="mean and std of three colours for two towers", fix=fix)
    return colour_normalization


def add_tower(
    conversion: Conversion,
    target: str,
    tower: PretrainedTower,
    weights: WeightSource,
    prefix: str,
    colour_normalization: ColourNormalization,
    lora_scaling: float,
) -> None:
    """Convert a tower's encoder: theirs under `prefix` becomes ours under `target`, and what it never runs is ignored.

    Linear layers and the patch embedding may carry factors of an adapter, with its `lora_scaling`, and blocks may be wrapped
    for FiLM. Colours normalised otherwise than ours become part of the patch embedding.
    """
    weights.ignore(re.escape(prefix) + UNUSED_LAYERS.format(last=tower.depth), "tower behind the block that is read")
    has_film_wrappers = any(name.startswith(prefix) and ".block." in name for name in weights)
    names = list(tower.encoder.state_dict())
    patch = "patch_embed.proj."
    for name in names:
        if name.startswith(patch):
            continue
        sources, make = _source_tensors(weights, prefix, name, has_film_wrappers, lora_scaling)
        conversion.add(target + name, *((weights, each) for each in sources), make=make)
    sources, make = _source_tensors(weights, prefix, patch + "weight", False, lora_scaling)
    scale, shift = _normalization_change(colour_normalization, (tower.mean, tower.std))
    conversion.add(
        f"{target}{patch}weight",
        *((weights, each) for each in sources),
        make=lambda *parts: (make(*parts).double() * scale[:, None, None]).float(),
    )
    if patch + "bias" not in names:
        if shift.any():
            fix = "Only towers whose patch embedding has a bias can take another normalisation of colours."
            raise InputError(f"{prefix}{patch}bias", got="none", expected="a bias", fix=fix)
        return
    bias, _ = _source_tensors(weights, prefix, patch + "bias", False, lora_scaling)
    conversion.add(
        f"{target}{patch}bias",
        *((weights, each) for each in (*bias, *sources)),
        make=lambda given, *parts: (given.double() + make(*parts).double().sum((2, 3)) @ shift).float(),
    )


def add_modulation(
    conversion: Conversion, target: str, tower: PretrainedTower, weights: WeightSource, prefix: str
) -> None:
    """Convert what modulates a tower's blocks: two linear layers of theirs become one of ours."""
    for block in range(tower.depth):
        for leaf in ("weight", "bias"):
            pair = [(weights, f"{prefix}blocks.{block}.{side}.{leaf}") for side in ("scale", "shift")]
            conversion.add(f"{target}{block}.project.{leaf}", *pair, make=lambda *parts: torch.cat(parts))


def add_linears(conversion: Conversion, weights: WeightSource, pairs: Mapping[str, str]) -> None:
    """Convert layers that have a weight and a bias, ours by theirs."""
    for target, source in pairs.items():
        for leaf in ("weight", "bias"):
            conversion.add(f"{target}.{leaf}", (weights, f"{source}.{leaf}"))


def _are_three_numbers(value: object) -> bool:
    """Whether a value is a list of three finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    )


def _source_tensors(
    weights: WeightSource, prefix: str, name: str, has_film_wrappers: bool, lora_scaling: float
) -> tuple[list[str], Any]:
    """Return the names of the tensors that make a weight of the encoder, and how they make it."""
    path = prefix + name.replace(".gamma", ".scale_factor")
    if has_film_wrappers:
        path = re.sub(r"(\.blocks\.\d+\.)", r"\1block.", path)
    stem, _, leaf = path.rpartition(".")
    if f"{stem}.base_layer.{leaf}" not in weights:
        return [path], lambda weight: weight
    if leaf != "weight":
        return [f"{stem}.base_layer.{leaf}"], lambda bias: bias
    factors = [f"{stem}.lora_{side}.default.weight" for side in "AB"]
    return [f"{stem}.base_layer.weight", *factors], lambda weight, down, up: merge_lora(weight, down, up, lora_scaling)


def _normalization_change(given: ColourNormalization, ours: ColourNormalization) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift, by colour, that turn colours normalised as ours into colours normalised as given."""
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in given)
    our_mean, our_std = (torch.tensor(part, dtype=torch.float64) for part in ours)
    return our_std / std, (our_mean - mean) / std
