"""How to train, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..policy.training_defaults import GRADIENT_CLIP, GROUNDING_WEIGHT, LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY


@dataclass(frozen=True)
class LoopConfig:
    """How to train; raises InputError for numbers out of range."""

    steps: int = 3000
    """Optimiser steps in all, those before a resume included."""
    batch_size: int = 64
    """Frames in a step and process."""
    learning_rate: float = LEARNING_RATE
    """Peak learning rate: a linear warm-up leads to it, a cosine down from it to a fiftieth."""
    warmup: int = WARMUP_STEPS
    """Steps of the warm-up."""
    weight_decay: float = WEIGHT_DECAY
    """Decay of the weight matrices (AdamW's)."""
    gradient_clip: float = GRADIENT_CLIP
    """Greatest norm of the gradient."""
    average: float = 0.999
    """Decay of the running average of the weights, which is what a checkpoint holds; 0 turns it off."""
    grounding: float = GROUNDING_WEIGHT
    """Weight of the pointing loss, where the demonstrations are labelled."""
    stride: int = 1
    """Train on every n-th frame: neighbours tell little new."""
    run: int = 1
    """Decisions of one episode that stand in a step together, one after the other. With a history they share most of
    what they remember, which the towers then see once: with 16 remembered frames of episodes of 125 steps a decision
    takes 8.7 frames alone, 1.8 in runs of 8."""
    seed: int = 0
    """Draws the weights at the start and the order of the frames."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of the log; every checkpoint has one too."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch_size", "stride", "run", "save_every", "log_every"), 1)
        least |= {"warmup": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(name, got=getattr(self, name), expected=f"{value} or more", fix=f"Raise {name}.")
        if self.batch_size % self.run:
            fix = "Change run or batch_size."
            got = f"{self.run}, with a batch_size of {self.batch_size}"
            raise InputError("run", got=got, expected="a divisor of the batch size", fix=fix)
        fractions = {
            "learning_rate": (0.0 < self.learning_rate < 1.0, "between 0 and 1", "1e-3 is usual."),
            "average": (0.0 <= self.average < 1.0, "0 up to below 1", "0.999 is usual."),
            "weight_decay": (0.0 <= self.weight_decay < math.inf, "0 or more", "0.01 is usual."),
            "gradient_clip": (0.0 < self.gradient_clip < math.inf, "above 0", "1 is usual; 1e9 turns it off."),
            "grounding": (0.0 <= self.grounding < math.inf, "0 or more", "0.1 is usual."),
        }
        for name, (fits, expected, fix) in fractions.items():
            if not fits:
                raise InputError(name, got=getattr(self, name), expected=expected, fix=fix)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))
