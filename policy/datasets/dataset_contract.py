"""The contract of a dataset: what its environment offered, and exact statistics over all frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InputError
from ..contract import ActionSpec, CameraSpec, Contract, GripperSpec, Offer, StateSpec
from ..lerobot_files import camera_name
from ..normalization import demonstration_normalization
from .columns import ACTION_KEY, STATE_KEY, DatasetColumns, dataset_error

MINIMUM_SPAN = 1e-3
"""Minimum span of a statistic, in the contract's units, for elements that hardly move."""


def dataset_offer(columns: DatasetColumns) -> Offer:
    """Return what the environment of a dataset offers, from `meta/offer.json` or else from the features.

    From features, a name that ends in `.pos` is a joint in LeRobot's units (degrees; the gripper in percent of its
    opening), any other name has no unit, and actions are absolute targets.

    Raises:
        InputError: `meta/offer.json` does not fit the features.
    """
    features = columns.features
    cameras = tuple(
        CameraSpec(name=camera_name(key), height=features[key]["shape"][0], width=features[key]["shape"][1])
        for key in columns.camera_keys
    )
    state, action = (_names(features[key], key) for key in (STATE_KEY, ACTION_KEY))
    declared = columns.offer
    if declared is None:
        grippers = [name for name in action if _unit(name) == "percent"]
        gripper = GripperSpec(grippers[0], closed=0.0, open=100.0) if len(grippers) == 1 else None
        return Offer(
            cameras=cameras,
            state=StateSpec(state, tuple(map(_unit, state))),
            action=ActionSpec(action, tuple(map(_unit, action)), gripper=gripper),
            control_hz=columns.fps,
        )
    found = {(camera.name, camera.height, camera.width) for camera in cameras}
    for what, got, expected in (
        ("cameras", found, {(camera.name, camera.height, camera.width) for camera in declared.cameras}),
        ("state", state, declared.state.names),
        ("action", action, declared.action.names),
        ("fps", columns.fps, declared.control_hz),
    ):
        if got != expected:
            fix = "Collect or copy the dataset again: the two files are not of one dataset."
            raise dataset_error(
                columns.root, f"{what} {got} in meta/info.json", f"{expected}, as meta/offer.json says", fix
            )
    return declared


def relative_elements(offer: Offer) -> tuple[bool, ...]:
    """Return which action elements [A] are learned relative to the state: joint targets, but not the gripper's.

    A gripper that holds an object stops far from its target, so that the absolute target is the signal to learn.
    """
    state, action = offer.state, offer.action
    measured = list(zip(state.names, state.units, strict=True))
    return tuple(
        action.kind == "absolute"
        and not (action.gripper is not None and action.gripper.name == name)
        and index < len(measured)
        and measured[index] == (name, unit)
        for index, (name, unit) in enumerate(zip(action.names, action.units, strict=True))
    )


def fit_dataset_contract(columns: DatasetColumns, *, chunk: int, execute: int) -> Contract:
    """Return the contract of a policy that learns from one dataset, with statistics over all frames.

    Args:
        columns: The dataset.
        chunk: Steps of a chunk, T.
        execute: Steps that are executed before the next decision.
    """
    ends = columns.ends.repeat(columns.ends - columns.starts)
    state, action = columns.vectors[STATE_KEY], columns.vectors[ACTION_KEY]
    return fit_contract(dataset_offer(columns), state, action, ends, chunk=chunk, execute=execute)


def fit_contract(
    offer: Offer, state: np.ndarray, action: np.ndarray, ends: np.ndarray, *, chunk: int, execute: int
) -> Contract:
    """Return the contract of a policy for an environment, with exact statistics of its demonstrations.

    Args:
        offer: What the environment offers.
        state: [F, S].
        action: [F, A].
        ends: int [F], the index after the last frame of each frame's episode.
        chunk: Steps of a chunk, T.
        execute: Steps that are executed before the next decision.
    """
    normalization = demonstration_normalization(
        state, action, ends, chunk=chunk, relative=relative_elements(offer), minimum_span=MINIMUM_SPAN
    )
    return Contract(
        cameras=offer.cameras,
        state=offer.state,
        action=offer.action,
        control_hz=offer.control_hz,
        normalization=normalization,
        chunk=chunk,
        execute=execute,
    )


def _names(feature: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return the names of a feature's elements; LeRobot stores a list, a dictionary or nothing."""
    names, width = feature.get("names"), feature["shape"][0]
    if isinstance(names, dict):
        names = [name for group in names.values() for name in group] if len(names) == 1 else list(names)
    names = tuple(map(str, names or (f"{key}.{index}" for index in range(width))))
    if len(names) != width:
        raise InputError(
            f"{key}: names",
            got=len(names),
            expected=f"one for each of {width}",
            fix="Correct the names in meta/info.json.",
        )
    return names


def _unit(name: str) -> str:
    if not name.endswith(".pos"):
        return "unitless"
    return "percent" if "gripper" in name else "degrees"
