"""Noise on the commands of a scripted demonstrator, as in DART (Laskey et al., 2017, arXiv 1703.09327).

The robot executes a noisy command, and the demonstration records the action without noise as the label. Demonstrations
then contain states off the expert's path, with the action that leads back.
"""

from __future__ import annotations

import numpy as np

PERSISTENCE = 0.9
"""Share of the noise that carries over to the next control step."""

INNOVATION = 0.45
"""Factor on the fresh noise of a step; about sqrt(1 - PERSISTENCE^2), so that `std` is the long-run deviation."""


class ActionNoise:
    """First-order autoregressive Gaussian noise: successive steps are disturbed alike, as by a push.

    Args:
        std: Standard deviation [A] of each action dimension in the long run; 0 for dimensions without noise.
        rng: Source of the noise; each `sample` draws A normal numbers from it.
    """

    def __init__(self, std: np.ndarray, rng: np.random.Generator) -> None:
        self._std = std
        self._rng = rng
        self._noise = np.zeros(len(std))

    def sample(self) -> np.ndarray:
        """Return the noise [A] of the next control step."""
        self._noise = PERSISTENCE * self._noise + INNOVATION * self._rng.normal(0.0, self._std)
        return self._noise
