"""One policy for many episodes: pending decisions share one forward pass of a fixed batch size.

The actions of an episode must not depend on which other episodes run beside it. So the batch size is always the same,
because libraries choose kernels, and with them the last bits, by it. A trial before the first episode checks whether
the bits of a row still depend on its position in the batch; if so, every decision has its own pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..loading import load_policy
from ..network.capture import CapturedPolicy
from ..network.history import FrameMemory
from ..network.model import InstructionPlan, PolicyOutput
from ..network.tensor_tree import map_tensors
from .skill_selector import SkillSelector, validate_skill
from .token_overlay import token_overlay

TRIAL_INSTRUCTIONS = ("pick up the cube", "go left", "stop")
"""Instructions of the trial whether the bits of a row depend on its position in the batch."""

TRIALS = 3
"""Random batches of that trial."""


@dataclass
class _EpisodeState:
    """One episode: its instruction, the policy's memory, and the images and output of its last decision."""

    instruction: str
    memory: FrameMemory | None
    skill_selector: SkillSelector | None = None
    images: torch.Tensor | None = None
    decision: PolicyOutput | None = None


class BatchedActor:
    """Decide for many episodes, up to `rows` at once; a number, its slot, identifies each episode.

    Free rows of a pass repeat the first one. `rows` becomes 1 if `depends_on_batch_position`, and for a merged policy,
    whose weights are those of one skill at a time; skills are selected as by `PolicyActor`.

    Args:
        checkpoint: The checkpoint folder.
        rows: Batch size of a forward pass.
        threads, device, dtype, kernels, skill: As in `PolicyActor`.

    Raises:
        InputError: The checkpoint cannot be loaded, or has no such skill.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        rows: int,
        *,
        threads: int | None = 1,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernels: str | None = None,
        skill: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        change = () if kernels is None else (f"kernels={kernels}",)
        self.core = load_policy(checkpoint, device=device, dtype=dtype, change=change)
        self.contract = self.core.contract
        self._uses_cuda_graph = torch.device(device).type == "cuda"
        self._episodes: dict[int, _EpisodeState] = {}
        self._skill = validate_skill(self.core, skill)
        self._set_rows(1 if self.core.skills else rows)
        if self.rows > 1 and self.depends_on_batch_position():
            self._set_rows(1)

    def _set_rows(self, rows: int) -> None:
        self.rows = rows
        self._plan_key: tuple[str | None, tuple[str, ...]] | None = None
        self._instruction_plan: InstructionPlan | None = None
        self._captured_policy: CapturedPolicy | None = None

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Start an episode in a slot and drop its last one. The policy is deterministic: the seed has no effect."""
        skill_selector = SkillSelector(self.core, self._skill) if self.core.skills else None
        self._episodes[slot] = _EpisodeState(instruction, self.core.empty_memory(1), skill_selector)

    def decide(self, observations: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, np.ndarray], float]:
        """Decide the next actions of several episodes.

        Args:
            observations: Observations by slot, as in `PolicyActor.act`.

        Returns:
            Actions float32 [execute, A] by slot, and the seconds of a forward pass.

        Raises:
            KeyError: A slot has no episode.
        """
        started, chunks = time.perf_counter(), {}
        slots = list(observations)
        for first in range(0, len(slots), self.rows):
            batch_slots = slots[first : first + self.rows]
            chunks |= self._decide_batch({slot: observations[slot] for slot in batch_slots})
        passes = -(-len(slots) // self.rows)
        return chunks, (time.perf_counter() - started) / max(passes, 1)

    def _decide_batch(self, observations: Mapping[int, Mapping[str, Any]]) -> dict[int, np.ndarray]:
        episodes = {slot: self._episodes[slot] for slot in observations}
        rows = [*observations, *[next(iter(observations))] * (self.rows - len(observations))]
        names = [camera.name for camera in self.contract.cameras]
        views = np.stack([[observations[slot]["pixels"][name] for name in names] for slot in rows])
        images = torch.from_numpy(views).permute(0, 1, 4, 2, 3).contiguous()
        state = torch.from_numpy(np.stack([observations[slot]["agent_pos"] for slot in rows]).astype(np.float32))
        single_episode = episodes[rows[0]]
        if single_episode.skill_selector is not None and not single_episode.skill_selector.select_skill(
            images, single_episode.instruction, state
        ):
            single_episode.decision = None
            return {rows[0]: single_episode.skill_selector.hold(state[0].numpy())[: self.contract.execute]}
        memory = _concatenate_memories([episodes[slot].memory for slot in rows])
        skill = None if single_episode.skill_selector is None else single_episode.skill_selector.name
        chunk, decision = self._forward_pass(
            images, [episodes[slot].instruction for slot in rows], state, memory, skill
        )
        actions = chunk[:, : self.contract.execute].cpu().numpy()
        for row, episode in enumerate(episodes.values()):
            episode.images, episode.decision = images[row : row + 1], _select_row(decision, row)
            if episode.memory is not None and episode.decision.frame_tokens is not None:
                episode.memory = episode.memory.with_new_frame(episode.decision.frame_tokens)
        return {slot: actions[row] for row, slot in enumerate(episodes)}

    def _forward_pass(
        self,
        images: torch.Tensor,
        instructions: Sequence[str],
        state: torch.Tensor,
        memory: FrameMemory | None,
        skill: str | None = None,
    ) -> tuple[torch.Tensor, PolicyOutput]:
        plan_key = skill, tuple(instructions)
        if self._instruction_plan is None or plan_key != self._plan_key:
            self._plan_key, self._instruction_plan = plan_key, self.core.encode_instruction(instructions)
            if self._captured_policy is not None:
                self._captured_policy.set_instruction(self._instruction_plan)
            elif self._uses_cuda_graph:
                self._captured_policy = self.core.capture(self._instruction_plan)
        return self.core.decide(images, self._instruction_plan, state, self._captured_policy, memory)

    def overlay(self, slot: int) -> dict[str, np.ndarray] | None:
        """Return where the visual tokens of a slot's last decision look; see `PolicyActor.overlay`."""
        episode = self._episodes[slot]
        if episode.decision is None or episode.images is None or self.core.architecture.aggregation_tokens == 0:
            return None
        if episode.skill_selector is not None:
            episode.skill_selector.activate()
        overlays = token_overlay(
            self.core.model, episode.images, self.core.encode_instruction([episode.instruction]), episode.decision
        )
        return {camera.name: view for camera, view in zip(self.contract.cameras, overlays, strict=True)}

    def depends_on_batch_position(self) -> bool:
        """Tell whether any bit of a row's actions depends on its position in the batch or on the other rows.

        Random images, states and instructions are decided at every position in turn, and beside other rows.
        """
        generator, camera = torch.Generator().manual_seed(0), self.contract.cameras[0]
        views, joints = len(self.contract.cameras), len(self.contract.state.names)
        words = [TRIAL_INSTRUCTIONS[row % len(TRIAL_INSTRUCTIONS)] for row in range(self.rows)]
        blank_memory = self.core.empty_memory(self.rows)
        for _ in range(TRIALS):
            size = (self.rows, views, 3, camera.height, camera.width)
            images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
            state = 30 * torch.randn(self.rows, joints, generator=generator)
            expected = self._forward_pass(images, words, state, blank_memory)[0]
            for shift in range(1, self.rows):
                shifted = [torch.roll(each, shift, 0) for each in (images, state)]
                got = self._forward_pass(shifted[0], [*words[-shift:], *words[:-shift]], shifted[1], blank_memory)[0]
                if not torch.equal(got, torch.roll(expected, shift, 0)):
                    return True
            single_episode = self._forward_pass(
                images[:1].expand_as(images), [words[0]] * self.rows, state[:1].expand_as(state), blank_memory
            )
            if not torch.equal(single_episode[0], expected[:1].expand_as(expected)):
                return True
        return False


def _select_row(decision: PolicyOutput, row: int) -> PolicyOutput:
    return map_tensors(decision, lambda tensor: tensor[row : row + 1])


def _concatenate_memories(memories: Sequence[FrameMemory | None]) -> FrameMemory | None:
    present = [memory for memory in memories if memory is not None]
    if len(present) < len(memories):
        return None
    return FrameMemory(
        torch.cat([memory.tokens for memory in present]), torch.cat([memory.valid for memory in present])
    )
