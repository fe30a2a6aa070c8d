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

ROUTING_PREFIX = "routing."
"""How the names of a profile's tensors begin in a skill's checkpoint."""

HELD_OUT_EVERY = 5
"""One of so many demonstrations of an instruction calibrates, and is not part of the means."""


@dataclass(frozen=True)
class SkillProfile:
    """Features of a skill's demonstrations: `means` [n, d] and `counts` [n] of its n instructions.

    `scatter` [d, d]: the sum of squared deviations from the own instruction's mean; `held_out` [h, d]: features of
    other episodes.
    """

    means: torch.Tensor
    counts: torch.Tensor
    scatter: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def from_features(
        cls, features: torch.Tensor, instructions: Sequence[int], episodes: Sequence[int]
    ) -> SkillProfile:
        """Return the profile of features [n, d] of frames with these instructions and episodes.

        An instruction's second demonstration, and every fifth from there on, is held out. Where no instruction has a
        second one, all of them calibrate what they have fitted themselves, and the router will be too sure.
        """
        features = features.float()
        instruction_numbers, instruction_index = torch.unique(torch.as_tensor(instructions), return_inverse=True)
        episodes = torch.as_tensor(episodes)
        is_held_out = torch.zeros(len(features), dtype=torch.bool)
        for number in range(len(instruction_numbers)):
            own = torch.unique(episodes[instruction_index == number])
            chosen = own[torch.arange(len(own)) % HELD_OUT_EVERY == 1]
            is_held_out |= (instruction_index == number) & torch.isin(episodes, chosen)
        fitted, fitted_instruction = features[~is_held_out], instruction_index[~is_held_out]
        counts = torch.bincount(fitted_instruction, minlength=len(instruction_numbers))
        means = (
            torch.zeros(len(instruction_numbers), features.shape[1]).index_add_(0, fitted_instruction, fitted)
            / counts[:, None]
        )
        deviations = (fitted - means[fitted_instruction]).double()
        held_out = features[is_held_out] if is_held_out.any() else features
        return cls(means, counts, (deviations.T @ deviations).float(), held_out)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by the names that they have in a checkpoint."""
        return {f"{ROUTING_PREFIX}{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor], source: str) -> SkillProfile:
        """Read a profile back from a checkpoint's tensors; raises InputError where there is none, or a damaged one."""
        missing = [name for name in cls.__dataclass_fields__ if ROUTING_PREFIX + name not in tensors]
        if missing:
            raise InputError(
                f"skill {source}",
                got=f"no {ROUTING_PREFIX}{missing[0]}",
                expected="what `saccade train --init CHECKPOINT --lora RANK` writes",
                fix="Train the skill again with this version.",
            )
        profile = cls(**{name: tensors[ROUTING_PREFIX + name] for name in cls.__dataclass_fields__})
        width = profile.means.shape[-1]
        if profile.scatter.shape != (width, width) or profile.held_out.shape[-1] != width:
            got = f"features of {profile.means.shape[-1]}, {profile.scatter.shape[-1]}, {profile.held_out.shape[-1]}"
            raise InputError(f"skill {source}", got=got, expected="one width", fix="Train the skill again.")
        if not all(getattr(profile, name).isfinite().all() for name in ("means", "scatter", "held_out")):
            raise InputError(
                f"skill {source}: {ROUTING_PREFIX}",
                got="a number that is not finite",
                expected="finite numbers",
                fix="Train the skill again.",
            )
        return profile
