"""What a skill leaves for the router: how the shared beginning sees the demonstrations that it learned from.

All skills are seen by the same policy, the one that they began as, so that their features can be compared, and one pass
of that policy places a new observation among all of them. MergeVLA projects on each skill's own value matrices, which
takes a pass for each skill, and scores that grow with the norm of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import InputError

PREFIX = "routing."
"""How the names of a profile's tensors begin in a skill's checkpoint."""

HELD_OUT = 5
"""One of so many demonstrations of an instruction calibrates, and is not part of the means."""


@dataclass(frozen=True)
class Profile:
    """Features of a skill's demonstrations: `means` [n, d] and `counts` [n] of its n instructions.

    `scatter` [d, d]: the sum of squared deviations from the own instruction's mean; `held_out` [h, d]: features of
    other episodes.
    """

    means: torch.Tensor
    counts: torch.Tensor
    scatter: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, instructions: Sequence[int], episodes: Sequence[int]) -> Profile:
        """Return the profile of features [n, d] of frames with these instructions and episodes.

        An instruction's second demonstration, and every fifth from there on, is held out. Where no instruction has a
        second one, all of them calibrate what they have fitted themselves, and the router will be too sure.
        """
        features = features.float()
        numbers, place = torch.unique(torch.as_tensor(instructions), return_inverse=True)
        episodes = torch.as_tensor(episodes)
        apart = torch.zeros(len(features), dtype=torch.bool)
        for number in range(len(numbers)):
            own = torch.unique(episodes[place == number])
            chosen = own[torch.arange(len(own)) % HELD_OUT == 1]
            apart |= (place == number) & torch.isin(episodes, chosen)
        seen, where = features[~apart], place[~apart]
        counts = torch.bincount(where, minlength=len(numbers))
        means = torch.zeros(len(numbers), features.shape[1]).index_add_(0, where, seen) / counts[:, None]
        deviations = (seen - means[where]).double()
        held_out = features[apart] if apart.any() else features
        return cls(means, counts, (deviations.T @ deviations).float(), held_out)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by the names that they have in a checkpoint."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor], source: str) -> Profile:
        """Read a profile back from a checkpoint's tensors; raises InputError where there is none, or a damaged one."""
        missing = [name for name in cls.__dataclass_fields__ if PREFIX + name not in tensors]
        if missing:
            raise InputError(
                f"skill {source}",
                got=f"no {PREFIX}{missing[0]}",
                expected="what `saccade train --init CHECKPOINT --lora RANK` writes",
                fix="Train the skill again with this version.",
            )
        profile = cls(**{name: tensors[PREFIX + name] for name in cls.__dataclass_fields__})
        width = profile.means.shape[-1]
        if profile.scatter.shape != (width, width) or profile.held_out.shape[-1] != width:
            got = f"features of {profile.means.shape[-1]}, {profile.scatter.shape[-1]}, {profile.held_out.shape[-1]}"
            raise InputError(f"skill {source}", got=got, expected="one width", fix="Train the skill again.")
        if not all(getattr(profile, name).isfinite().all() for name in ("means", "scatter", "held_out")):
            raise InputError(
                f"skill {source}: {PREFIX}",
                got="a number that is not finite",
                expected="finite numbers",
                fix="Train the skill again.",
            )
        return profile
