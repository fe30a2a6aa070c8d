"""Platforms (robots and simulators) of released policies: the part of a contract that their files do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError, unknown_name
from ..contract import ActionSpec, CameraSpec, Contract, GripperSpec, Normalization, StateSpec

SPAN_EPSILON = 1e-8
"""The released code adds this to every span, so that none is zero."""


@dataclass(frozen=True)
class Platform:
    """The conventions of the demonstrations of one platform.

    Attributes:
        name: Name of the platform.
        cameras: Cameras in the order of the policy's views; the checkpoint gives their size.
        state: Elements and units of the state.
        action: Elements and units of the actions.
        chunk: Steps of a chunk, T; a released policy executes all of them before it decides again.
        control_hz: Actions per second.
        bounds: Names of the statistics that are normalised to -1 and 1.
    """

    name: str
    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    chunk: int
    control_hz: float
    bounds: tuple[str, str] = ("q01", "q99")


_POSITION = tuple(f"end_effector.{axis}" for axis in "xyz")
_ROTATION = tuple(f"end_effector.rotation_{axis}" for axis in "xyz")
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_TWO_ARMS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM)
_TWO_ARMS_UNITS = tuple("unitless" if name.endswith("gripper") else "radians" for name in _TWO_ARMS)

PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            name="libero",
            cameras=(
                CameraSpec("agentview", 224, 224, rotation_degrees=180, crop=0.9),
                CameraSpec("wrist", 224, 224, rotation_degrees=180, crop=0.9),
            ),
            state=StateSpec(
                (*_POSITION, *_ROTATION, "gripper.left", "gripper.right"),
                (*["metres"] * 3, *["radians"] * 3, *["metres"] * 2),
                rotation="axis_angle",
            ),
            # Input of robosuite's controller: fractions of its largest step. Unlike there, 1 is an open gripper.
            action=ActionSpec(
                (*_POSITION, *_ROTATION, "gripper"),
                ("unitless",) * 7,
                kind="relative",
                frame="world",
                gripper=GripperSpec("gripper", closed=0, open=1),
            ),
            chunk=8,
            control_hz=20,
        ),
        Platform(
            name="aloha",
            cameras=tuple(CameraSpec(name, 224, 224, crop=0.9) for name in ("high", "left_wrist", "right_wrist")),
            state=StateSpec(_TWO_ARMS, _TWO_ARMS_UNITS),
            # Two grippers, each a fraction of open. A contract has at most one gripper, so only their names tell.
            action=ActionSpec(_TWO_ARMS, _TWO_ARMS_UNITS, kind="absolute", frame="joint"),
            chunk=25,
            control_hz=25,
            bounds=("min", "max"),
        ),
        Platform(
            name="bridge",
            cameras=(CameraSpec("primary", 224, 224, crop=0.9),),
            state=StateSpec(
                (*_POSITION, *_ROTATION, "gripper"),
                (*["metres"] * 3, *["radians"] * 3, "unitless"),
                rotation="euler_xyz",
            ),
            action=ActionSpec(
                (*_POSITION, *_ROTATION, "gripper"),
                (*["metres"] * 3, *["radians"] * 3, "unitless"),
                kind="relative",
                frame="base",
                gripper=GripperSpec("gripper", closed=0, open=1),
            ),
            chunk=5,
            control_hz=5,
        ),
    )
}


def find_platform(name: str) -> Platform:
    """Return a platform by name; raises InputError that suggests the nearest name if it is unknown."""
    if name not in PLATFORMS:
        raise unknown_name("platform", name, PLATFORMS)
    return PLATFORMS[name]


def released_contract(
    platform: Platform,
    statistics: Mapping[str, Any],
    dataset_name: str | None,
    *,
    image_size: int,
    state: int,
    action: int,
) -> Contract:
    """Return the contract of a released policy: the platform's conventions and the policy's statistics.

    Args:
        platform: Platform that the policy was trained for.
        statistics: Content of dataset_statistics.json.
        dataset_name: The dataset whose statistics are used; may be None if there is only one.
        image_size: Height and width of the images in pixels.
        state: State elements that the weights expect, S.
        action: Action dimensions that the weights return, A.

    Raises:
        InputError: The weights are for another platform, the dataset is unknown or has to be chosen, or the statistics
            do not fit.
    """
    for what, got, names in (("state", state, platform.state.names), ("action", action, platform.action.names)):
        if got != len(names):
            fits = [
                each.name
                for each in PLATFORMS.values()
                if (len(each.state.names), len(each.action.names)) == (state, action)
            ]
            raise InputError(
                f"platform {platform.name}: {what}",
                got=f"{len(names)} numbers ({', '.join(names)})",
                expected=f"{got}, as the checkpoint's weights have it",
                fix=f"It fits --platform {' or '.join(fits)}." if fits else "No platform here has these sizes.",
            )
    entry = _entry(statistics, dataset_name)
    low, high = platform.bounds
    action_low, action_high = _bounds(entry, "action", low, high, action)
    state_low, state_high = _bounds(entry, "proprio", low, high, state)
    return Contract(
        cameras=tuple(replace(camera, height=image_size, width=image_size) for camera in platform.cameras),
        state=platform.state,
        action=platform.action,
        control_hz=platform.control_hz,
        normalization=Normalization(
            state_low=state_low,
            state_high=state_high,
            action_low=(action_low,) * platform.chunk,
            action_high=(action_high,) * platform.chunk,
            relative=(False,) * action,
            method="bounds",
        ),
        chunk=platform.chunk,
        execute=platform.chunk,
    )


def _entry(statistics: Mapping[str, Any], dataset_name: str | None) -> Mapping[str, Any]:
    if dataset_name is None:
        if len(statistics) != 1:
            raise InputError(
                "statistics",
                got=f"none chosen of {len(statistics)} datasets",
                expected="one",
                fix=f"Choose with --statistics: {', '.join(sorted(statistics)) or 'there are none'}.",
            )
        dataset_name = next(iter(statistics))
    if dataset_name not in statistics:
        raise InputError(
            "statistics",
            got=repr(dataset_name),
            expected="a dataset of the checkpoint's statistics",
            fix=f"Choose with --statistics: {', '.join(sorted(statistics)) or 'there are none'}.",
        )
    return statistics[dataset_name]


def _bounds(
    entry: Mapping[str, Any], part: str, low: str, high: str, width: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values that are normalised to -1 and to 1; elements that the mask leaves out are not changed."""
    part_statistics = entry.get(part) if isinstance(entry, Mapping) else None
    lists = (
        [part_statistics.get(low), part_statistics.get(high), part_statistics.get("mask", [True] * width)]
        if isinstance(part_statistics, Mapping)
        else []
    )
    numbers = all(
        isinstance(each, list) and len(each) == width and all(isinstance(value, int | float) for value in each)
        for each in lists
    )
    if not lists or not numbers:
        raise InputError(
            f"statistics: {part}",
            got=", ".join(f"{len(each)}" if isinstance(each, list) else "none" for each in lists) or "none",
            expected=f"{width} numbers each of {low} and {high}",
            fix="Choose the platform that the policy was trained for, or copy dataset_statistics.json again.",
        )
    lows = tuple(first if used else -1.0 for first, used in zip(lists[0], lists[2], strict=True))
    highs = tuple(last + SPAN_EPSILON if used else 1.0 for last, used in zip(lists[1], lists[2], strict=True))
    return lows, highs
