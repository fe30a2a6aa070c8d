"""The profile of a skill for the router: features of its demonstrations, computed by the base policy.

All skills have the same base policy, so their features can be compared, and one forward pass of the base policy is
enough to route a new observation. MergeVLA projects onto the value matrices of each skill instead: this takes a forward
pass for each skill, and the scores grow with the norm of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import InputError

ROUTING_PREFIX = "routing."
"""Prefix of the names of a profile's tensors in a skill's checkpoint."""

type IntegerVector = Sequence[int] | torch.Tensor

HELD_OUT_EVERY = 5
"""One of so many demonstrations of an instruction is held out of the means and calibrates the router."""


@dataclass(frozen=True)
class SkillProfile:
    """Statistics of the features [d] of a skill's demonstrations, for its n instructions.

    Attributes:
        means: Mean feature of each instruction, [n, d].
        counts: Number of features in each mean, [n].
        scatter: Sum of outer products of the deviations from the mean of the own instruction, [d, d].
        held_out: Features of held-out episodes, [h, d].
    """

    means: torch.Tensor
    counts: torch.Tensor
    scatter: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def from_features(
        cls, features: torch.Tensor, instructions: IntegerVector, episodes: IntegerVector
    ) -> SkillProfile:
        """Compute a profile.

        The second demonstration of an instruction, and every fifth after it, is held out. If no instruction has a
        second one, the router is calibrated on the features that it was fitted to, and is overconfident.

        Args:
            features: Features of F frames, [F, d].
            instructions: Number of the instruction of each frame, [F].
            episodes: Number of the episode of each frame, [F].
        """
        features = features.float()
        instruction_numbers, instruction_index = torch.unique(torch.as_tensor(instructions), return_inverse=True)
        frame_episodes = torch.as_tensor(episodes)
        is_held_out = torch.zeros(len(features), dtype=torch.bool)
        for number in range(len(instruction_numbers)):
            own = torch.unique(frame_episodes[instruction_index == number])
            chosen = own[torch.arange(len(own)) % HELD_OUT_EVERY == 1]
            is_held_out |= (instruction_index == number) & torch.isin(frame_episodes, chosen)
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
        """Return the tensors by their names in a checkpoint."""
        return {f"{ROUTING_PREFIX}{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor], source: str) -> SkillProfile:
        """Read a profile from the tensors of a skill's checkpoint.

        Args:
            tensors: The tensors of the checkpoint.
            source: Name of the skill, for errors.

        Raises:
            InputError: The profile is missing or damaged.
        """
        missing = [name for name in cls.__dataclass_fields__ if ROUTING_PREFIX + name not in tensors]
        if missing:
            raise InputError(
                f"skill {source}",
                got=f"no {ROUTING_PREFIX}{missing[0]}",
                expected="a skill as `saccade train --init CHECKPOINT --lora RANK` writes it",
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
