"""The contract: the conventions a policy was trained with, and the check of an environment or robot against them.

Most results that cannot be reproduced come from mismatched conventions (an image rotated twice, a gripper sign, the
statistics of another dataset). So the contract is saved with the weights and checked before anything moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import unknown_name
from .mismatch import ContractMismatch, Difference, find_differences
from .offer import Offer
from .specification import Specification

NORMALIZATION_METHODS = ("quantile_relative", "bounds")


@dataclass(frozen=True)
class Normalization(Specification):
    """The statistics that map states and action chunks to about [-1, 1]; `normalization.Normalizer` applies them.

    All are in the contract's units. Arrays are accepted, and stored as tuples.

    Attributes:
        state_low, state_high: [S].
        action_low, action_high: [T, A], a row for each step of the chunk.
        relative: [A], whether an element is taken relative to the state at the decision.
        method: "quantile_relative" clips nothing. "bounds", the method of OpenVLA and its descendants, clips states to
            the bounds and takes no element relative to the state.
    """

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[tuple[float, ...], ...]
    action_high: tuple[tuple[float, ...], ...]
    relative: tuple[bool, ...]
    method: str = "quantile_relative"

    missing_fix: ClassVar[str] = "Copy the contract that training wrote: a policy must not act without its statistics."

    def _validate(self) -> None:
        if self.method not in NORMALIZATION_METHODS:
            raise unknown_name("Normalization.method", self.method, NORMALIZATION_METHODS)
        if self.method == "bounds" and any(self.relative):
            raise self._field_error("relative", got="true", expected="false for every element under the method bounds")
        for low, high in (("state_low", "state_high"), ("action_low", "action_high")):
            if len(getattr(self, low)) != len(getattr(self, high)):
                raise self._field_error(
                    high, got=f"length {len(getattr(self, high))}", expected=f"that of {low}, {len(getattr(self, low))}"
                )
        self._check_ordered("state_low", "state_high", self.state_low, self.state_high)
        for step, (low, high) in enumerate(zip(self.action_low, self.action_high, strict=True)):
            for field, row in ((f"action_low[{step}]", low), (f"action_high[{step}]", high)):
                if len(row) != len(self.relative):
                    raise self._field_error(
                        field, got=f"{len(row)} numbers", expected=f"one for each of {len(self.relative)} action names"
                    )
            self._check_ordered(f"action_low[{step}]", f"action_high[{step}]", low, high)

    def _check_ordered(
        self, low_field: str, high_field: str, lows: tuple[float, ...], highs: tuple[float, ...]
    ) -> None:
        for index, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if not low < high:
                fix = "Collect demonstrations in which it moves, or fit with a minimum span: it never moved in these."
                raise self._field_error(
                    f"{high_field}[{index}]", got=high, expected=f"above {low_field}[{index}] ({low})", fix=fix
                )


@dataclass(frozen=True, kw_only=True)
class Contract(Offer):
    """What a policy was trained with: the offer that it needs, and its statistics.

    Attributes:
        normalization: The statistics.
        chunk: Steps of a chunk, T.
        execute: Steps of a chunk that are executed before the next decision.
    """

    normalization: Normalization
    chunk: int
    execute: int

    missing_fix: ClassVar[str] = "Copy the contract that training wrote, or train again."

    def _validate(self) -> None:
        super()._validate()
        if not self.cameras:
            raise self._field_error("cameras", got="none", expected="at least one camera")
        if self.chunk < 1:
            raise self._field_error("chunk", got=self.chunk, expected="at least 1 step")
        if not 1 <= self.execute <= self.chunk:
            raise self._field_error("execute", got=self.execute, expected=f"between 1 and chunk ({self.chunk})")
        statistics, states, actions = (self.normalization, self.state.names, self.action.names)
        for field, got, expected in (
            ("state_low", len(statistics.state_low), len(states)),
            ("action_low", len(statistics.action_low), self.chunk),
            ("relative", len(statistics.relative), len(actions)),
        ):
            if got != expected:
                fix = "Fit the statistics on the demonstrations of this policy: these have another layout."
                raise self._field_error(f"normalization.{field}", got=f"length {got}", expected=str(expected), fix=fix)
        for index, relative in enumerate(statistics.relative):
            target = (self.action.names[index], self.action.units[index])
            measured = (states[index], self.state.units[index]) if index < len(states) else None
            if relative and (target != measured or self.action.kind != "absolute"):
                fix = "Set it to false: only an absolute target with its own state at the same index can be relative."
                expected = f"false, as {' in '.join(target)} ({self.action.kind}) has no such state"
                raise self._field_error(f"normalization.relative[{index}]", got="true", expected=expected, fix=fix)

    def differences(self, offer: Offer) -> tuple[Difference, ...]:
        """Return every way in which `offer` does not fit; additional cameras are no difference."""
        return find_differences(self, offer)

    def check(self, offer: Offer) -> None:
        """Check an environment's or robot's offer.

        Raises:
            ContractMismatch: The offer does not fit; the error lists every difference.
        """
        found = self.differences(offer)
        if found:
            raise ContractMismatch(found)
