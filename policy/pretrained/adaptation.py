"""LoRA adaptation: low-rank factors beside frozen weights, in the pretrained parts or, for a skill, everywhere.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), with PEFT. Functions import PEFT
themselves, because its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ..network.model import SaccadeModel


EXPERT_PREFIX = "expert."
"""Prefix of the names of the action head's parts."""


@dataclass(frozen=True)
class LoraAdaptation:
    """Low-rank factors beside every linear layer of the trunk and of pretrained towers, scaled by alpha / rank.

    Raises:
        InputError: A value is not valid.
    """

    rank: int
    alpha: float
    towers: bool = True
    """Whether pretrained towers get factors; otherwise they stay frozen."""
    skill: bool = False
    """Whether every linear layer and convolution outside the expert gets factors, and only they and the expert are
    trained: such skills of one base checkpoint can be merged."""

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(
                "adaptation.rank", got=self.rank, expected="a whole number above 0", fix="Set it to 1 or more."
            )
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf"):
            raise InputError("adaptation.alpha", got=self.alpha, expected="a number above 0", fix="Set it to the rank.")
        for name in ("towers", "skill"):
            if type(getattr(self, name)) is not bool:
                raise InputError(
                    f"adaptation.{name}",
                    got=getattr(self, name),
                    expected="true or false",
                    fix="Set it to one of them.",
                )
        if self.skill and not self.towers:
            fix = "Set adaptation.towers to true: a skill adapts its towers, too."
            raise InputError("adaptation.towers", got="false, in a skill", expected="true", fix=fix)


def read_lora_adaptation(config: Mapping[str, Any], source: str) -> LoraAdaptation | None:
    """Return the adaptation in a checkpoint's configuration; None if all weights were trained.

    Raises:
        InputError: This version does not know the adaptation.
    """
    values = config.get("adaptation")
    if values is None:
        return None
    if not isinstance(values, dict) or not {"rank", "alpha"} <= set(values) <= set(LoraAdaptation.__dataclass_fields__):
        raise InputError(
            f"{source}: adaptation",
            got=values,
            expected="rank, alpha, towers and skill",
            fix="Install the version of Saccade that wrote the checkpoint.",
        )
    return LoraAdaptation(**values)


def add_lora(model: SaccadeModel, adaptation: LoraAdaptation) -> None:
    """Add factors to a model with weights, and freeze those weights.

    New factors change no output. Except for a skill, the parts that are not pretrained (routers, FiLM, fusion,
    aggregation tokens, instruction encoder, state, slots, expert, a small tower) stay fully trainable.

    Raises:
        InputError: The model has factors already.
    """
    from torch import nn

    if any(True for _ in lora_layers(model)):
        fix = "Merge them first with fold_lora, or continue to train them."
        raise InputError("adaptation", got="a policy with factors", expected="one without", fix=fix)
    if adaptation.skill:
        layers = [name for name, module in model.named_modules() if _accepts_lora(module, name)]
        trainable = {id(parameter) for parameter in model.expert.parameters() if parameter.requires_grad}
        _inject_lora(adaptation, model, layers)
        for parameter in model.expert.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
        return
    decoder, *encoders = _pretrained(model)
    for part in (decoder, *encoders):
        part.requires_grad_(False)
    for part in (decoder, *encoders) if adaptation.towers else (decoder,):
        _inject_lora(adaptation, part, [name for name, module in part.named_modules() if isinstance(module, nn.Linear)])


def _accepts_lora(module: nn.Module, name: str) -> bool:
    """Tell whether a layer of a skill gets factors; PEFT does not support dilated convolutions, which stay frozen."""
    from torch import nn

    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return set(module.dilation) == {1} and module.groups == 1 and not name.startswith(EXPERT_PREFIX)
    return isinstance(module, nn.Linear) and not name.startswith(EXPERT_PREFIX)


def _inject_lora(adaptation: LoraAdaptation, part: nn.Module, layers: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    # PEFT annotates lora_alpha as int, but only divides it by the rank.
    inject_adapter_in_model(
        LoraConfig(r=adaptation.rank, lora_alpha=cast(int, adaptation.alpha), target_modules=layers), part
    )


def fold_lora(model: SaccadeModel) -> None:
    """Merge the factors into the weights and remove them; the actions stay the same up to rounding.

    A model without factors is unchanged.
    """
    adapted = dict(lora_layers(model))
    if not adapted:
        return
    for name, layer in adapted.items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
        layer.get_base_layer().requires_grad_(True)
    for part in (model, *_pretrained(model)):
        if part is not model:
            part.requires_grad_(True)
        if hasattr(part, "peft_config"):
            del part.peft_config


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_checkpointing(model: SaccadeModel, *, on: bool) -> None:
    """Choose whether trunk and pretrained towers compute activations again in the backward pass, to save memory.

    The gradients stay the same.
    """
    for part in (model.trunk, *_pretrained_towers(model)):
        part.checkpointing = on


def _pretrained(model: SaccadeModel) -> list[nn.Module]:
    """Return the parts that can have pretrained weights: the trunk's decoder and the towers' encoders."""
    return [model.trunk.decoder, *(tower.encoder for tower in _pretrained_towers(model))]


def _pretrained_towers(model: SaccadeModel) -> list[Any]:
    return list(model.tower.towers) if model.architecture.towers else []


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have factors, by name."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
