"""Options of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..policy.training_defaults import GRADIENT_CLIP, GROUNDING_WEIGHT, LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY
from ..ranges import require_at_least


@dataclass(frozen=True)
class LoopConfig:
    """Options of the training loop; raises InputError for values out of range."""

    steps: int = 3000
    """Total optimizer steps, including those before --resume."""
    batch_size: int = 64
    """Batch size of each process, in frames."""
    learning_rate: float = LEARNING_RATE
    """Peak learning rate: linear warm-up, then cosine decay to 2 % of the peak."""
    warmup: int = WARMUP_STEPS
    """Warm-up steps."""
    weight_decay: float = WEIGHT_DECAY
    """AdamW weight decay of the weight matrices."""
    gradient_clip: float = GRADIENT_CLIP
    """Maximum gradient norm."""
    average: float = 0.999
    """EMA decay of the weights; a checkpoint holds the averaged weights. 0 turns it off."""
    grounding: float = GROUNDING_WEIGHT
    """Weight of the pointing (grounding) loss, for demonstrations with labels."""
    stride: int = 1
    """Train on every n-th frame; neighbouring frames are almost equal."""
    run: int = 1
    """Number of consecutive decisions of one episode in a batch. With a history they share remembered frames, so that
    the towers encode fewer images: with 16 remembered frames and episodes of 125 steps, a decision takes 8.7 frames
    alone and 1.8 in runs of 8."""
    seed: int = 0
    """Seed of the initial weights and of the order of the frames."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between log lines; every checkpoint has one too."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch_size", "stride", "run", "save_every", "log_every")
        require_at_least(self, 0, "warmup", "seed")
        if self.batch_size % self.run:
            fix = "Choose a run that divides batch_size."
            got = f"{self.run}, with a batch_size of {self.batch_size}"
            raise InputError("run", got=got, expected="a divisor of the batch size", fix=fix)
        fractions = {
            "learning_rate": (0.0 < self.learning_rate < 1.0, "between 0 and 1", "Use 1e-3."),
            "average": (0.0 <= self.average < 1.0, "0 up to below 1", "Use 0.999."),
            "weight_decay": (0.0 <= self.weight_decay < math.inf, "0 or more", "Use 0.01."),
            "gradient_clip": (0.0 < self.gradient_clip < math.inf, "above 0", "Use 1, or 1e9 to turn it off."),
            "grounding": (0.0 <= self.grounding < math.inf, "0 or more", "Use 0.1."),
        }
        for name, (fits, expected, fix) in fractions.items():
            if not fits:
                raise InputError(name, got=getattr(self, name), expected=expected, fix=fix)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step number `step`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))
