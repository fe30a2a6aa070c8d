"""A running average of the weights: what is evaluated and shipped, calmer than the last step's weights."""

from __future__ import annotations

import torch


class WeightAverage:
    """Keep `decay * average + (1 - decay) * weights`, with a shorter memory in the first steps."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model, self.decay, self.updates = model, decay, 0
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of this step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = self._model.state_dict()
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floating], [state[n] for n in floating], 1 - decay)
        for name in state.keys() - set(floating):
            self.average[name].copy_(state[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.average.items()}
