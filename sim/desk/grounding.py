"""Grounding labels: the points that the instruction refers to, in the arm's base frame and in the cameras' images."""

from __future__ import annotations

import numpy as np

from ..projection import POINT_NOT_VISIBLE, project_point
from .progress import EpisodeProgress
from .scene import CAMERAS
from .simulation import DeskSimulation

IDENTIFYING_DISTANCE = 0.045
"""At this distance from an object, the tool shows which one is meant; objects are farther apart. In metres."""


def grounding_label(desk: DeskSimulation, progress: EpisodeProgress) -> np.ndarray:
    """Return the grounding label of the present state: float32 [14].

    Returns:
        Two points of the current goal, 3 numbers each, in metres: what to act on, and where it has to go. Then the two
        in the image of each camera, 2 numbers each, as fractions from the upper left corner. These are outside 0 to 1
        if the point is out of view, and (-1, -1) if nothing in view tells which object is meant.
    """
    target, destination = progress.current_goal(desk).grounding_points(desk)
    image_points = np.array(
        [[_image_point(desk, camera, point) for point in (target, destination)] for camera in CAMERAS]
    )  # [camera, point, 2]
    if not _is_target_identifiable(desk, progress):
        image_points[:, 0] = POINT_NOT_VISIBLE
    return np.concatenate([target, destination, image_points.reshape(-1)]).astype(np.float32)


def _is_target_identifiable(desk: DeskSimulation, progress: EpisodeProgress) -> bool:
    """Tell whether the images show which object is meant: by a lit cue, or by the arm at or with the object."""
    cue, target = desk.task_spec.cue, desk.task_spec.target
    if cue is None or progress.steps < cue.lit_steps:
        return True
    near = np.linalg.norm(desk.tool_position() - desk.position(target)) < IDENTIFYING_DISTANCE
    return bool(near or desk.finger_contacts(target) or progress.picked == target)


def _image_point(desk: DeskSimulation, camera: str, point: np.ndarray) -> np.ndarray:
    """Return a point's image coordinates [2]; (-1, -1) behind the camera."""
    image_point = project_point(desk.model, desk.data, camera, point)
    return POINT_NOT_VISIBLE if image_point is None else np.clip(image_point, -1.0, 2.0)
