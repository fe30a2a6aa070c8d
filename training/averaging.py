"""The exponential moving average (EMA) of the trained weights: the weights that are evaluated and shipped."""

from __future__ import annotations

import torch

from ..policy.pretrained.adaptation import trainable_parameters


class WeightAverage:
    """Keeps `decay * average + (1 - decay) * weights` of the trained weights; the decay is lower in the first steps.

    Attributes:
        decay: Final decay.
        updates: Steps that were averaged.
        average: The averaged weights by name.
    """

    decay: float
    updates: int
    average: dict[str, torch.Tensor]

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        """Start the average at the weights of `model` that are trained."""
        self._model, self.decay, self.updates = model, decay, 0
        self.average = {name: weight.detach().clone() for name, weight in trainable_parameters(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights of this step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = trainable_parameters(self._model)
        averages = list(self.average.values())
        # The fused operator that PyTorch's own EMA uses; it has no public name.
        torch._foreach_lerp_(averages, [weights[name] for name in self.average], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights on the CPU: the average where they are trained, the model's own where they are frozen."""
        state = self._model.state_dict()
        return {name: (self.average[name] if name in self.average else state[name]).cpu() for name in state}
