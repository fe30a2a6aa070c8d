"""The actor: a checkpoint that acts in one environment, with one decision for several steps."""

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

    Observations and actions are in the contract's units; the caller checks the contract against the environment. On a
    CUDA device the decision is captured in a CUDA graph at the first instruction. A policy with history remembers the
    decisions of the episode. A merged policy selects its skill at the first observation of an episode, unless `skill`
    names one; if it abstains, the actor holds still and selects again at the next decision.

    Args:
        checkpoint: The checkpoint folder.
        threads: CPU threads of torch, for the whole process; None leaves them unchanged.
        device: Device of the network.
        dtype: Floating point type of the weights.
        kernels: Replaces the checkpoint's `Architecture.kernels`.
        skill: Skill of a merged policy; None lets its router select.

    Raises:
        InputError: The checkpoint cannot be loaded, or has no such skill.

    Example:
        >>> actor = PolicyActor("runs/desk/checkpoint")
        >>> actor.reset("put the red cube in the bin", seed=0)
        >>> action = actor.act(observation)
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
        self.skill_selector = SkillSelector(self.core, skill) if self.core.skills else None
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
        """Start an episode and drop queued actions. The policy is deterministic: the seed has no effect."""
        self._queue, self.decision, self.decision_seconds, self._overlay = [], None, [], None
        self._memory = self.core.empty_memory(1)
        if self.skill_selector is not None:
            self.core.tokenizer([instruction])  # raises now if the instruction does not fit
            self._instruction = instruction
            self.skill_selector.reset()
        else:
            self._set_instruction(instruction)

    def _set_instruction(self, instruction: str) -> None:
        """Encode an instruction with the weights of the current skill, unless that is done already."""
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
        """The active skill of a merged policy; None before the first decision and for any other policy."""
        return None if self.skill_selector is None else self.skill_selector.name

    @property
    def abstained(self) -> str | None:
        """The reason why a merged policy holds still; None while it acts."""
        return None if self.skill_selector is None else self.skill_selector.reason

    @property
    def pending(self) -> int:
        """How many queued actions remain; until they are used up, `act` ignores its observation."""
        return len(self._queue)

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the next action.

        Args:
            observation: `pixels`: images uint8 [H, W, 3] by camera name; `agent_pos`: the state [S].

        Returns:
            float32 [A], in the contract's units.
        """
        if not self._queue:
            started = time.perf_counter()
            chunk = self.decide(observation)
            self._queue = list(chunk[: self.contract.execute])
            self.decision_seconds.append(time.perf_counter() - started)
        return self._queue.pop(0)

    def decide(self, observation: dict[str, Any]) -> np.ndarray:
        """Return a whole chunk of actions float32 [T, A] for an observation as in `act`."""
        views = np.stack([observation["pixels"][camera.name] for camera in self.contract.cameras])
        images = torch.from_numpy(views).permute(0, 3, 1, 2)[None]
        state = torch.from_numpy(np.asarray(observation["agent_pos"], dtype=np.float32))[None]
        self._images = images
        if self.skill_selector is not None:
            if not self.skill_selector.select_skill(images, self._instruction, state):
                self.decision = self._overlay = None
                return self.skill_selector.hold(state[0].numpy())
            self._set_instruction(self._instruction)
        if self._instruction_plan is None:
            raise RuntimeError("reset must be called before the first decision")
        chunk, self.decision = self.core.decide(
            images, self._instruction_plan, state, self._captured_policy, self._memory
        )
        if self._memory is not None and self.decision.frame_tokens is not None:
            self._memory = self._memory.with_new_frame(self.decision.frame_tokens)
        self._overlay = None
        return chunk[0].cpu().numpy()

    def overlay(self) -> dict[str, np.ndarray] | None:
        """Return where the visual tokens of the last decision look, float32 [M, 4] by camera; see `token_overlay`.

        None before the first decision, and for a policy without aggregation tokens, which passes every patch on.
        """
        if self._overlay is not None or self.core.architecture.aggregation_tokens == 0:
            return self._overlay
        if self.decision is None or self._images is None or self._instruction_plan is None:
            return None
        overlays = token_overlay(self.core.model, self._images, self._instruction_plan, self.decision)
        self._overlay = {camera.name: view for camera, view in zip(self.contract.cameras, overlays, strict=True)}
        return self._overlay
