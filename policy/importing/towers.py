"""Convert the vision towers of released OpenVLA-style checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch

from ...errors import InputError
from .released import ReleasedCheckpoint
from .weights import Conversion, WeightSource, merge_lora

if TYPE_CHECKING:
    from ...perception.pretrained_tower import PretrainedTower
    from ..network.model import SaccadeModel

type ColourNormalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the three colour channels, for values in [0, 1]."""

RELEASED_NAMES = ("featurizer", "fused_featurizer")
"""Names of the first and the second tower."""

UNUSED_LAYERS = r"(blocks\.{last}\.|norm\.|fc_norm\.|attn_pool\.|head)"
"""Layers after the block whose features are used."""


def pretrained_towers(network: SaccadeModel) -> list[PretrainedTower]:
    """Return the pretrained towers of a network, in order."""
    towers = cast("Iterable[PretrainedTower]", network.tower.towers)
    return list(towers)


def tower_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the timm names of the two towers; raises InputError for another number or other activations."""
    names, layers = config.get("timm_model_ids"), config.get("timm_override_act_layers")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        fix = "Import a checkpoint with two towers, such as dinosiglip-vit-so-224px."
        raise InputError("config.json: timm_model_ids", got=names, expected="the names of two towers", fix=fix)
    if layers is not None and (not isinstance(layers, list) or any(layers)):
        fix = "Import a checkpoint whose towers have the activations of timm."
        raise InputError("config.json: timm_override_act_layers", got=layers, expected="null for each", fix=fix)
    return tuple(names)


def image_size(config: Mapping[str, Any]) -> int:
    """Return the height and width of the images in pixels; raises InputError if the towers have different sizes."""
    sizes = config.get("image_sizes")
    if not isinstance(sizes, list) or len(set(map(str, sizes))) != 1 or type(sizes[0]) is not int or sizes[0] < 1:
        fix = "Import a checkpoint whose towers take images of the same size."
        raise InputError("config.json: image_sizes", got=sizes, expected="one size twice", fix=fix)
    return sizes[0]


def released_colour_normalization(released: ReleasedCheckpoint) -> list[ColourNormalization]:
    """Return mean and standard deviation by which the images of each tower are normalised.

    `tvf_normalize_params` has priority over `means` and `stds`, as in the released code: the former were rounded to
    bfloat16 when the checkpoint was converted, and training used the rounded values.

    Raises:
        InputError: preprocessor_config.json does not hold both for two towers.
    """
    preprocessor = released.read_json("preprocessor_config.json")
    given = preprocessor.get("tvf_normalize_params")
    if not given:
        means, stds = preprocessor.get("means"), preprocessor.get("stds")
        given = (means, stds)
        if isinstance(means, list) and isinstance(stds, list):
            given = [{"mean": mean, "std": std} for mean, std in zip(means, stds, strict=False)]
    towers = given if isinstance(given, list) and all(isinstance(each, dict) for each in given) else []
    pairs = [(each.get("mean"), each.get("std")) for each in towers]
    colour_normalization: list[ColourNormalization] = [
        (mean, std) for mean, std in pairs if _are_three_numbers(mean) and _are_three_numbers(std) and min(std) > 0
    ]
    if len(pairs) != 2 or len(colour_normalization) != 2:
        fix = "Copy preprocessor_config.json again from the release."
        what = "preprocessor_config.json: tvf_normalize_params"
        raise InputError(what, got=given, expected="mean and std of three colour channels for two towers", fix=fix)
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
    """Convert the encoder of a tower, and ignore its layers that never run.

    Linear layers and the patch embedding may have LoRA factors, and blocks may have wrappers for FiLM. If the released
    colour normalisation differs from ours, the difference is folded into the patch embedding.

    Args:
        conversion: The conversion to add to.
        target: Prefix of our names.
        tower: Our tower.
        weights: The released weights.
        prefix: Prefix of the released names.
        colour_normalization: The released mean and standard deviation.
        lora_scaling: Scaling of the LoRA product.

    Raises:
        InputError: The colour normalisation differs and the patch embedding has no bias.
    """
    weights.ignore(
        re.escape(prefix) + UNUSED_LAYERS.format(last=tower.depth), "tower layers after the block that is used"
    )
    has_film_wrappers = any(name.startswith(prefix) and ".block." in name for name in weights)
    names = list(tower.encoder.state_dict())
    patch = "patch_embed.proj."
    for name in names:
        if name.startswith(patch):
            continue
        sources, make = _source_tensors(
            weights, prefix, name, has_film_wrappers=has_film_wrappers, lora_scaling=lora_scaling
        )
        conversion.add(target + name, *((weights, each) for each in sources), make=make)
    sources, make = _source_tensors(
        weights, prefix, patch + "weight", has_film_wrappers=False, lora_scaling=lora_scaling
    )
    scale, shift = _normalization_change(colour_normalization, cast("ColourNormalization", (tower.mean, tower.std)))
    conversion.add(
        f"{target}{patch}weight",
        *((weights, each) for each in sources),
        make=lambda *parts: (make(*parts).double() * scale[:, None, None]).float(),  # [width, 3, patch, patch]
    )
    if patch + "bias" not in names:
        if shift.any():
            fix = "Import a checkpoint whose towers are normalised as in timm, or have a bias there."
            raise InputError(f"{prefix}{patch}bias", got="none", expected="a bias", fix=fix)
        return
    bias, _ = _source_tensors(weights, prefix, patch + "bias", has_film_wrappers=False, lora_scaling=lora_scaling)
    conversion.add(
        f"{target}{patch}bias",
        *((weights, each) for each in (*bias, *sources)),
        make=lambda given, *parts: (given.double() + make(*parts).double().sum((2, 3)) @ shift).float(),  # [width]
    )


def add_modulation(
    conversion: Conversion, target: str, tower: PretrainedTower, weights: WeightSource, prefix: str
) -> None:
    """Convert the FiLM layers of a tower: two released linear layers, scale and shift, become one of ours."""
    for block in range(tower.depth):
        for leaf in ("weight", "bias"):
            pair = [(weights, f"{prefix}blocks.{block}.{side}.{leaf}") for side in ("scale", "shift")]
            conversion.add(f"{target}{block}.project.{leaf}", *pair, make=lambda *parts: torch.cat(parts))


def add_linears(conversion: Conversion, weights: WeightSource, pairs: Mapping[str, str]) -> None:
    """Convert linear layers with a bias; `pairs` maps our names to the released ones."""
    for target, source in pairs.items():
        for leaf in ("weight", "bias"):
            conversion.add(f"{target}.{leaf}", (weights, f"{source}.{leaf}"))


def _are_three_numbers(value: object) -> TypeGuard[list[float]]:
    """Tell whether a value is a list of three finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    )


def _source_tensors(
    weights: WeightSource, prefix: str, name: str, *, has_film_wrappers: bool, lora_scaling: float
) -> tuple[list[str], Any]:
    """Return the names of the released tensors for a weight of the encoder, and the function that combines them."""
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
    """Return scale and shift [3] from our normalised colours to colours that are normalised as `given`."""
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in given)
    our_mean, our_std = (torch.tensor(part, dtype=torch.float64) for part in ours)
    return our_std / std, (our_mean - mean) / std
