"""Pretrained towers side by side: each looks at the same picture, and their tokens fuse into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError, unknown_name
from .film import Modulation
from .fusion import ConcatenatedFusion, GatedFusion
from .pretrained_tower import TOWERS_FIELD, PretrainedTower
from .tower_output import TowerOutput

FUSIONS = ("gated", "concatenated")


@dataclass(frozen=True)
class TowerModulations:
    """What an instruction says to the towers: the modulation of each one's `blocks`, and the fusion's `gate`.

    The gate is [B, towers], or None where fusion does not listen. It depends on no picture: make it once an episode.
    """

    blocks: tuple[list[Modulation], ...]
    gate: torch.Tensor | None


class PretrainedTowers(nn.Module):
    """Turn a view's picture into tokens of the trunk's width `output`, with one or more vision transformers of timm.

    Each of `names` is a `PretrainedTower`; `fusion` is "gated" or "concatenated", see `fusion`. Without `film` the
    instruction moves the gate alone. Raises InputError for a tower that cannot be built, no tower, an unknown fusion,
    and towers of which unequal numbers of tokens leave.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        image_size: int,
        aggregation_tokens: int,
        film: bool,
        fusion: str,
        condition: int,
        output: int,
    ) -> None:
        super().__init__()
        if not names:
            raise InputError(
                TOWERS_FIELD, got="none", expected="at least one", fix="Name a vision transformer of timm."
            )
        if fusion not in FUSIONS:
            raise unknown_name("architecture.fusion", fusion, FUSIONS)
        self.towers = nn.ModuleList(
            PretrainedTower(
                name,
                image_size=image_size,
                aggregation_tokens=aggregation_tokens,
                condition=condition if film else 0,
            )
            for name in names
        )
        counts = [tower.tokens for tower in self.towers]
        if len(set(counts)) > 1:
            got = ", ".join(f"{count} tokens of {name}" for name, count in zip(names, counts, strict=True))
            fix = "Choose towers of one patch size, or let aggregation tokens leave."
            raise InputError(TOWERS_FIELD, got=got, expected="as many of each", fix=fix)
        self.tokens = counts[0]
        widths = [tower.width for tower in self.towers]
        gated = fusion == "gated"
        self.fusion = GatedFusion(widths, condition, output) if gated else ConcatenatedFusion(widths, output)

    def modulations(self, condition: torch.Tensor) -> TowerModulations:
        """Return what an instruction's condition [B, C] says to the towers."""
        return TowerModulations(
            tuple(tower.modulations(condition) for tower in self.towers), self.fusion.gate(condition)
        )

    def forward(self, images: torch.Tensor, modulations: TowerModulations) -> TowerOutput:
        """Map pictures [B, 3, H, W] of 0 to 255 to the tokens [B, M, output] of one view."""
        tokens = [tower(images, blocks) for tower, blocks in zip(self.towers, modulations.blocks, strict=True)]
        return TowerOutput(self.fusion(tokens, modulations.gate))

    def attention_map(self, images: torch.Tensor, modulations: TowerModulations) -> torch.Tensor:
        """Return how much each token that leaves attends to each patch, the mean over towers, [B, M, P].

        See `PretrainedTower.attention_map`.
        """
        pairs = zip(self.towers, modulations.blocks, strict=True)
        return torch.stack([tower.attention_map(images, blocks) for tower, blocks in pairs]).mean(0)

    def load_pretrained(self, sources: Sequence[str]) -> None:
        """Load every tower's weights, each from its source: see `PretrainedTower.load_pretrained`.

        Raises InputError unless there is one source for each tower, and for weights that do not fit.
        """
        if len(sources) != len(self.towers):
            fix = "Give `hub` or a folder for each tower, in their order."
            raise InputError("weights of the towers", got=len(sources), expected=len(self.towers), fix=fix)
        for tower, source in zip(self.towers, sources, strict=True):
            tower.load_pretrained(source)
