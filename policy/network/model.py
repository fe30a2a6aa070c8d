"""The whole policy as one module: pictures, instruction and state in, a normalised chunk of actions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...kernels.plan import AttentionPlan
from ...perception.pruning import keep_schedule
from ...perception.seen import Seen
from .action_heads.slot_head import SlotHead
from .architecture import Architecture
from .build import build_expert, build_history, build_tower, trunk_configuration
from .history import Memory, Past
from .instruction import InstructionEncoder, MeanInstruction
from .layout import TokenLayout
from .tensor_tree import map_tensors
from .trunk import Trunk, TrunkPlan


@dataclass
class Decision:
    """What one forward pass decided and what it looked at.

    `actions` [B, T, A], normalised; `positions` [B, V, points, 2], fractions of the picture, and `logits` of the
    pointing maps [B, V, points, rows, columns], None where towers do not point; `kept`: for each trunk layer the places
    [B, kept] of the visual tokens that it worked on, None where it worked on all; `remembered`: what this decision
    leaves for the next ones, see `Memory.with_newest`, and `recalled` [B, 3 * LABELLED]: labelled points in decimetres,
    see `History`; None for a policy without history, and where nothing could be remembered.
    """

    actions: torch.Tensor
    positions: torch.Tensor | None
    logits: torch.Tensor | None
    kept: list[torch.Tensor | None]
    remembered: torch.Tensor | None = None
    recalled: torch.Tensor | None = None


@dataclass(frozen=True)
class Instructed:
    """What follows from the instruction alone: computed once, it serves every decision under that instruction.

    `text` [B, L, D] embedded; `steering`: what modulates the towers; `plan`: masks, positions and router directions;
    `reading`: the expert's plan, where it attends by one.
    """

    text: torch.Tensor
    steering: Any
    plan: TrunkPlan
    reading: AttentionPlan | None = None


class SaccadeModel(nn.Module):
    """Towers, trunk and expert for `views` cameras of `image_size` pixels, chunks of `chunk` steps."""

    def __init__(
        self, architecture: Architecture, *, views: int, image_size: int, state: int, action: int, chunk: int
    ) -> None:
        super().__init__()
        shape = self.architecture = architecture
        self.tower = build_tower(shape, image_size)
        slots = chunk * (action if shape.slot_unit == "element" else 1) + shape.extra_slots
        layout = TokenLayout(
            visual=views * self.tower.tokens,
            text=shape.text_length,
            slots=slots,
            order=shape.sequence,
            mask=shape.mask,
        )
        self.layout = layout
        self.view_condition = nn.Parameter(0.02 * torch.randn(views, shape.condition_width))
        if shape.instruction_features == "ordered":
            self.instruction = InstructionEncoder(shape.trunk_width, shape.condition_width)
        else:
            self.instruction = MeanInstruction(padded=shape.instruction_features == "mean_padded")
        groups = views if shape.prune_per_view else 1
        self.trunk = Trunk(
            trunk_configuration(shape, layout.remembered + layout.length),
            layout,
            groups=groups,
            keep=keep_schedule(
                layout.visual // groups, shape.trunk_layers, first=shape.prune_from, floor=shape.keep_floor
            ),
            condition=shape.condition_width,
            router=shape.router,
            signal=shape.router_signal,
            positions=shape.positions,
            kernels=shape.kernels,
        )
        self.state = nn.Sequential(
            nn.Linear(state, shape.trunk_width), nn.GELU(), nn.Linear(shape.trunk_width, shape.trunk_width)
        )
        queries = 0.02 * torch.randn(1, slots, shape.trunk_width)
        if shape.slot_queries == "learned":
            self.slots = nn.Parameter(queries)
        else:
            self.register_buffer("slots", torch.zeros_like(queries))
        self.expert = build_expert(shape, chunk=chunk, slots=slots, action=action)
        # Last, so that the weights of a policy without it are drawn as they always were.
        self.history = build_history(shape)
        # What nothing listens to must not wait for a gradient: training in several processes would hang on it.
        gated = shape.fusion == "gated" and len(shape.towers) > 1
        steers = not shape.towers or shape.tower_film or gated
        routes = shape.router == "direction" and len(self.trunk.routers) > 0
        self.view_condition.requires_grad_(steers)
        self.instruction.requires_grad_(steers or routes)

    def instruct(self, tokens: torch.Tensor) -> Instructed:
        """Prepare for instructions, text tokens [B, L]."""
        valid = tokens != self.architecture.padding
        text = self.trunk.embed(tokens)
        condition = self.instruction(*self._described(text, valid))
        per_view = (condition[:, None] + self.view_condition).flatten(0, 1)
        plan = self.trunk.plan(text, valid, condition)
        return Instructed(text, self.tower.modulations(per_view), plan, self._reading(len(text)))

    def describe(self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return features [B, condition + D] of what is asked and seen, by which skills are told apart.

        The instruction's vector, and the mean of the slots' last states. Arguments as `forward` takes them.
        """
        instructed = self.instruct(tokens)
        condition = self.instruction(*self._described(instructed.text, tokens != self.architecture.padding))
        _, visual = self._see(images, instructed.steering)
        known = self.state(state.to(visual.dtype))[:, None]
        slots = self.slots.expand(len(visual), -1, -1)
        output = self.trunk(self.layout.assemble(visual, instructed.text, known, slots), instructed.plan)
        return torch.cat([condition, output.hidden[-1][:, self.layout.span("slots")].mean(1)], dim=1).float()

    def _reading(self, batch: int) -> AttentionPlan | None:
        """Return the plan by which an expert reads visual tokens, state and slots, None where PyTorch attends."""
        if isinstance(self.expert, SlotHead):
            return None
        return self.expert.plan(batch, self.layout.visual + 1 + self.layout.slots)

    def _described(self, text: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the instruction's vector is made of; the original counts its stop token among the words."""
        extra = self.architecture.extra_slots
        if not extra or self.architecture.instruction_features == "ordered":
            return text, valid
        stop = self.slots[:, -extra:].expand(len(text), -1, -1)
        return torch.cat([text, stop], dim=1), torch.cat([valid, valid.new_ones(len(text), extra)], dim=1)

    def nothing_remembered(self, batch: int) -> Memory | None:
        """Return the memory of B episodes that begin; None for a policy without history."""
        return None if self.history is None else self.history.nothing(batch, self.layout.visual)

    def decide(
        self, images: torch.Tensor, instructed: Instructed, state: torch.Tensor, memory: Memory | None = None
    ) -> Decision:
        """Decide for images uint8 [B, V, 3, H, W] and normalised states [B, state], under instructions.

        `memory`: what a policy with history remembers; None is nothing.
        """
        seen, visual = self._see(images, instructed.steering)
        remembered = None if self.history is None else self.history.remember(visual)
        return self._decide(seen, visual, instructed, state, memory, remembered)

    def _see(self, images: torch.Tensor, steering: Any) -> tuple[Seen, torch.Tensor]:
        """Return what the towers see in images [B, V, 3, H, W], and its tokens as [B, N, D]."""
        # The rows of a batch are told apart before the trunk, so that views of all of them pass the towers at once.
        seen = self.tower(images.flatten(0, 1).to(self.view_condition.dtype), steering)
        return seen, seen.tokens.reshape(len(images), self.layout.visual, -1)

    def _decide(
        self,
        seen: Seen,
        visual: torch.Tensor,
        instructed: Instructed,
        state: torch.Tensor,
        memory: Memory | None,
        remembered: torch.Tensor | None,
    ) -> Decision:
        text, batch = instructed.text, len(visual)
        known = self.state(state.to(text.dtype))[:, None]
        recalled = None
        if self.history is not None and memory is not None:
            visual, known = self.history(torch.cat([visual, known], dim=1), memory).split([self.layout.visual, 1], 1)
            recalled = self.history.recall(known[:, 0])
        sequence = self.layout.assemble(visual, text, known, self.slots.expand(batch, -1, -1))
        output = self.trunk(sequence, instructed.plan)
        return Decision(
            self._act(output.hidden, known, instructed).float(),
            None if seen.positions is None else seen.positions.unflatten(0, (batch, -1)),
            None if seen.logits is None else seen.logits.unflatten(0, (batch, -1)),
            output.kept,
            remembered,
            recalled,
        )

    def _act(self, hidden: list[torch.Tensor], state: torch.Tensor, instructed: Instructed) -> torch.Tensor:
        """Return the actions [B, T, A] that the expert reads off the trunk's hidden states."""
        shape, layout = self.architecture, self.layout
        read = hidden[-1:] if shape.readout == "slots" else hidden[-shape.expert_blocks :]
        slots = [self._slots(layer, instructed.plan) for layer in read]
        if shape.readout == "slots":
            return self.expert(slots[0][:, : slots[0].shape[1] - shape.extra_slots])
        visual, early = layout.span("visual"), int(shape.read_shifted)
        seen = [layer[:, visual.start - early : visual.stop - early] for layer in read]
        if shape.readout == "expert":
            known = [layer[:, layout.span("state")] for layer in read]
            decided = [torch.cat(parts, dim=1) for parts in zip(known, slots, strict=True)]
            return self.expert(seen, decided, instructed.reading)
        return self.expert(seen, slots, state[:, 0], instructed.reading)

    def _slots(self, hidden: torch.Tensor, plan: TrunkPlan) -> torch.Tensor:
        """Return the states [B, slots, D] that stand for the slots."""
        if self.architecture.read_shifted:
            return hidden.gather(1, plan.early_places[..., None].expand(-1, -1, hidden.shape[-1]))
        return hidden[:, self.layout.span("slots")]

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor, past: Past | None = None
    ) -> Decision:
        """Decide for images uint8 [B, V, 3, H, W], text tokens [B, L] and normalised states [B, state].

        `past`: the frames that a policy with history remembers; the gradient reaches the towers through them too.
        """
        instructed = self.instruct(tokens)
        if self.history is None or past is None:
            return self.decide(images, instructed, state)
        seen, visual = self._see(images, instructed.steering)
        frames = [visual]
        if len(past.images):
            rows = past.member[:, None] * images.shape[1] + torch.arange(images.shape[1], device=images.device)
            steering = map_tensors(instructed.steering, lambda each: each.index_select(0, rows.flatten()))
            frames.append(self._see(past.images, steering)[1])
        left = self.history.remember(torch.cat(frames))
        # Not by indexing, whose gradient is summed in any order on several threads.
        tokens = left.index_select(0, past.place.clamp(min=0).flatten()).unflatten(0, past.place.shape)
        memory = Memory(tokens, past.place >= 0)
        return self._decide(seen, visual, instructed, state, memory, left[: len(visual)])
