"""The router: selects the skill for an observation and an instruction, or abstains.

It is a mixture model in the feature space of the base policy: every skill is a set of instructions, each a normal
distribution, all with the same covariance. It abstains by the class-conditional Mahalanobis distance of Lee et al., "A
Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018). Its probabilities are calibrated with the
temperature of Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from ...errors import InputError
from .profile import SkillProfile

ROUTER_PREFIX = "router."
"""Prefix of the names of a router's tensors in a checkpoint."""

SHRINKAGE = 0.001
"""Fraction of the mean variance that is added to every direction. It is small: directions that do not vary within an
instruction, such as those of its text, separate the skills best, and an observation that differs there is unknown."""


@dataclass(frozen=True)
class RoutingDecision:
    """The decision of the router for one observation.

    Attributes:
        skill: Number of the selected skill; None if the router abstains.
        probabilities: Probability of each of the K skills, given that it is one of them.
        margin: Difference of the two highest probabilities.
        distance: Squared distance to the most likely skill, as a multiple of the usual one within it.
        reason: Why it abstains.
    """

    skill: int | None
    probabilities: tuple[float, ...]
    margin: float
    distance: float
    reason: str = ""


@dataclass(frozen=True)
class Router:
    """Routes by the distances to the n instructions of K skills in a whitened feature space [d].

    Attributes:
        centres: Whitened mean of each instruction, [n, d].
        owner: Number of the skill of each instruction, [n].
        whitening: Whitening matrix, [d, d].
        usual: 99 % quantile of the squared distances of each skill's held-out observations, [K].
        temperature: Temperature of the probabilities.
        margin: The router abstains if the two highest probabilities differ by less.
        reach: The router abstains if the squared distance is larger than this multiple of `usual`.
    """

    centres: torch.Tensor
    owner: torch.Tensor
    whitening: torch.Tensor
    usual: torch.Tensor
    temperature: float = 1.0
    margin: float = 0.5
    reach: float = 1.5

    def __post_init__(self) -> None:
        for name in ("temperature", "reach"):
            if not 0 < getattr(self, name) < float("inf"):
                fix = "Use the default."
                raise InputError(f"router: {name}", got=getattr(self, name), expected="a number above 0", fix=fix)
        if not 0 <= self.margin < 1:
            raise InputError("router: margin", got=self.margin, expected="0 up to below 1", fix="Use 0.5.")

    @classmethod
    def fit(cls, profiles: Sequence[SkillProfile], *, margin: float = 0.5, reach: float = 1.5) -> Router:
        """Fit a router to the profiles of K skills, and calibrate it on their held-out features.

        Args:
            profiles: The profiles, in the order of the skills.
            margin: See the class.
            reach: See the class.

        Raises:
            InputError: The features of the skills have different widths.
        """
        widths = {profile.means.shape[1] for profile in profiles}
        if len(widths) != 1:
            got = ", ".join(map(str, sorted(widths)))
            raise InputError(
                "router", got=f"features of {got}", expected="one width", fix="Merge skills of one base checkpoint."
            )
        first, *others = (profile.scatter.double() for profile in profiles)
        within_covariance = sum(others, start=first)  # [d, d]
        within_covariance = within_covariance / max(
            1, sum(int(profile.counts.sum()) - len(profile.counts) for profile in profiles)
        )
        within_covariance += (
            SHRINKAGE
            * within_covariance.diagonal().mean()
            * torch.eye(len(within_covariance), dtype=within_covariance.dtype)
        )
        values, directions = torch.linalg.eigh(within_covariance)
        whitening = (directions * values.rsqrt()).float()  # [d, d]
        owner = torch.cat([torch.full((len(each.means),), number) for number, each in enumerate(profiles)])
        centres = torch.cat([profile.means for profile in profiles]) @ whitening  # [n, d]
        router = cls(centres, owner, whitening, torch.ones(len(profiles)), margin=margin, reach=reach)
        own = [router._skill_distances(each.held_out)[:, number] for number, each in enumerate(profiles)]
        usual = torch.stack([distances.quantile(0.99) for distances in own])
        return replace(router, usual=usual, temperature=router._fit_temperature(profiles))

    @property
    def skills(self) -> int:
        """Number of skills, K."""
        return len(self.usual)

    def _skill_distances(self, features: torch.Tensor) -> torch.Tensor:
        """Return the squared distance to the nearest instruction of every skill: [B, d] to [B, K]."""
        squared_distances = torch.cdist(features.float() @ self.whitening, self.centres).square()  # [B, n]
        return torch.stack([squared_distances[:, self.owner == skill].amin(1) for skill in range(self.skills)], dim=1)

    def _fit_temperature(self, profiles: Sequence[SkillProfile]) -> float:
        """Return the temperature with the lowest cross-entropy on the held-out features."""
        distances = torch.cat([self._skill_distances(profile.held_out) for profile in profiles])
        target = torch.cat([torch.full((len(each.held_out),), number) for number, each in enumerate(profiles)])
        choices = torch.logspace(-1, 4, 101)
        losses = [torch.nn.functional.cross_entropy(-distances / (2 * each), target).item() for each in choices]
        # If all are right, the lowest temperature wins, which calibrates nothing: bound it by the distances.
        return max(float(choices[losses.index(min(losses))]), float(distances.amin(1).median()) / 10)

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Return the probability of each skill, given that it is one of them: [B, d] to [B, K]."""
        return (-self._skill_distances(features) / (2 * self.temperature)).softmax(1)

    def route(self, feature: torch.Tensor, names: Sequence[str]) -> RoutingDecision:
        """Select the skill for one observation.

        Args:
            feature: Its feature, [d].
            names: Names of the skills, for the reason to abstain.
        """
        distances = self._skill_distances(feature[None])[0]
        skill_probabilities = (-distances / (2 * self.temperature)).softmax(0)
        best = int(skill_probabilities.argmax())
        ordered = skill_probabilities.sort(descending=True).values
        margin = float(ordered[0] - ordered[1]) if len(ordered) > 1 else 1.0
        distance = float(distances[best] / self.usual[best])
        decision = RoutingDecision(best, tuple(map(float, skill_probabilities)), margin, distance)
        if not distance <= self.reach:  # also abstains for NaN
            reason = (
                f"nothing like it was demonstrated: {distance:.1f} times as far from {names[best]} as is usual there"
            )
            return replace(decision, skill=None, reason=reason)
        if not margin >= self.margin:
            second = names[int(skill_probabilities.argsort(descending=True)[1])]
            reason = f"it could be {names[best]} or {second}: {100 * margin:.0f} % between them"
            return replace(decision, skill=None, reason=reason)
        return decision

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names in a checkpoint."""
        return {ROUTER_PREFIX + each.name: getattr(self, each.name) for each in fields(self) if each.name in _TENSORS}

    def settings(self) -> dict[str, float]:
        """Return the numbers for the skill table of a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TENSORS}

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, float], source: str) -> Router:
        """Read a router from a merged checkpoint.

        Args:
            tensors: The tensors of the checkpoint.
            settings: Its numbers, see `settings`.
            source: Name of the checkpoint, for errors.

        Raises:
            InputError: A tensor or number is missing or unknown.
        """
        missing = [name for name in _TENSORS if ROUTER_PREFIX + name not in tensors]
        if missing or set(settings) != {"temperature", "margin", "reach"}:
            got = f"no {ROUTER_PREFIX}{missing[0]}" if missing else ", ".join(settings)
            raise InputError(f"{source}: router", got=got, expected="a complete router", fix="Merge the skills again.")
        centres, owner, whitening, usual = (tensors[ROUTER_PREFIX + name] for name in _TENSORS)
        return cls(
            centres,
            owner,
            whitening,
            usual,
            temperature=settings["temperature"],
            margin=settings["margin"],
            reach=settings["reach"],
        )


_TENSORS = ("centres", "owner", "whitening", "usual")
