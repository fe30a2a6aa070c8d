"""The bridge expert of released policies: one block for each trunk layer, in two streams with one softmax.

It is the action head of VLA-Adapter (section 3, and its "Pro" implementation) and of MergeVLA (section 4), which differ
only in the four options here. One stream has the visual tokens, the other the action slots followed by the state. A
gate scales the logits of the visual stream, never its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ....errors import InputError, unknown_name
from ....kernels.plan import AttentionPlan
from ..architecture import CHOICES
from ..attention import attend, check_head_size, full_attention_plan

GATES = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}
ROTARY_VARIANTS = ("mixed", "paired", "none")
START_VARIANTS = ("zero", "learned")
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class BridgeOptions:
    """Sizes and options of a bridge expert.

    Attributes:
        width: Width of trunk and expert, D.
        blocks: Blocks, one for each trunk layer.
        steps: Steps of a chunk, T.
        actions: Dimensions of an action, A.
        heads: Attention heads.
        self_attention: Whether the actions also attend to each other and one query serves all streams (VLA-Adapter).
            Otherwise each of the two streams has its own query (MergeVLA).
        gate: "tanh" (VLA-Adapter) starts at 0, uniform attention over visual tokens, and can become negative, which
            ranks the keys in reverse; "sigmoid" (MergeVLA) starts at 0.5 and stays between 0 and 1.
        rotation: "mixed" is what both released codes compute: pairs of neighbouring channels are rotated by angles that
            are laid out in halves, so that the two channels of a pair get different angles and norms change. "paired"
            is the rotary embedding as published. "none" is VLA-Adapter before "Pro".
        start: "zero" passes zeros through the first norm and projection, as both released codes do at inference: all
            steps start alike, and only the rotation distinguishes them. "learned" is a vector for each step.
        kernels: `Architecture.kernels`. Without self-attention PyTorch computes attention in any case, because the
            operator does not take keys that are wider than values.

    Raises:
        InputError: The sizes do not fit together, or an option is unknown.
    """

    width: int
    blocks: int
    steps: int
    actions: int
    heads: int = 8
    self_attention: bool = False
    gate: str = "sigmoid"
    rotation: str = "paired"
    start: str = "learned"
    kernels: str = "torch"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("gate", self.gate, GATES),
            ("rotation", self.rotation, ROTARY_VARIANTS),
            ("start", self.start, START_VARIANTS),
            ("kernels", self.kernels, CHOICES["kernels"]),
        ):
            if value not in choices:
                raise unknown_name(f"bridge expert: {name}", value, choices)
        for name in ("width", "blocks", "steps", "actions", "heads"):
            if getattr(self, name) < 1:
                got, fix = getattr(self, name), f"Set {name} to 1 or more."
                raise InputError(f"bridge expert: {name}", got=got, expected="at least 1", fix=fix)
        even = 1 if self.rotation == "none" else 2
        if self.width % (self.heads * even):
            expected = f"a multiple of {self.heads * even} for {self.heads} heads"
            raise InputError("bridge expert: width", got=self.width, expected=expected, fix="Change width or heads.")


@dataclass(frozen=True)
class RotaryTable:
    """Cosine and sine of the rotary embedding, each [positions, d]; see `BridgeOptions.rotation`."""

    cosine: torch.Tensor
    sine: torch.Tensor

    @classmethod
    def build(cls, positions: int, width: int, rotation: str, reference: torch.Tensor) -> RotaryTable:
        """Compute the table.

        Args:
            positions: Number of positions.
            width: Width of a head, d; an even number.
            rotation: "mixed" or "paired".
            reference: A tensor of the device and dtype that the table gets.
        """
        exponent = torch.arange(0, width, 2, device=reference.device, dtype=torch.float32) / width
        angle = torch.arange(positions, device=reference.device, dtype=torch.float32)[:, None] / ROTARY_BASE**exponent
        angle = torch.cat([angle, angle], dim=-1) if rotation == "mixed" else angle.repeat_interleave(2, dim=-1)
        return cls(angle.cos().to(reference.dtype), angle.sin().to(reference.dtype))

    def rotate(self, part: torch.Tensor) -> torch.Tensor:
        """Rotate queries or keys [B, heads, n, d] at positions 0 to n - 1."""
        count = part.shape[-2]
        rotated_pairs = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)  # [B, heads, n, d]
        return part * self.cosine[:count] + rotated_pairs * self.sine[:count]


class BridgeBlock(nn.Module):
    """Attention to one trunk layer and optionally among the actions, then a linear layer with ReLU, not residual."""

    def __init__(self, options: BridgeOptions) -> None:
        super().__init__()
        width = options.width
        self.heads, self.gate_activation = options.heads, GATES[options.gate]
        self.query = nn.Linear(width, width)
        # The query of the visual stream; with self-attention, the query above serves all streams.
        self.query_seen = None if options.self_attention else nn.Linear(width, width)
        self.key_value_self = nn.Linear(width, 2 * width) if options.self_attention else None
        self.key_value_decided = nn.Linear(width, 2 * width)
        self.key_value_seen = nn.Linear(width, 2 * width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Linear(width, width)

    def forward(
        self,
        actions: torch.Tensor,
        visual_states: torch.Tensor,
        slot_states: torch.Tensor,
        table: RotaryTable | None,
        plan: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """Update the actions of a chunk.

        Args:
            actions: Hidden states of the actions [B, T, D].
            visual_states: The layer's visual tokens [B, N, D].
            slot_states: The layer's slots, and the state [B, n, D].
            table: Rotary embedding; None for none.
            plan: Plan of this package's operator; None for PyTorch.

        Returns:
            Hidden states of the actions [B, T, D], at least 0.
        """
        factor = self.gate_activation(self.gate)
        query = self._split(self.query(actions), table)  # [B, heads, T, d]
        slot_key, slot_value = self._key_value(self.key_value_decided, slot_states, table)  # each [B, heads, n, d]
        visual_key, visual_value = self._key_value(self.key_value_seen, visual_states, table)  # each [B, heads, N, d]
        keys, values = [slot_key, factor * visual_key], [slot_value, visual_value]
        if self.key_value_self is not None:
            own_key, own_value = self._key_value(self.key_value_self, actions, table)
            keys, values = [own_key, *keys], [own_value, *values]
        if self.query_seen is not None:
            # Two queries in one softmax: each has its own channels, in which the other stream's keys are zero. With
            # twice the channels, attention divides the logits by sqrt(2) too much.
            query = torch.cat([query, self._split(self.query_seen(actions), table)], dim=-1) * 2**0.5
            width = slot_key.shape[-1]
            keys = [functional.pad(keys[0], (0, width)), functional.pad(keys[1], (width, 0))]
        heads = attend(query, torch.cat(keys, dim=2), torch.cat(values, dim=2), plan)  # [B, heads, T, d]
        hidden = self.output(heads.transpose(1, 2).flatten(2)) + actions  # [B, T, D]
        return functional.relu(self.feed_forward(self.feed_forward_norm(hidden)))

    def _key_value(
        self, project: nn.Linear, stream: torch.Tensor, table: RotaryTable | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = project(stream).chunk(2, dim=-1)
        return self._split(key, table), self._split(value, None)

    def _split(self, part: torch.Tensor, table: RotaryTable | None) -> torch.Tensor:
        """Split [B, n, D] into heads [B, heads, n, d]; a table rotates them by their positions."""
        part = part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return part if table is None else table.rotate(part)


class ZeroStart(nn.Module):
    """Zeros after the first norm and projection: the same row for every step."""

    def __init__(self, options: BridgeOptions) -> None:
        super().__init__()
        self.steps = options.steps
        self.norm = nn.LayerNorm(options.actions * options.width)
        self.project = nn.Linear(options.actions * options.width, options.width)

    def forward(self) -> torch.Tensor:
        """Return the rows [T, D]."""
        row = functional.relu(self.project(self.norm(torch.zeros_like(self.norm.bias))))
        return row.expand(self.steps, -1)


class LearnedStart(nn.Module):
    """A learned row for every step."""

    def __init__(self, options: BridgeOptions) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.02 * torch.randn(options.steps, options.width))

    def forward(self) -> torch.Tensor:
        """Return the rows [T, D]."""
        return self.rows


class BridgeExpert(nn.Module):
    """Decode a chunk of normalized actions from every layer of the trunk."""

    def __init__(self, options: BridgeOptions) -> None:
        super().__init__()
        self.options = options
        self.uses_plan = options.kernels == "saccade" and options.self_attention
        if self.uses_plan:
            check_head_size("expert", options.width // options.heads)
        self.start = ZeroStart(options) if options.start == "zero" else LearnedStart(options)
        self.blocks = nn.ModuleList(BridgeBlock(options) for _ in range(options.blocks))
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, options.actions)

    def plan(self, batch: int, tokens: int) -> AttentionPlan | None:
        """Return the plan by which every action attends to the actions and to all `tokens` that a block reads.

        None where PyTorch attends.
        """
        if not self.uses_plan:
            return None
        steps = self.options.steps
        return full_attention_plan(batch, steps, steps + tokens, self.head.weight.device)

    def forward(
        self,
        visual_states: Sequence[torch.Tensor],
        slot_states: Sequence[torch.Tensor],
        state: torch.Tensor,
        plan: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """Decode the hidden states of every trunk layer.

        Args:
            visual_states: Visual tokens of each layer, [B, N, D].
            slot_states: Slots of each layer, [B, n, D].
            state: State token [B, D], appended to the slots in every block.
            plan: The result of `plan`.

        Returns:
            Normalized actions [B, T, A].

        Raises:
            InputError: There is not one of each for every block.
        """
        for name, stream in (("seen", visual_states), ("decided", slot_states)):
            if len(stream) != len(self.blocks):
                expected = f"{len(self.blocks)}, one for each block"
                fix = "Give the hidden states of every trunk layer, without the embeddings."
                raise InputError(f"bridge expert: layers of {name}", got=len(stream), expected=expected, fix=fix)
        actions = self.start().expand(len(state), -1, -1)  # [B, T, D]
        table = self._table(max(actions.shape[1], slot_states[0].shape[1] + 1, visual_states[0].shape[1]), actions)
        token = state[:, None]  # [B, 1, D]
        for block, visual_layer, slot_layer in zip(self.blocks, visual_states, slot_states, strict=True):
            actions = block(actions, visual_layer, torch.cat([slot_layer, token], dim=1), table, plan)
        return self.head(self.norm(actions))

    def _table(self, positions: int, reference: torch.Tensor) -> RotaryTable | None:
        if self.options.rotation == "none":
            return None
        return RotaryTable.build(positions, self.options.width // self.options.heads, self.options.rotation, reference)
