"""The offer of an environment or robot: cameras, state, action and control rate."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import unknown_name
from .specification import Specification

UNITS = (
    *("degrees", "radians", "metres", "percent", "unitless"),
    *("degrees_per_second", "radians_per_second", "metres_per_second"),
)
"""Units of state and action elements."""

ROTATIONS = ("none", "quaternion_wxyz", "quaternion_xyzw", "axis_angle", "euler_xyz", "matrix_6d")
"""Representations of an orientation in the state."""

ACTION_KINDS = ("absolute", "relative")
"""A target, or a step from the current state."""

ACTION_FRAMES = ("joint", "base", "world", "tool")
"""Coordinate frames of an action."""

QUARTER_TURNS = (0, 90, 180, 270)
"""Rotations of a camera image, in degrees."""


@dataclass(frozen=True)
class CameraSpec(Specification):
    """The images of one camera as the policy gets them.

    Attributes:
        name: The camera's name.
        height, width: Size in pixels.
        rotation_degrees: Counter-clockwise rotation from the camera's upright view.
        crop: Fraction of the area that a centred crop kept, before any resize.
    """

    name: str
    height: int
    width: int
    rotation_degrees: int = 0
    crop: float = 1.0

    def _validate(self) -> None:
        for side in ("height", "width"):
            if getattr(self, side) < 1:
                raise self._field_error(side, got=getattr(self, side), expected="at least 1 pixel")
        if self.rotation_degrees not in QUARTER_TURNS:
            raise self._field_error("rotation_degrees", got=self.rotation_degrees, expected="0, 90, 180 or 270")
        if not 0.0 < self.crop <= 1.0:
            raise self._field_error("crop", got=self.crop, expected="a fraction above 0 and at most 1")

    def __str__(self) -> str:
        return f"{self.name} ({self.height}x{self.width} pixels)"


@dataclass(frozen=True)
class VectorSpec(Specification):
    """The layout of a vector: name and unit of every element, in order."""

    names: tuple[str, ...]
    units: tuple[str, ...]

    def _validate(self) -> None:
        if not self.names:
            raise self._field_error("names", got="no names", expected="at least one")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise self._field_error("names", got=f"{', '.join(repeated)} more than once", expected="every name once")
        if len(self.units) != len(self.names):
            raise self._field_error(
                "units", got=f"{len(self.units)} units", expected=f"one for each of {len(self.names)} names"
            )
        for index, unit in enumerate(self.units):
            self._check_choice(f"units[{index}]", unit, UNITS)

    def _check_choice(self, field: str, name: str, choices: tuple[str, ...]) -> None:
        if name not in choices:
            raise unknown_name(f"{type(self).__name__}.{field}", name, choices)


@dataclass(frozen=True)
class StateSpec(VectorSpec):
    """The layout of the measured state [S]; `rotation` is the representation of an orientation in it, if any."""

    rotation: str = "none"

    def _validate(self) -> None:
        super()._validate()
        self._check_choice("rotation", self.rotation, ROTATIONS)


@dataclass(frozen=True)
class GripperSpec(Specification):
    """The name of the action element that is the gripper, and its values for closed and open."""

    name: str
    closed: float
    open: float

    def _validate(self) -> None:
        if self.closed == self.open:
            raise self._field_error("open", got=self.open, expected=f"a value other than closed ({self.closed:g})")

    def __str__(self) -> str:
        return f"{self.name} closed at {self.closed:g}, open at {self.open:g}"


@dataclass(frozen=True)
class ActionSpec(VectorSpec):
    """The layout of an action [A]: a target ("absolute") or a step ("relative"), its frame and its gripper."""

    kind: str = "absolute"
    frame: str = "joint"
    gripper: GripperSpec | None = None

    def _validate(self) -> None:
        super()._validate()
        self._check_choice("kind", self.kind, ACTION_KINDS)
        self._check_choice("frame", self.frame, ACTION_FRAMES)
        if self.gripper is not None:
            self._check_choice("gripper.name", self.gripper.name, self.names)


@dataclass(frozen=True)
class Offer(Specification):
    """What an environment or robot offers: its cameras and state, the action it takes, and its control rate in Hz."""

    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    control_hz: float

    def _validate(self) -> None:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) < len(names):
            raise self._field_error("cameras", got=f"the names {', '.join(names)}", expected="every name once")
        if self.control_hz <= 0:
            raise self._field_error("control_hz", got=self.control_hz, expected="a rate above 0 Hz")
