"""The whole policy as one module: pictures, instruction and state in, a normalised chunk of actions out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig

from ..perception.pointing import pointing_loss
from ..perception.pruning import keep_schedule
from ..perception.tower import Tower
from .architecture import Architecture
from .expert import Expert
from .instruction import PADDING, VOCABULARY, InstructionEncoder
from .layout import TokenLayout
from .trunk import Trunk


@dataclass
class Decision:
    """What one forward pass decided and what it looked at.

    `actions` [B, T, A], normalised; `positions` [B, V, points, 2], fractions of the picture; `logits` of the pointing
    maps [B, V, points, rows, columns]; `kept`: for each trunk layer the places [B, kept] of the visual tokens that it
    worked on, None where it worked on all.
    """

    actions: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    kept: list[torch.Tensor | None]


class SaccadeModel(nn.Module):
    """Towers, trunk and expert for `views` cameras of `image_size` pixels, chunks of `chunk` steps."""

    def __init__(
        self, architecture: Architecture, *, views: int, image_size: int, state: int, action: int, chunk: int
    ) -> None:
        super().__init__()
        shape = architecture
        layout = TokenLayout(visual=views * shape.aggregation_tokens, text=shape.text_length, slots=chunk)
        self.layout = layout
        self.tower = Tower(
            image_size=image_size,
            stem_width=shape.stem_width,
            stem_blocks=shape.stem_blocks,
            points=shape.points,
            width=shape.tower_width,
            blocks=shape.tower_blocks,
            heads=shape.tower_heads,
            aggregation_tokens=shape.aggregation_tokens,
            condition=shape.condition_width,
            output=shape.trunk_width,
        )
        self.view_condition = nn.Parameter(0.02 * torch.randn(views, shape.condition_width))
        self.instruction = InstructionEncoder(shape.trunk_width, shape.condition_width)
        configuration = LlamaConfig(
            vocab_size=VOCABULARY,
            pad_token_id=PADDING,
            hidden_size=shape.trunk_width,
            intermediate_size=shape.trunk_feed_forward,
            num_hidden_layers=shape.trunk_layers,
            num_attention_heads=shape.trunk_heads,
            num_key_value_heads=shape.trunk_heads,
            max_position_embeddings=layout.length,
            initializer_range=0.04,
        )
        keep = keep_schedule(
            shape.aggregation_tokens, shape.trunk_layers, first=shape.prune_from, floor=shape.keep_floor
        )
        self.trunk = Trunk(configuration, layout, views=views, keep=keep, condition=shape.condition_width)
        self.state = nn.Sequential(
            nn.Linear(state, shape.trunk_width), nn.GELU(), nn.Linear(shape.trunk_width, shape.trunk_width)
        )
        self.slots = nn.Parameter(0.02 * torch.randn(1, chunk, shape.trunk_width))
        self.expert = Expert(
            layout,
            width=shape.expert_width,
            trunk=shape.trunk_width,
            blocks=shape.expert_blocks,
            heads=shape.expert_heads,
            actions=action,
        )

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor) -> Decision:
        """Decide for images uint8 [B, V, 3, H, W], text tokens [B, L] and normalised states [B, state]."""
        batch, views = images.shape[:2]
        valid = tokens != PADDING
        text = self.trunk.embed(tokens)
        condition = self.instruction(text, valid)
        pictures = images.flatten(0, 1).to(text.dtype).div(127.5).sub(1.0)
        per_view = (condition[:, None] + self.view_condition).flatten(0, 1)
        seen, positions, logits = self.tower(pictures, per_view)
        sequence = torch.cat(
            [
                seen.reshape(batch, self.layout.visual, -1),
                text.to(seen.dtype),
                self.state(state)[:, None].to(seen.dtype),
                self.slots.expand(batch, -1, -1).to(seen.dtype),
            ],
            dim=1,
        )
        output = self.trunk(sequence, valid, condition)
        actions = self.expert(output.hidden)
        return Decision(
            actions.float(),
            positions.unflatten(0, (batch, views)),
            logits.unflatten(0, (batch, views)),
            output.kept,
        )


def chunk_loss(predicted: torch.Tensor, target: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error [B] of normalised chunks [B, T, A] over the steps that are not `padded` [B, T]."""
    error = (predicted - target).abs().mean(-1)
    real = (~padded).to(error.dtype)
    return (error * real).sum(-1) / real.sum(-1).clamp(min=1)


def grounding_loss(decision: Decision, labels: torch.Tensor) -> torch.Tensor:
    """Return the pointing loss of all views, a scalar; `labels` [B, V, labelled, 2], fractions of the picture."""
    return pointing_loss(decision.logits.flatten(0, 1), labels.flatten(0, 1))
