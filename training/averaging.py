"""A running average of the weights that learn: what is evaluated and shipped, calmer than the last step's weights."""

from __future__ import annotations

import torch

from ..policy.pretrained.adaptation import trainable_parameters


class WeightAverage:
    """Keep `decay * average + (1 - decay) * weights` of what learns, with a shorter memory in the first steps."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model, self.decay, self.updates = model, decay, 0
        self.average = {name: weight.detach().clone() for name, weight in trainable_parameters(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of this step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = trainable_parameters(self._model)
        torch._foreach_lerp_(list(self.average.values()), [weights[name] for name in self.average], 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights on the CPU: averaged where they learn, as they are where not."""
        return {name: self.average.get(name, tensor).cpu() for name, tensor in self._model.state_dict().items()}
