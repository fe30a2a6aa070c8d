"""One policy for many episodes: the decisions that wait together are made in one forward pass of a fixed size.

What an episode gets must not depend on which others run beside it. A pass always has the same number of rows, whatever
waits: kernels, and with them the last bits, are chosen by it. Where the bits of a row still depend on its place, which
is tried out before the first episode, every decision is made by itself.
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
"""What is said to the rows while it is tried out whether their bits depend on their place."""

TRIALS = 3


@dataclass
class _EpisodeState:
    """What an episode remembers: its words, the policy's memory, and what its last decision looked at."""

    instruction: str
    memory: FrameMemory | None
    skill_selector: SkillSelector | None = None
    images: torch.Tensor | None = None
    decision: PolicyOutput | None = None


class BatchedActor:
    """Decide for many episodes, up to `rows` at once; each has a number of its own, its slot.

    On a CUDA device the pass is captured in a graph; rows that nothing waits for repeat the first one. `rows` becomes 1
    where `depends_on_batch_position` finds a difference, and for a merged policy, whose weights are one skill's at a time: each
    episode finds its own, or has the one that `skill` names, as `PolicyActor` does. `threads` sets torch's CPU threads;
    None leaves them as they are.
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
        """Begin an episode; what the slot's last one remembered is dropped. The policy draws nothing from the seed."""
        skill_selector = SkillSelector(self.core, self._skill) if self.core.skills else None
        self._episodes[slot] = _EpisodeState(instruction, self.core.empty_memory(1), skill_selector)

    def decide(self, observations: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, np.ndarray], float]:
        """Return each slot's next actions float32 [execute, A], and how many seconds a decision took.

        Raises KeyError for a slot that has not begun.
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
            if episode.memory is not None:
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
        if plan_key != self._plan_key:
            self._plan_key, self._instruction_plan = plan_key, self.core.encode_instruction(instructions)
            if self._captured_policy is not None:
                self._captured_policy.set_instruction(self._instruction_plan)
            elif self._uses_cuda_graph:
                self._captured_policy = self.core.capture(self._instruction_plan)
        return self.core.decide(images, self._instruction_plan, state, self._captured_policy, memory)

    def overlay(self, slot: int) -> dict[str, np.ndarray] | None:
        """Return where the visual tokens of a slot's last decision look, as `PolicyActor.overlay` does."""
        episode = self._episodes[slot]
        if episode.decision is None or self.core.architecture.aggregation_tokens == 0:
            return None
        if episode.skill_selector is not None:
            episode.skill_selector.activate()
        overlays = token_overlay(
            self.core.model, episode.images, self.core.encode_instruction([episode.instruction]), episode.decision
        )
        return {camera.name: view for camera, view in zip(self.contract.cameras, overlays, strict=True)}

    def depends_on_batch_position(self) -> bool:
        """Tell whether a row's actions differ, in any bit, with its place in the batch or with its neighbours.

        Rows of random pictures, states and words are decided at every place in turn, and among others.
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
    if any(memory is None for memory in memories):
        return None
    return FrameMemory(
        torch.cat([memory.tokens for memory in memories]), torch.cat([memory.valid for memory in memories])
    )
