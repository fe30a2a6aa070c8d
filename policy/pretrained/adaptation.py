"""How a policy learns by low-rank factors beside frozen weights: in its pretrained parts, or, as a skill, everywhere.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), by PEFT. PEFT is imported where it is needed:
its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ..network.model import SaccadeModel


EXPERT_PREFIX = "expert."
"""How the names of the action decoder's parts begin."""


@dataclass(frozen=True)
class LoraAdaptation:
    """Factors of a rank beside every linear layer of the trunk and of pretrained towers, scaled by alpha / rank.

    Raises InputError for values that are none.
    """

    rank: int
    alpha: float
    towers: bool = True
    """Whether pretrained towers get factors; without them they stay as they came."""
    skill: bool = False
    """Whether every linear layer and convolution outside the expert gets factors, and nothing else but the expert
    learns: what such trainings of one beginning have learned can be merged."""

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError("adaptation.rank", got=self.rank, expected="a whole number above 0", fix="Set it.")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf"):
            raise InputError("adaptation.alpha", got=self.alpha, expected="a number above 0", fix="The rank is usual.")
        for name in ("towers", "skill"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"adaptation.{name}", got=getattr(self, name), expected="true or false", fix="Set it.")
        if self.skill and not self.towers:
            fix = "A skill learns in its towers too."
            raise InputError("adaptation.towers", got="false, in a skill", expected="true", fix=fix)


def read_lora_adaptation(config: Mapping[str, Any], source: str) -> LoraAdaptation | None:
    """Read a checkpoint's adaptation back from its configuration; None where everything was trained.

    Raises InputError for one that this version does not know.
    """
    values = config.get("adaptation")
    if values is None:
        return None
    if not isinstance(values, dict) or not {"rank", "alpha"} <= set(values) <= set(LoraAdaptation.__dataclass_fields__):
        raise InputError(
            f"{source}: adaptation",
            got=values,
            expected="rank, alpha, towers and skill",
            fix="Use the version that wrote the checkpoint.",
        )
    return LoraAdaptation(**values)


def add_lora(model: SaccadeModel, adaptation: LoraAdaptation) -> None:
    """Put factors into a model that has its weights, and freeze those weights.

    At first the factors change nothing. Unless it is a skill that is learned, what is not pretrained (routers, FiLM,
    fusion, aggregation tokens, instruction encoder, state, slots, expert, a small tower) goes on learning as a whole.
    Raises InputError if there are factors already.
    """
    from torch import nn

    if any(True for _ in lora_layers(model)):
        fix = "Fold them first, or go on with them."
        raise InputError("adaptation", got="a policy that has factors", expected="one without", fix=fix)
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
    """Tell whether a layer of a skill gets factors; PEFT has none for a convolution with gaps, which stays as it is."""
    from torch import nn

    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return set(module.dilation) == {1} and module.groups == 1 and not name.startswith(EXPERT_PREFIX)
    return isinstance(module, nn.Linear) and not name.startswith(EXPERT_PREFIX)


def _inject_lora(adaptation: LoraAdaptation, part: nn.Module, layers: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=adaptation.rank, lora_alpha=adaptation.alpha, target_modules=layers), part)


def fold_lora(model: SaccadeModel) -> None:
    """Add the factors to the weights and remove them: the same policy, as if all of it had been trained.

    The sum is rounded, so decisions agree to rounding. A model without factors is left alone.
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
    """Return the parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_checkpointing(model: SaccadeModel, on: bool) -> None:
    """Choose whether trunk and pretrained towers compute activations again in the backward pass, to save memory.

    What is learned stays the same.
    """
    for part in (model.trunk, *_pretrained_towers(model)):
        part.checkpointing = on


def _pretrained(model: SaccadeModel) -> list[nn.Module]:
    """Return the trunk's decoder and the encoders of pretrained towers: what can come with weights."""
    return [model.trunk.decoder, *(tower.encoder for tower in _pretrained_towers(model))]


def _pretrained_towers(model: SaccadeModel) -> list[Any]:
    return list(model.tower.towers) if model.architecture.towers else []


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have factors, by name."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
