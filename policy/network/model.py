"""The whole policy as one module: pictures, instruction and state in, a normalised chunk of actions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...kernels.plan import AttentionPlan
from ...perception.pruning import keep_schedule
from ...perception.tower_output import TowerOutput
from .action_heads.slot_head import SlotHead
from .architecture import Architecture
from .build import build_expert, build_history, build_tower, trunk_configuration
from .history import FrameMemory, PastFrames
from .instruction import InstructionEncoder, MeanInstructionEncoder
from .layout import TokenLayout
from .tensor_tree import map_tensors
from .trunk import Trunk, TrunkPlan


@dataclass
class PolicyOutput:
    """What one forward pass decided and what it looked at.

    `actions` [B, T, A], normalised; `positions` [B, V, points, 2], fractions of the picture, and `logits` of the
    pointing maps [B, V, points, rows, columns], None where towers do not point; `kept`: for each trunk layer the places
    [B, kept] of the visual tokens that it worked on, None where it worked on all; `frame_tokens`: what this decision
    leaves for the next ones, see `FrameMemory.with_new_frame`, and `recalled_points` [B, 3 * LABELLED]: labelled points in decimetres,
    see `History`; None for a policy without history, and where nothing could be remembered.
    """

    actions: torch.Tensor
    positions: torch.Tensor | None
    logits: torch.Tensor | None
    kept: list[torch.Tensor | None]
    frame_tokens: torch.Tensor | None = None
    recalled_points: torch.Tensor | None = None


@dataclass(frozen=True)
class InstructionPlan:
    """What follows from the instruction alone: computed once, it serves every decision under that instruction.

    `text` [B, L, D] embedded; `modulations`: what modulates the towers; `plan`: masks, positions and router directions;
    `expert_plan`: the expert's plan, where it attends by one.
    """

    text: torch.Tensor
    modulations: Any
    plan: TrunkPlan
    expert_plan: AttentionPlan | None = None


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
            self.instruction = MeanInstructionEncoder(padded=shape.instruction_features == "mean_padded")
        groups = views if shape.prune_per_view else 1
        self.trunk = Trunk(
            trunk_configuration(shape, layout.cached_text_length + layout.length),
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
        conditions_towers = not shape.towers or shape.tower_film or gated
        conditions_router = shape.router == "direction" and len(self.trunk.routers) > 0
        self.view_condition.requires_grad_(conditions_towers)
        self.instruction.requires_grad_(conditions_towers or conditions_router)

    def encode_instruction(self, tokens: torch.Tensor) -> InstructionPlan:
        """Prepare for instructions, text tokens [B, L]."""
        valid = tokens != self.architecture.padding
        text = self.trunk.embed(tokens)
        condition = self.instruction(*self._instruction_encoder_input(text, valid))
        per_view = (condition[:, None] + self.view_condition).flatten(0, 1)
        plan = self.trunk.plan(text, valid, condition)
        return InstructionPlan(text, self.tower.modulations(per_view), plan, self._expert_plan(len(text)))

    def routing_features(self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return features [B, condition + D] of what is asked and seen, by which skills are told apart.

        The instruction's vector, and the mean of the slots' last states. Arguments as `forward` takes them.
        """
        instruction_plan = self.encode_instruction(tokens)
        condition = self.instruction(
            *self._instruction_encoder_input(instruction_plan.text, tokens != self.architecture.padding)
        )
        _, visual = self._run_towers(images, instruction_plan.modulations)
        state_token = self.state(state.to(visual.dtype))[:, None]
        slots = self.slots.expand(len(visual), -1, -1)
        output = self.trunk(
            self.layout.assemble(visual, instruction_plan.text, state_token, slots), instruction_plan.plan
        )
        return torch.cat([condition, output.hidden[-1][:, self.layout.span("slots")].mean(1)], dim=1).float()

    def _expert_plan(self, batch: int) -> AttentionPlan | None:
        """Return the plan by which an expert reads visual tokens, state and slots, None where PyTorch attends."""
        if isinstance(self.expert, SlotHead):
            return None
        return self.expert.plan(batch, self.layout.visual + 1 + self.layout.slots)

    def _instruction_encoder_input(self, text: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the instruction's vector is made of; the original counts its stop token among the words."""
        extra = self.architecture.extra_slots
        if not extra or self.architecture.instruction_features == "ordered":
            return text, valid
        stop = self.slots[:, -extra:].expand(len(text), -1, -1)
        return torch.cat([text, stop], dim=1), torch.cat([valid, valid.new_ones(len(text), extra)], dim=1)

    def empty_memory(self, batch: int) -> FrameMemory | None:
        """Return the memory of B episodes that begin; None for a policy without history."""
        return None if self.history is None else self.history.empty_memory(batch, self.layout.visual)

    def decide(
        self,
        images: torch.Tensor,
        instruction_plan: InstructionPlan,
        state: torch.Tensor,
        memory: FrameMemory | None = None,
    ) -> PolicyOutput:
        """Decide for images uint8 [B, V, 3, H, W] and normalised states [B, state], under instructions.

        `memory`: what a policy with history remembers; None is nothing.
        """
        tower_output, visual = self._run_towers(images, instruction_plan.modulations)
        frame_tokens = None if self.history is None else self.history.encode_frames(visual)
        return self._decide(tower_output, visual, instruction_plan, state, memory, frame_tokens)

    def _run_towers(self, images: torch.Tensor, modulations: Any) -> tuple[TowerOutput, torch.Tensor]:
        """Return what the towers see in images [B, V, 3, H, W], and its tokens as [B, N, D]."""
        # The rows of a batch are told apart before the trunk, so that views of all of them pass the towers at once.
        tower_output = self.tower(images.flatten(0, 1).to(self.view_condition.dtype), modulations)
        return tower_output, tower_output.tokens.reshape(len(images), self.layout.visual, -1)

    def _decide(
        self,
        tower_output: TowerOutput,
        visual: torch.Tensor,
        instruction_plan: InstructionPlan,
        state: torch.Tensor,
        memory: FrameMemory | None,
        frame_tokens: torch.Tensor | None,
    ) -> PolicyOutput:
        text, batch = instruction_plan.text, len(visual)
        state_token = self.state(state.to(text.dtype))[:, None]
        recalled_points = None
        if self.history is not None and memory is not None:
            visual, state_token = self.history(torch.cat([visual, state_token], dim=1), memory).split(
                [self.layout.visual, 1], 1
            )
            recalled_points = self.history.recall(state_token[:, 0])
        sequence = self.layout.assemble(visual, text, state_token, self.slots.expand(batch, -1, -1))
        output = self.trunk(sequence, instruction_plan.plan)
        return PolicyOutput(
            self._predict_actions(output.hidden, state_token, instruction_plan).float(),
            None if tower_output.positions is None else tower_output.positions.unflatten(0, (batch, -1)),
            None if tower_output.logits is None else tower_output.logits.unflatten(0, (batch, -1)),
            output.kept,
            frame_tokens,
            recalled_points,
        )

    def _predict_actions(
        self, hidden: list[torch.Tensor], state: torch.Tensor, instruction_plan: InstructionPlan
    ) -> torch.Tensor:
        """Return the actions [B, T, A] that the expert reads off the trunk's hidden states."""
        shape, layout = self.architecture, self.layout
        layers_read = hidden[-1:] if shape.readout == "slots" else hidden[-shape.expert_blocks :]
        slots = [self._slot_states(layer, instruction_plan.plan) for layer in layers_read]
        if shape.readout == "slots":
            return self.expert(slots[0][:, : slots[0].shape[1] - shape.extra_slots])
        visual, shift = layout.span("visual"), int(shape.read_shifted)
        tower_output = [layer[:, visual.start - shift : visual.stop - shift] for layer in layers_read]
        if shape.readout == "expert":
            state_token = [layer[:, layout.span("state")] for layer in layers_read]
            slot_states = [torch.cat(parts, dim=1) for parts in zip(state_token, slots, strict=True)]
            return self.expert(tower_output, slot_states, instruction_plan.expert_plan)
        return self.expert(tower_output, slots, state[:, 0], instruction_plan.expert_plan)

    def _slot_states(self, hidden: torch.Tensor, plan: TrunkPlan) -> torch.Tensor:
        """Return the states [B, slots, D] that stand for the slots."""
        if self.architecture.read_shifted:
            return hidden.gather(1, plan.preceding_indices[..., None].expand(-1, -1, hidden.shape[-1]))
        return hidden[:, self.layout.span("slots")]

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor, past_frames: PastFrames | None = None
    ) -> PolicyOutput:
        """Decide for images uint8 [B, V, 3, H, W], text tokens [B, L] and normalised states [B, state].

        `past_frames`: the frames that a policy with history remembers; the gradient reaches the towers through them too.
        """
        instruction_plan = self.encode_instruction(tokens)
        if self.history is None or past_frames is None:
            return self.decide(images, instruction_plan, state)
        tower_output, visual = self._run_towers(images, instruction_plan.modulations)
        frames = [visual]
        if len(past_frames.images):
            rows = past_frames.batch_row[:, None] * images.shape[1] + torch.arange(
                images.shape[1], device=images.device
            )
            modulations = map_tensors(instruction_plan.modulations, lambda each: each.index_select(0, rows.flatten()))
            frames.append(self._run_towers(past_frames.images, modulations)[1])
        frame_tokens = self.history.encode_frames(torch.cat(frames))
        # Not by indexing, whose gradient is summed in any order on several threads.
        tokens = frame_tokens.index_select(0, past_frames.place.clamp(min=0).flatten()).unflatten(
            0, past_frames.place.shape
        )
        memory = FrameMemory(tokens, past_frames.place >= 0)
        return self._decide(tower_output, visual, instruction_plan, state, memory, frame_tokens[: len(visual)])
