"""The actor: a checkpoint that acts in a world, one decision for several steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..loading import load_policy
from ..network.capture import CapturedPolicy
from ..network.history import FrameMemory
from ..network.model import InstructionPlan, PolicyOutput
from .skill_selector import SkillSelector, validate_skill
from .token_overlay import token_overlay


class PolicyActor:
    """Act with a checkpoint: decide a chunk, execute the contract's first `execute` steps of it, decide again.

    Observations and actions are in the contract's units; the caller has checked the contract against the world.
    `threads` sets torch's CPU threads for the whole process; None leaves them as they are. On a CUDA device the whole
    decision is captured in a graph at the first instruction. A policy with history remembers this episode's decisions.
    `kernels` replaces the checkpoint's choice of `Architecture.kernels`.

    A merged policy finds its skill at an episode's first observation (`route`), unless `skill` names one; where it
    abstains the actor holds still, and looks again at the next decision.
    """

    def __init__(
        self,
        checkpoint: str | Path,
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
        skill = validate_skill(self.core, skill)
        self.skills = SkillSelector(self.core, skill) if self.core.skills else None
        self.decision: PolicyOutput | None = None
        self.decision_seconds: list[float] = []
        self._queue: list[np.ndarray] = []
        self._instruction = ""
        self._plan_key: tuple[str | None, str] | None = None
        self._instruction_plan: InstructionPlan | None = None
        self._uses_cuda_graph = torch.device(device).type == "cuda"
        self._captured_policy: CapturedPolicy | None = None
        self._images: torch.Tensor | None = None
        self._memory: FrameMemory | None = None
        self._overlay: dict[str, np.ndarray] | None = None

    def reset(self, instruction: str, seed: int) -> None:
        """Begin an episode; what was still queued is dropped. The policy draws nothing, so the seed changes nothing."""
        self._queue, self.decision, self.decision_seconds, self._overlay = [], None, [], None
        self._memory = self.core.empty_memory(1)
        if self.skills is not None:
            self.core.tokenizer([instruction])  # words that do not fit are refused at once
            self._instruction = instruction
            self.skills.begin()
        else:
            self._set_instruction(instruction)

    def _set_instruction(self, instruction: str) -> None:
        """Prepare for an instruction, unless that is done: by the weights that the policy has now."""
        plan_key = self.skill, instruction
        if plan_key == self._plan_key:
            return
        self._plan_key, self._instruction = plan_key, instruction
        self._instruction_plan = self.core.encode_instruction([instruction])
        if self._captured_policy is not None:
            self._captured_policy.set_instruction(self._instruction_plan)
        elif self._uses_cuda_graph:
            self._captured_policy = self.core.capture(self._instruction_plan)

    @property
    def skill(self) -> str | None:
        """The skill that a merged policy acts by; None before the first decision, and for any other policy."""
        return None if self.skills is None else self.skills.name

    @property
    def abstained(self) -> str | None:
        """Why a merged policy holds still; None while it acts."""
        return None if self.skills is None else self.skills.reason

    @property
    def pending(self) -> int:
        """How many further actions are decided already: `act` looks at no observation before they are used up."""
        return len(self._queue)

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the next action float32 [A] for an observation of the desk's form."""
        if not self._queue:
            started = time.perf_counter()
            chunk = self.decide(observation)
            self._queue = list(chunk[: self.contract.execute])
            self.decision_seconds.append(time.perf_counter() - started)
        return self._queue.pop(0)

    def decide(self, observation: dict[str, Any]) -> np.ndarray:
        """Return a whole chunk float32 [T, A]."""
        views = np.stack([observation["pixels"][camera.name] for camera in self.contract.cameras])
        images = torch.from_numpy(views).permute(0, 3, 1, 2)[None]
        state = torch.from_numpy(np.asarray(observation["agent_pos"], dtype=np.float32))[None]
        self._images = images
        if self.skills is not None:
            if not self.skills.select_skill(images, self._instruction, state):
                self.decision = self._overlay = None
                return self.skills.hold(state[0].numpy())
            self._set_instruction(self._instruction)
        chunk, self.decision = self.core.decide(
            images, self._instruction_plan, state, self._captured_policy, self._memory
        )
        if self._memory is not None:
            self._memory = self._memory.with_new_frame(self.decision.frame_tokens)
        self._overlay = None
        return chunk[0].cpu().numpy()

    def overlay(self) -> dict[str, np.ndarray] | None:
        """Return where the visual tokens of the last decision look: per camera float [M, 4], see `token_overlay.token_overlay`.

        None before the first decision, and for a policy that all patches pass: it looks everywhere.
        """
        has_aggregation_tokens = self.core.architecture.aggregation_tokens > 0
        if self._overlay is None and self.decision is not None and has_aggregation_tokens:
            overlays = token_overlay(self.core.model, self._images, self._instruction_plan, self.decision)
            self._overlay = {camera.name: view for camera, view in zip(self.contract.cameras, overlays, strict=True)}
        return self._overlay
