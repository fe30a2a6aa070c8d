"""The router: which skill an observation and its instruction ask for, how sure that is, and when to abstain.

A mixture model in the feature space of the shared beginning: every skill is a set of instructions, each a normal
distribution of one common covariance. The class-conditional distance that it abstains by is that of Lee et al., "A
Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), the temperature that of Guo et al., "On
Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from ...errors import InputError
from .profile import SkillProfile

ROUTER_PREFIX = "router."
"""How the names of a router's tensors begin in a checkpoint."""

SHRINKAGE = 0.001
"""Part of the mean variance that is added to every direction. Little: what never varies within an instruction, such as
its words, tells best what is asked for, and an observation that differs there is one to abstain from."""


@dataclass(frozen=True)
class RoutingDecision:
    """What the router found: `skill`, its number, or None where it abstains, for `reason`.

    `probabilities` [K] of the skills, should it be one of them; `margin`, the greatest less the second; `distance`, in
    units of what is usual within a skill.
    """

    skill: int | None
    probabilities: tuple[float, ...]
    margin: float
    distance: float
    reason: str = ""


@dataclass(frozen=True)
class Router:
    """Distances to the instructions of K skills: `centres` [n, d] of skills `owner` [n], under a `whitening` [d, d].

    `usual` [K]: the distance that one of a hundred held-out observations of a skill exceeds. `temperature` turns
    distances into probabilities. It abstains farther away than `reach` times the usual distance, and below `margin`.
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
                fix = "The default is a good beginning."
                raise InputError(f"router: {name}", got=getattr(self, name), expected="a number above 0", fix=fix)
        if not 0 <= self.margin < 1:
            raise InputError("router: margin", got=self.margin, expected="0 up to below 1", fix="0.5 is usual.")

    @classmethod
    def fit(cls, profiles: Sequence[SkillProfile], *, margin: float = 0.5, reach: float = 1.5) -> Router:
        """Fit a router to the profiles of K skills, calibrated on what these have held out."""
        widths = {profile.means.shape[1] for profile in profiles}
        if len(widths) != 1:
            got = ", ".join(map(str, sorted(widths)))
            raise InputError(
                "router", got=f"features of {got}", expected="one width", fix="Use skills of one beginning."
            )
        within_covariance = sum(profile.scatter.double() for profile in profiles)
        within_covariance = within_covariance / max(
            1, sum(int(profile.counts.sum()) - len(profile.counts) for profile in profiles)
        )
        within_covariance += (
            SHRINKAGE
            * within_covariance.diagonal().mean()
            * torch.eye(len(within_covariance), dtype=within_covariance.dtype)
        )
        values, directions = torch.linalg.eigh(within_covariance)
        whitening = (directions * values.rsqrt()).float()
        owner = torch.cat([torch.full((len(each.means),), number) for number, each in enumerate(profiles)])
        centres = torch.cat([profile.means for profile in profiles]) @ whitening
        router = cls(centres, owner, whitening, torch.ones(len(profiles)), margin=margin, reach=reach)
        own = [router._skill_distances(each.held_out)[:, number] for number, each in enumerate(profiles)]
        usual = torch.stack([distances.quantile(0.99) for distances in own])
        return replace(router, usual=usual, temperature=router._fit_temperature(profiles))

    @property
    def skills(self) -> int:
        """How many skills it knows, K."""
        return len(self.usual)

    def _skill_distances(self, features: torch.Tensor) -> torch.Tensor:
        """Return the squared distance to the nearest instruction of every skill: [B, d] to [B, K]."""
        squared_distances = torch.cdist(features.float() @ self.whitening, self.centres).square()
        return torch.stack([squared_distances[:, self.owner == skill].amin(1) for skill in range(self.skills)], dim=1)

    def _fit_temperature(self, profiles: Sequence[SkillProfile]) -> float:
        """Return the temperature under which held-out observations are most likely their own skills'."""
        distances = torch.cat([self._skill_distances(profile.held_out) for profile in profiles])
        target = torch.cat([torch.full((len(each.held_out),), number) for number, each in enumerate(profiles)])
        choices = torch.logspace(-1, 4, 101)
        losses = [torch.nn.functional.cross_entropy(-distances / (2 * each), target).item() for each in choices]
        # Where all are right the coldest wins, and says nothing of how sure it is: no colder than the distances are.
        return max(float(choices[losses.index(min(losses))]), float(distances.amin(1).median()) / 10)

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Return how likely each skill is, should it be one of them: [B, d] to [B, K]."""
        return (-self._skill_distances(features) / (2 * self.temperature)).softmax(1)

    def route(self, feature: torch.Tensor, names: Sequence[str]) -> RoutingDecision:
        """Return the skill for one feature [d]; `names` are for the reason to abstain."""
        distances = self._skill_distances(feature[None])[0]
        skill_probabilities = (-distances / (2 * self.temperature)).softmax(0)
        best = int(skill_probabilities.argmax())
        ordered = skill_probabilities.sort(descending=True).values
        margin = float(ordered[0] - ordered[1]) if len(ordered) > 1 else 1.0
        distance = float(distances[best] / self.usual[best])
        decision = RoutingDecision(best, tuple(map(float, skill_probabilities)), margin, distance)
        if not distance <= self.reach:  # not a number is far away, too
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
        """Return the tensors by the names that they have in a checkpoint."""
        return {ROUTER_PREFIX + each.name: getattr(self, each.name) for each in fields(self) if each.name in _TENSORS}

    def settings(self) -> dict[str, float]:
        """Return the numbers that stand in a checkpoint's configuration."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TENSORS}

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, float], source: str) -> Router:
        """Read a router back; raises InputError for one that is not whole."""
        missing = [name for name in _TENSORS if ROUTER_PREFIX + name not in tensors]
        if missing or set(settings) != {"temperature", "margin", "reach"}:
            got = f"no {ROUTER_PREFIX}{missing[0]}" if missing else ", ".join(settings)
            raise InputError(f"{source}: router", got=got, expected="a whole router", fix="Merge the skills again.")
        return cls(**{name: tensors[ROUTER_PREFIX + name] for name in _TENSORS}, **settings)


_TENSORS = ("centres", "owner", "whitening", "usual")
