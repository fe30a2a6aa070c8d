"""The policy network: images, instruction and state in, a normalized chunk of actions out.

The network follows CogVLA (arXiv 2508.21046): towers that the instruction modulates and that aggregate each view into
M tokens (EFA-Routing), a language-model trunk that prunes visual tokens (LFP-Routing) under a coupled attention mask
(CAtten), and an action head that decodes a chunk in parallel. `Architecture` names every choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...kernels.plan import AttentionPlan
from ...perception.pruning import keep_schedule
from ...perception.tower_output import TowerOutput
from .action_heads.expert import Expert
from .action_heads.slot_head import SlotHead
from .architecture import Architecture
from .build import build_action_head, build_history, build_tower, trunk_configuration
from .history import FrameMemory, PastFrames
from .instruction import InstructionEncoder, MeanInstructionEncoder
from .layout import TokenLayout
from .tensor_tree import map_tensors
from .trunk import Trunk, TrunkPlan


@dataclass
class PolicyOutput:
    """What one forward pass computed.

    Attributes:
        actions: Normalized actions [B, T, A].
        positions: Where the pointing maps point, [B, V, points, 2], as fractions of the image; None without them.
        logits: The pointing maps [B, V, points, rows, columns]; None for towers that do not point.
        kept_indices: For every trunk layer the indices [B, kept] of the visual tokens it worked on; None for all.
        frame_tokens: Keys and values [B, N, 2D] of this frame for `FrameMemory.with_new_frame`; None without history.
        recalled_points: Labelled points [B, 3 * LABELLED_POINTS] in decimetres, see `History`; None without memory.
    """

    actions: torch.Tensor
    positions: torch.Tensor | None
    logits: torch.Tensor | None
    kept_indices: list[torch.Tensor | None]
    frame_tokens: torch.Tensor | None = None
    recalled_points: torch.Tensor | None = None


@dataclass(frozen=True)
class InstructionPlan:
    """What depends on the instruction alone: computed once, it serves every decision under that instruction.

    Attributes:
        text: Embedded instruction [B, L, D].
        modulations: What modulates the towers, in the towers' own form.
        trunk_plan: Attention patterns, positions and router directions of the trunk.
        expert_plan: Attention plan of the expert; None where PyTorch attends.
    """

    text: torch.Tensor
    modulations: Any
    trunk_plan: TrunkPlan
    expert_plan: AttentionPlan | None = None


class SaccadeModel(nn.Module):
    """Towers, trunk and action head.

    Args:
        architecture: Sizes and choices of the network.
        views: Cameras, V.
        image_size: Height and width of the images in pixels.
        state: Width of the state vector, S.
        action: Dimensions of an action, A.
        chunk: Steps of a chunk, T.

    Raises:
        InputError: The sizes do not fit together.
    """

    # Any: towers and action heads share a call, but no class.
    tower: Any
    expert: Any

    def __init__(
        self, architecture: Architecture, *, views: int, image_size: int, state: int, action: int, chunk: int
    ) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.trunk_width
        self.tower = build_tower(architecture, image_size)
        slots = chunk * (action if architecture.slot_unit == "element" else 1) + architecture.extra_slots
        self.layout = TokenLayout(
            visual=views * self.tower.tokens,
            text=architecture.text_length,
            slots=slots,
            order=architecture.sequence,
            mask=architecture.mask,
        )
        self.view_condition = nn.Parameter(0.02 * torch.randn(views, architecture.condition_width))
        if architecture.instruction_features == "ordered":
            self.instruction = InstructionEncoder(width, architecture.condition_width)
        else:
            self.instruction = MeanInstructionEncoder(padded=architecture.instruction_features == "mean_padded")
        self.trunk = self._build_trunk(groups=views if architecture.prune_per_view else 1)
        self.state = nn.Sequential(nn.Linear(state, width), nn.GELU(), nn.Linear(width, width))
        queries = 0.02 * torch.randn(1, slots, width)
        if architecture.slot_queries == "learned":
            self.slots = nn.Parameter(queries)
        else:
            self.register_buffer("slots", torch.zeros_like(queries))
        self.expert = build_action_head(architecture, chunk=chunk, slots=slots, action=action)
        # Last, so that policies without history keep their random initial weights.
        self.history = build_history(architecture)
        self._freeze_unused()

    def _build_trunk(self, groups: int) -> Trunk:
        architecture, layout = self.architecture, self.layout
        return Trunk(
            trunk_configuration(architecture, layout.cached_text_length + layout.length),
            layout,
            groups=groups,
            keep=keep_schedule(
                layout.visual // groups,
                architecture.trunk_layers,
                first=architecture.prune_from,
                floor=architecture.keep_floor,
            ),
            condition=architecture.condition_width,
            router=architecture.router,
            signal=architecture.router_signal,
            positions=architecture.positions,
            kernels=architecture.kernels,
        )

    def _freeze_unused(self) -> None:
        """Freeze parameters that get no gradient: DDP hangs on unused ones."""
        architecture = self.architecture
        gated = architecture.fusion == "gated" and len(architecture.towers) > 1
        conditions_towers = not architecture.towers or architecture.tower_film or gated
        conditions_router = architecture.router == "direction" and len(self.trunk.routers) > 0
        self.view_condition.requires_grad_(conditions_towers)
        self.instruction.requires_grad_(conditions_towers or conditions_router)

    def encode_instruction(self, tokens: torch.Tensor) -> InstructionPlan:
        """Compute what depends on the instruction alone, from text tokens [B, L]."""
        valid = tokens != self.architecture.padding  # [B, L]
        text = self.trunk.embed(tokens)  # [B, L, D]
        condition = self._condition(text, valid)  # [B, C]
        per_view = (condition[:, None] + self.view_condition).flatten(0, 1)  # [B * V, C]
        plan = self.trunk.plan(text, valid, condition)
        return InstructionPlan(text, self.tower.modulations(per_view), plan, self._expert_plan(len(text)))

    def _condition(self, text: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the instruction's vector [B, C] of embedded text [B, L, D]; `valid` [B, L] is false for padding.

        CogVLA averages its stop token, an extra slot, together with the text (EFA-Routing, section 3.2).
        """
        extra = self.architecture.extra_slots
        if extra and self.architecture.instruction_features != "ordered":
            stop = self.slots[:, -extra:].expand(len(text), -1, -1)  # [B, extra, D]
            text = torch.cat([text, stop], dim=1)
            valid = torch.cat([valid, valid.new_ones(len(valid), extra)], dim=1)
        return self.instruction(text, valid)

    def _expert_plan(self, batch: int) -> AttentionPlan | None:
        """Return the plan by which an expert attends to visual tokens, state and slots; None where PyTorch attends."""
        if isinstance(self.expert, SlotHead):
            return None
        return self.expert.plan(batch, self.layout.visual + 1 + self.layout.slots)

    def routing_features(self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Compute the features that select the skill of a merged policy.

        Args:
            images: uint8 [B, V, 3, H, W].
            tokens: Text tokens [B, L].
            state: Normalized states [B, S].

        Returns:
            float32 [B, C + D]: the instruction's vector, and the mean of the slots' last hidden states.
        """
        plan = self.encode_instruction(tokens)
        condition = self._condition(plan.text, tokens != self.architecture.padding)  # [B, C]
        _, visual = self._run_towers(images, plan.modulations)  # [B, N, D]
        state_token = self.state(state.to(visual.dtype))[:, None]  # [B, 1, D]
        slots = self.slots.expand(len(visual), -1, -1)  # [B, slots, D]
        output = self.trunk(self.layout.assemble(visual, plan.text, state_token, slots), plan.trunk_plan)
        pooled = output.hidden[-1][:, self.layout.span("slots")].mean(1)  # [B, D]
        return torch.cat([condition, pooled], dim=1).float()

    def empty_memory(self, batch: int) -> FrameMemory | None:
        """Return the empty memory of B new episodes; None for a policy without history."""
        return None if self.history is None else self.history.empty_memory(batch, self.layout.visual)

    def decide(
        self,
        images: torch.Tensor,
        instruction_plan: InstructionPlan,
        state: torch.Tensor,
        memory: FrameMemory | None = None,
    ) -> PolicyOutput:
        """Decide one chunk of actions for each row.

        Args:
            images: uint8 [B, V, 3, H, W].
            instruction_plan: The result of `encode_instruction` for B instructions.
            state: Normalized states [B, S].
            memory: What a policy with history remembers of each episode; None for nothing.
        """
        tower_output, visual = self._run_towers(images, instruction_plan.modulations)
        frame_tokens = None if self.history is None else self.history.encode_frames(visual)  # [B, N, 2D]
        return self._decide(tower_output, visual, instruction_plan, state, memory, frame_tokens)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor, past_frames: PastFrames | None = None
    ) -> PolicyOutput:
        """Decide one chunk of actions for each row of a training batch.

        Args:
            images: uint8 [B, V, 3, H, W].
            tokens: Text tokens [B, L].
            state: Normalized states [B, S].
            past_frames: The frames that a policy with history remembers; the towers get their gradient, too.
        """
        plan = self.encode_instruction(tokens)
        if self.history is None or past_frames is None:
            return self.decide(images, plan, state)
        tower_output, visual = self._run_towers(images, plan.modulations)
        frames = [visual]  # [B, N, D], then [F, N, D]
        if len(past_frames.images):
            views = torch.arange(images.shape[1], device=images.device)
            rows = past_frames.batch_row[:, None] * images.shape[1] + views  # [F, V]
            modulations = map_tensors(plan.modulations, lambda each: each.index_select(0, rows.flatten()))
            frames.append(self._run_towers(past_frames.images, modulations)[1])
        frame_tokens = self.history.encode_frames(torch.cat(frames))  # [B + F, N, 2D]
        # index_select, not indexing: the gradient of indexing is summed in random order on several threads.
        frame_index = past_frames.frame_index  # [B, H]
        remembered = frame_tokens.index_select(0, frame_index.clamp(min=0).flatten()).unflatten(0, frame_index.shape)
        memory = FrameMemory(remembered, frame_index >= 0)  # tokens [B, H, N, 2D]
        return self._decide(tower_output, visual, plan, state, memory, frame_tokens[: len(visual)])

    def _run_towers(self, images: torch.Tensor, modulations: Any) -> tuple[TowerOutput, torch.Tensor]:
        """Return the towers' output for images [B, V, 3, H, W], and its tokens as [B, N, D]."""
        tower_output = self.tower(images.flatten(0, 1).to(self.view_condition.dtype), modulations)  # [B * V, M, D]
        return tower_output, tower_output.tokens.reshape(len(images), self.layout.visual, -1)

    def _decide(
        self,
        tower_output: TowerOutput,
        visual: torch.Tensor,
        plan: InstructionPlan,
        state: torch.Tensor,
        memory: FrameMemory | None,
        frame_tokens: torch.Tensor | None,
    ) -> PolicyOutput:
        batch = len(visual)
        state_token = self.state(state.to(plan.text.dtype))[:, None]  # [B, 1, D]
        recalled_points = None
        if self.history is not None and memory is not None:
            current_tokens = torch.cat([visual, state_token], dim=1)  # [B, N + 1, D]
            visual, state_token = self.history(current_tokens, memory).split([self.layout.visual, 1], 1)
            recalled_points = self.history.recall(state_token[:, 0])  # [B, 3 * LABELLED_POINTS]
        sequence = self.layout.assemble(visual, plan.text, state_token, self.slots.expand(batch, -1, -1))  # [B, S, D]
        output = self.trunk(sequence, plan.trunk_plan)
        return PolicyOutput(
            actions=self._predict_actions(output.hidden, state_token, plan).float(),
            positions=None if tower_output.positions is None else tower_output.positions.unflatten(0, (batch, -1)),
            logits=None if tower_output.logits is None else tower_output.logits.unflatten(0, (batch, -1)),
            kept_indices=output.kept_indices,
            frame_tokens=frame_tokens,
            recalled_points=recalled_points,
        )

    def _predict_actions(
        self, hidden: Sequence[torch.Tensor], state_token: torch.Tensor, plan: InstructionPlan
    ) -> torch.Tensor:
        """Return the actions [B, T, A] that the action head reads from hidden states, each [B, S, D]."""
        architecture, layout = self.architecture, self.layout
        layers = hidden[-1:] if architecture.readout == "slots" else hidden[-architecture.expert_blocks :]
        slots = [self._slot_states(layer, plan.trunk_plan) for layer in layers]  # each [B, slots, D]
        if architecture.readout == "slots":
            return self.expert(slots[0][:, : slots[0].shape[1] - architecture.extra_slots])
        visual, shift = layout.span("visual"), int(architecture.read_shifted)
        visual_states = [layer[:, visual.start - shift : visual.stop - shift] for layer in layers]  # each [B, N, D]
        if isinstance(self.expert, Expert):
            state_states = [layer[:, layout.span("state")] for layer in layers]  # each [B, 1, D]
            slot_states = [torch.cat(parts, dim=1) for parts in zip(state_states, slots, strict=True)]
            return self.expert(visual_states, slot_states, plan.expert_plan)
        return self.expert(visual_states, slots, state_token[:, 0], plan.expert_plan)

    def _slot_states(self, hidden: torch.Tensor, plan: TrunkPlan) -> torch.Tensor:
        """Return the hidden states [B, slots, D] that are read for the slots."""
        if self.architecture.read_shifted:
            return hidden.gather(1, plan.preceding_indices[..., None].expand(-1, -1, hidden.shape[-1]))
        return hidden[:, self.layout.span("slots")]
