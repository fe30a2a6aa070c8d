"""The options of a Saccade policy under LeRobot's own commands, `--policy.type=saccade`.

LeRobot finds the modules `modeling_saccade` and `processor_saccade` by the name of this one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import cast

from draccus.utils import ParsingError
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import InputError
from .network.architecture import Architecture
from .pretrained.adaptation import LoraAdaptation
from .training_defaults import GRADIENT_CLIP, GROUNDING_WEIGHT, LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY

FLOOR = 0.02
"""Final learning rate as a fraction of its peak."""


@dataclass(frozen=True)
class ArchitectureOptions(Architecture):
    """An architecture from LeRobot's command line.

    Raises:
        ParsingError: The sizes do not fit together. draccus, which parses LeRobot's command lines, hides the message
            of any other error.
    """

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except InputError as error:
            raise ParsingError(str(error)) from error


@LRSchedulerConfig.register_subclass("saccade_cosine")
@dataclass
class SaccadeSchedulerConfig(LRSchedulerConfig):
    """A linear warm-up, then a cosine down to a fiftieth over the remaining steps, as in `saccade train`."""

    num_warmup_steps: int = WARMUP_STEPS

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        def fraction(step: int) -> float:
            if step < self.num_warmup_steps:
                return (step + 1) / self.num_warmup_steps
            done = (step - self.num_warmup_steps) / max(1, num_training_steps - self.num_warmup_steps)
            return FLOOR + (1 - FLOOR) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))

        return LambdaLR(optimizer, fraction)


@PreTrainedConfig.register_subclass("saccade")
@dataclass
class SaccadeConfig(PreTrainedConfig):
    """How to build and train a Saccade policy.

    Sizes of the network are set one by one, `--policy.architecture.trunk_layers=6`; the others are those of the `tiny`
    preset. Cameras, state, action and statistics are not options: the policy reads them from the demonstrations and
    keeps them in its contract.

    Raises:
        ParsingError: Values do not fit together.
    """

    chunk_size: int = 16
    """Steps of a chunk, T."""
    n_action_steps: int = 8
    """Steps of a chunk that are executed before the next decision."""
    architecture: ArchitectureOptions = field(default_factory=ArchitectureOptions)
    """The sizes of the network."""
    adaptation: LoraAdaptation | None = None
    """LoRA adaptation of pretrained parts; none trains all weights."""
    grounding: float = GROUNDING_WEIGHT
    """Weight of the pointing loss, where the demonstrations are labelled."""
    optimizer_learning_rate: float = LEARNING_RATE
    """Peak learning rate."""
    optimizer_weight_decay: float = WEIGHT_DECAY
    optimizer_gradient_clip: float = GRADIENT_CLIP
    """Maximum norm of the gradient."""
    scheduler_warmup_steps: int = WARMUP_STEPS

    push_to_hub: bool = False  # type: ignore[assignment]
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    """IDENTITY: the policy normalizes by its contract, with exact statistics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._check()
        except InputError as error:
            raise ParsingError(str(error)) from error  # see ArchitectureOptions
        self.architecture = cast(ArchitectureOptions, Architecture(**asdict(self.architecture)))  # checked above

    def _check(self) -> None:
        if self.n_obs_steps != 1:
            raise InputError(
                "n_obs_steps",
                got=self.n_obs_steps,
                expected="1",
                fix="Leave it out; for past frames set --policy.architecture.history.",
            )
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise InputError(
                "n_action_steps",
                got=self.n_action_steps,
                expected=f"1 to chunk_size ({self.chunk_size})",
                fix="Lower n_action_steps, or raise chunk_size.",
            )
        others = {mode for mode in self.normalization_mapping.values() if mode != NormalizationMode.IDENTITY}
        if others:
            raise InputError(
                "normalization_mapping",
                got=", ".join(sorted(mode.value for mode in others)),
                expected="IDENTITY for everything",
                fix="Leave it out: the policy normalizes by its contract.",
            )

    def validate_features(self) -> None:
        """Raise InputError unless there are images, a state and an action."""
        has = {
            "an image": bool(self.image_features),
            "observation.state": self.robot_state_feature is not None,
            "action": self.action_feature is not None,
        }
        missing = [name for name, there in has.items() if not there]
        if missing:
            features = {**(self.input_features or {}), **(self.output_features or {})}
            raise InputError(
                "features",
                got=f"no {', no '.join(missing)} in {', '.join(features)}",
                expected="an image, observation.state and action",
                fix="Choose a dataset or an environment that has them.",
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_learning_rate,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_gradient_clip,
        )

    def get_scheduler_preset(self) -> SaccadeSchedulerConfig:
        return SaccadeSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The time steps that a policy with history reads: the current one, then the past."""
        history = self.architecture.history
        return [-number * self.n_action_steps for number in range(history + 1)] if history else None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
