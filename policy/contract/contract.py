"""The contract: every convention a policy was trained under, and the check of what a world or robot offers against it.

Most results that cannot be reproduced are mismatched conventions (a picture turned once too often, a gripper sign,
statistics of another data set), so the contract is saved beside the weights and checked before anything moves. Standard
library and numpy only: a world or a robot reads a contract on a machine without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import unknown_name
from .mismatch import ContractMismatch, Difference, find_differences
from .specification import Specification

UNITS = (
    *("degrees", "radians", "metres", "percent", "unitless"),
    *("degrees_per_second", "radians_per_second", "metres_per_second"),
)
ROTATIONS = ("none", "quaternion_wxyz", "quaternion_xyzw", "axis_angle", "euler_xyz", "matrix_6d")
KINDS = ("absolute", "relative")
FRAMES = ("joint", "base", "world", "tool")
METHODS = ("quantile_relative", "bounds")
QUARTER_TURNS = (0, 90, 180, 270)


@dataclass(frozen=True)
class CameraSpec(Specification):
    """One camera's pictures as they reach the policy: pixels, and what was done to the camera's upright view before.

    `rotation_degrees` counts counter-clockwise; `crop` is the fraction of the area that a centred crop has kept,
    before any resize.
    """

    name: str
    height: int
    width: int
    rotation_degrees: int = 0
    crop: float = 1.0

    def _validate(self) -> None:
        for side in ("height", "width"):
            if getattr(self, side) < 1:
                raise self._refusal(side, got=getattr(self, side), expected="at least 1 pixel")
        if self.rotation_degrees not in QUARTER_TURNS:
            raise self._refusal("rotation_degrees", got=self.rotation_degrees, expected="0, 90, 180 or 270")
        if not 0.0 < self.crop <= 1.0:
            raise self._refusal("crop", got=self.crop, expected="a fraction above 0 and at most 1")

    def __str__(self) -> str:
        return f"{self.name} ({self.height}x{self.width} pixels)"


@dataclass(frozen=True)
class VectorSpec(Specification):
    """The layout of a vector: the name and the unit of every element, in order."""

    names: tuple[str, ...]
    units: tuple[str, ...]

    def _validate(self) -> None:
        if not self.names:
            raise self._refusal("names", got="no names", expected="at least one")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise self._refusal("names", got=f"{', '.join(repeated)} more than once", expected="every name once")
        if len(self.units) != len(self.names):
            raise self._refusal(
                "units", got=f"{len(self.units)} units", expected=f"one for each of {len(self.names)} names"
            )
        for index, unit in enumerate(self.units):
            self._one_of(f"units[{index}]", unit, UNITS)

    def _one_of(self, field: str, name: str, choices: tuple[str, ...]) -> None:
        if name not in choices:
            raise unknown_name(f"{type(self).__name__}.{field}", name, choices)


@dataclass(frozen=True)
class StateSpec(VectorSpec):
    """The layout of the measured state [S]; `rotation` says how an orientation in it is written, if it has one."""

    rotation: str = "none"

    def _validate(self) -> None:
        super()._validate()
        self._one_of("rotation", self.rotation, ROTATIONS)


@dataclass(frozen=True)
class GripperSpec(Specification):
    """Which action element is the gripper, and the values of it that mean closed and open."""

    name: str
    closed: float
    open: float

    def _validate(self) -> None:
        if self.closed == self.open:
            raise self._refusal("open", got=self.open, expected=f"a value other than closed ({self.closed:g})")

    def __str__(self) -> str:
        return f"{self.name} closed at {self.closed:g}, open at {self.open:g}"


@dataclass(frozen=True)
class ActionSpec(VectorSpec):
    """The layout of an action [A]: a target ("absolute") or a step ("relative"), its frame, its gripper."""

    kind: str = "absolute"
    frame: str = "joint"
    gripper: GripperSpec | None = None

    def _validate(self) -> None:
        super()._validate()
        self._one_of("kind", self.kind, KINDS)
        self._one_of("frame", self.frame, FRAMES)
        if self.gripper is not None:
            self._one_of("gripper.name", self.gripper.name, self.names)


@dataclass(frozen=True)
class Normalization(Specification):
    """The statistics that map states and action chunks to about [-1, 1] (`normalization.Normalizer` applies them).

    `state_low`, `state_high`: [S]; `action_low`, `action_high`: [T, A], a row for each step of the chunk; `relative`:
    [A], whether the element is taken relative to the state measured at the decision. All in the contract's units.
    Arrays are taken, and kept as tuples. The method "quantile_relative" clips nothing; "bounds", which OpenVLA and its
    descendants have, keeps states between the bounds and takes no element relative to the state.
    """

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[tuple[float, ...], ...]
    action_high: tuple[tuple[float, ...], ...]
    relative: tuple[bool, ...]
    method: str = "quantile_relative"

    when_missing: ClassVar[str] = "A policy must not act without its statistics: take the contract that training wrote."

    def _validate(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("Normalization.method", self.method, METHODS)
        if self.method == "bounds" and any(self.relative):
            raise self._refusal("relative", got="true", expected="false for every element under the method bounds")
        for low, high in (("state_low", "state_high"), ("action_low", "action_high")):
            if len(getattr(self, low)) != len(getattr(self, high)):
                raise self._refusal(
                    high, got=f"length {len(getattr(self, high))}", expected=f"that of {low}, {len(getattr(self, low))}"
                )
        self._ordered("state_low", "state_high", self.state_low, self.state_high)
        for step, (low, high) in enumerate(zip(self.action_low, self.action_high, strict=True)):
            for field, row in ((f"action_low[{step}]", low), (f"action_high[{step}]", high)):
                if len(row) != len(self.relative):
                    raise self._refusal(
                        field, got=f"{len(row)} numbers", expected=f"one for each of {len(self.relative)} action names"
                    )
            self._ordered(f"action_low[{step}]", f"action_high[{step}]", low, high)

    def _ordered(self, low_field: str, high_field: str, lows: tuple[float, ...], highs: tuple[float, ...]) -> None:
        for index, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if not low < high:
                fix = "It never moved in the demonstrations: collect some where it does, or fit with a least span."
                raise self._refusal(
                    f"{high_field}[{index}]", got=high, expected=f"above {low_field}[{index}] ({low})", fix=fix
                )


@dataclass(frozen=True)
class Offer(Specification):
    """What a world or a robot declares: the cameras and state it gives, the action it takes, its control rate in Hz."""

    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    control_hz: float

    def _validate(self) -> None:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) < len(names):
            raise self._refusal("cameras", got=f"the names {', '.join(names)}", expected="every name once")
        if self.control_hz <= 0:
            raise self._refusal("control_hz", got=self.control_hz, expected="a rate above 0 Hz")


@dataclass(frozen=True, kw_only=True)
class Contract(Offer):
    """What a policy was trained under: the offer that it needs, its statistics, the chunk length T.

    `execute` is how many of the chunk's T steps are played before the policy decides again.
    """

    normalization: Normalization
    chunk: int
    execute: int

    when_missing: ClassVar[str] = "Take the contract that training wrote, or train again."

    def _validate(self) -> None:
        super()._validate()
        if not self.cameras:
            raise self._refusal("cameras", got="none", expected="at least one camera")
        if self.chunk < 1:
            raise self._refusal("chunk", got=self.chunk, expected="at least 1 step")
        if not 1 <= self.execute <= self.chunk:
            raise self._refusal("execute", got=self.execute, expected=f"between 1 and chunk ({self.chunk})")
        statistics, states, actions = (self.normalization, self.state.names, self.action.names)
        for field, got, expected in (
            ("state_low", len(statistics.state_low), len(states)),
            ("action_low", len(statistics.action_low), self.chunk),
            ("relative", len(statistics.relative), len(actions)),
        ):
            if got != expected:
                fix = "These statistics belong to another layout: fit them on the demonstrations of this policy."
                raise self._refusal(f"normalization.{field}", got=f"length {got}", expected=str(expected), fix=fix)
        for index, relative in enumerate(statistics.relative):
            target = (self.action.names[index], self.action.units[index])
            measured = (states[index], self.state.units[index]) if index < len(states) else None
            if relative and (target != measured or self.action.kind != "absolute"):
                fix = "Only an absolute target whose own state stands at the same place can be taken relative to it."
                expected = f"false, as {' in '.join(target)} ({self.action.kind}) has no such state"
                raise self._refusal(f"normalization.relative[{index}]", got="true", expected=expected, fix=fix)

    def differences(self, offer: Offer) -> tuple[Difference, ...]:
        """Return every way in which `offer` does not fit; cameras that the policy does not look at are none."""
        return find_differences(self, offer)

    def check(self, offer: Offer) -> None:
        """Raise ContractMismatch, an InputError that lists every difference, unless `offer` fits."""
        found = self.differences(offer)
        if found:
            raise ContractMismatch(found)
