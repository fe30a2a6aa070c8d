"""Pretrained towers in parallel: each encodes the same image, and their tokens are fused into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ..errors import InputError, unknown_name
from .film import Modulation
from .fusion import ConcatenatedFusion, GatedFusion
from .pretrained_tower import TOWERS_FIELD, PretrainedTower
from .tower_output import TowerOutput

FUSIONS = ("gated", "concatenated")
"""The fusions by name: `GatedFusion` and `ConcatenatedFusion`."""


@dataclass(frozen=True)
class TowerModulations:
    """The modulations of all towers under an instruction; compute them once per episode, for they need no image.

    Attributes:
        blocks: the modulation of each tower's blocks.
        gate: the fusion's gate [B, towers]; None for a fusion without a gate.
    """

    blocks: tuple[list[Modulation], ...]
    gate: torch.Tensor | None


class PretrainedTowers(nn.Module):
    """One or more vision transformers of timm that map a view's image to tokens of the trunk's width.

    Towers and fusion are CogVLA's EFA (arXiv 2508.21046, section 3), or Prismatic's with `fusion="concatenated"`.

    Args:
        names: the towers' names in timm, each a `PretrainedTower`.
        image_size: height and width of an image in pixels.
        aggregation_tokens: tokens M of a view; 0 returns all patch tokens.
        film: whether FiLM modulates the towers; without it the instruction conditions the gate only.
        fusion: "gated" or "concatenated".
        condition_width: width C of the condition.
        output_width: trunk width D.

    Raises:
        InputError: a tower cannot be built, there is none, the fusion is unknown, or the towers return different
            numbers of tokens.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        image_size: int,
        aggregation_tokens: int,
        film: bool,
        fusion: str,
        condition_width: int,
        output_width: int,
    ) -> None:
        super().__init__()
        if not names:
            raise InputError(
                TOWERS_FIELD,
                got="none",
                expected="at least one",
                fix=f"Set {TOWERS_FIELD} to a vision transformer of timm.",
            )
        if fusion not in FUSIONS:
            raise unknown_name("architecture.fusion", fusion, FUSIONS)
        towers = [
            PretrainedTower(
                name,
                image_size=image_size,
                aggregation_tokens=aggregation_tokens,
                condition_width=condition_width if film else 0,
            )
            for name in names
        ]
        self.towers = nn.ModuleList(towers)
        counts = [tower.tokens for tower in towers]
        if len(set(counts)) > 1:
            got = ", ".join(f"{count} tokens of {name}" for name, count in zip(names, counts, strict=True))
            fix = "Choose towers of one patch size, or set architecture.aggregation_tokens to 1 or more."
            raise InputError(TOWERS_FIELD, got=got, expected="equally many of each tower", fix=fix)
        self.tokens = counts[0]
        widths = [tower.width for tower in towers]
        if fusion == "gated":
            self.fusion = GatedFusion(widths, condition_width, output_width)
        else:
            self.fusion = ConcatenatedFusion(widths, output_width)

    def _towers(self) -> list[PretrainedTower]:
        """Return the towers with their type, which torch's stub of ModuleList loses."""
        return cast("list[PretrainedTower]", list(self.towers))

    def modulations(self, condition: torch.Tensor) -> TowerModulations:
        """Return the modulations of all towers under a condition [B, C]."""
        return TowerModulations(
            tuple(tower.modulations(condition) for tower in self._towers()), self.fusion.gate(condition)
        )

    def forward(self, images: torch.Tensor, modulations: TowerModulations) -> TowerOutput:
        """Map images [B, 3, H, W] in 0 to 255 to the tokens [B, M, output_width] of one view."""
        pairs = zip(self.towers, modulations.blocks, strict=True)
        tokens = [tower(images, blocks) for tower, blocks in pairs]  # [B, M, tower width] each
        return TowerOutput(self.fusion(tokens, modulations.gate))

    def attention_map(self, images: torch.Tensor, modulations: TowerModulations) -> torch.Tensor:
        """Return the mean of the towers' attention maps, [B, M, P]: see `PretrainedTower.attention_map`."""
        pairs = zip(self._towers(), modulations.blocks, strict=True)
        return torch.stack([tower.attention_map(images, blocks) for tower, blocks in pairs]).mean(0)

    def load_pretrained(self, sources: Sequence[str]) -> None:
        """Load the pretrained weights of all towers.

        Args:
            sources: one source for each tower: see `PretrainedTower.load_pretrained`.

        Raises:
            InputError: the number of sources differs, or weights do not fit.
        """
        if len(sources) != len(self.towers):
            fix = "Use one source per tower, in their order: `hub`, a file or a folder."
            raise InputError("weights of the towers", got=len(sources), expected=len(self.towers), fix=fix)
        for tower, source in zip(self._towers(), sources, strict=True):
            tower.load_pretrained(source)
