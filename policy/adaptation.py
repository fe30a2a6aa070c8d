"""How pretrained parts learn: low-rank factors beside their frozen weights, everything else as a whole.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), by PEFT. PEFT is imported where it is needed:
its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from .model import SaccadeModel


@dataclass(frozen=True)
class Adaptation:
    """Factors of a rank beside every linear layer of the trunk and of pretrained towers, scaled by alpha / rank.

    Raises InputError for values that are none.
    """

    rank: int
    alpha: float
    towers: bool = True
    """Whether pretrained towers get factors; without them they stay as they came."""

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError("adaptation.rank", got=self.rank, expected="a whole number above 0", fix="Set it.")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf"):
            raise InputError("adaptation.alpha", got=self.alpha, expected="a number above 0", fix="The rank is usual.")
        if type(self.towers) is not bool:
            raise InputError("adaptation.towers", got=self.towers, expected="true or false", fix="Set it.")


def read_adaptation(config: Mapping[str, Any], source: str) -> Adaptation | None:
    """Read a checkpoint's adaptation back from its configuration; None where everything was trained.

    Raises InputError for one that this version does not know.
    """
    values = config.get("adaptation")
    if values is None:
        return None
    if not isinstance(values, dict) or not {"rank", "alpha"} <= set(values) <= set(Adaptation.__dataclass_fields__):
        raise InputError(
            f"{source}: adaptation",
            got=values,
            expected="rank, alpha and towers",
            fix="Use the version that wrote the checkpoint.",
        )
    return Adaptation(**values)


def adapt(model: SaccadeModel, adaptation: Adaptation) -> None:
    """Put factors into a model that has its pretrained weights, and freeze those weights.

    At first the factors change nothing. What is not pretrained (routers, FiLM, fusion, aggregation tokens, instruction
    encoder, state, slots, expert, a small tower) goes on learning as a whole. Raises InputError if there are factors
    already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    if any(True for _ in _adapted(model)):
        fix = "Fold them first, or go on with them."
        raise InputError("adaptation", got="a policy that has factors", expected="one without", fix=fix)
    decoder, *encoders = _pretrained(model)
    for part in (decoder, *encoders):
        part.requires_grad_(False)
    for part in (decoder, *encoders) if adaptation.towers else (decoder,):
        layers = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
        config = LoraConfig(r=adaptation.rank, lora_alpha=adaptation.alpha, target_modules=layers)
        inject_adapter_in_model(config, part)


def fold(model: SaccadeModel) -> None:
    """Add the factors to the weights and remove them: the same policy, as if all of it had been trained.

    The sum is rounded, so decisions agree to rounding. A model without factors is left alone.
    """
    adapted = dict(_adapted(model))
    if not adapted:
        return
    for name, layer in adapted.items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    for part in _pretrained(model):
        part.requires_grad_(True)
        if hasattr(part, "peft_config"):
            del part.peft_config


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
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


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have factors, by name."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
