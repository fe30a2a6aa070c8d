"""LIBERO's conventions for images, states and actions, as policies trained on it expect them.

robosuite returns a camera's image with its lowest row first. The published demonstrations, and every policy trained on
them, rotate that image by 180 degrees: the result is upright and mirrored left to right. `rotation_degrees` counts
from robosuite's image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import InputError
from ...policy.contract import ActionSpec, CameraSpec, Contract, GripperSpec, Offer, StateSpec

CONTROL_HZ = 20

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""The name of each camera in observations, and its name in robosuite."""

POSITION_NAMES = tuple(f"end_effector.{axis}" for axis in "xyz")
ROTATION_NAMES = tuple(f"end_effector.rotation_{axis}" for axis in "xyz")
GRIPPER_OPEN_COMMAND = -1.0
"""robosuite's command that opens the Panda's gripper; 1 closes it. Only the sign counts."""

PUBLISHED_RENDER_SIZE = 256
"""Size in pixels at which the published demonstrations were rendered, before any crop or resize."""

NO_OPERATION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, GRIPPER_OPEN_COMMAND])
"""robosuite's action [7] that lets a scene settle: no motion, gripper open."""


@dataclass(frozen=True)
class Conventions:
    """The conventions that differ between policies for LIBERO. The defaults are what `saccade collect` records.

    Attributes:
        image_size: Height and width of an image in pixels, 16 to 1024.
        rotation_degrees: Rotation of an image, 0 or 180, counted from robosuite's.
        crop: Fraction of the area that a centred crop keeps.
        gripper_closed: Value of the last action element that closes the gripper.
        gripper_open: Value of the last action element that opens the gripper.
        render_size: Size in pixels to render at, before resize and crop. None: 256 for cropped images, as in the
            published demonstrations, else `image_size`.

    Raises:
        InputError: A field is out of its range, or both gripper values are equal.
    """

    image_size: int = 128
    rotation_degrees: int = 180
    crop: float = 1.0
    gripper_closed: float = 1.0
    gripper_open: float = GRIPPER_OPEN_COMMAND
    render_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "render_size"):
            size = getattr(self, name)
            if size is not None and not 16 <= size <= 1024:
                raise InputError(name, got=size, expected="16 to 1024", fix=f"Set {name} to 128, 224 or 256.")
        if self.rotation_degrees not in (0, 180):
            fix = "Set rotation_degrees to 180, as for published policies."
            raise InputError("rotation_degrees", got=self.rotation_degrees, expected="0 or 180", fix=fix)
        if not 0.0 < self.crop <= 1.0:
            fix = "Set crop to 1 for the whole image."
            raise InputError("crop", got=self.crop, expected="a fraction above 0 and at most 1", fix=fix)
        if self.gripper_closed == self.gripper_open:
            fix = "Set gripper_closed and gripper_open to 1 and -1 (robosuite) or to 0 and 1 (OpenVLA)."
            raise InputError("gripper", got=f"{self.gripper_open} for open and closed", expected="two values", fix=fix)

    @classmethod
    def from_contract(cls, contract: Contract) -> Conventions:
        """Return the conventions that a policy's contract asks for, as far as LIBERO supports them.

        `contract.check(conventions.offer())` reports what LIBERO does not support.

        Raises:
            InputError: The contract's image size is out of range.
        """
        camera = contract.cameras[0]
        gripper = contract.action.gripper
        return cls(
            image_size=camera.height,
            rotation_degrees=camera.rotation_degrees if camera.rotation_degrees in (0, 180) else 180,
            crop=camera.crop,
            gripper_closed=gripper.closed if gripper else 1.0,
            gripper_open=gripper.open if gripper else GRIPPER_OPEN_COMMAND,
        )

    @property
    def rendered_size(self) -> int:
        """The size in pixels at which robosuite renders."""
        return self.render_size or (PUBLISHED_RENDER_SIZE if self.crop < 1.0 else self.image_size)

    def offer(self) -> Offer:
        """Return the cameras, state, action and control rate that LIBERO offers under these conventions."""
        cameras = (
            CameraSpec(name, self.image_size, self.image_size, self.rotation_degrees, self.crop) for name in CAMERAS
        )
        return Offer(
            cameras=tuple(cameras),
            state=StateSpec(
                (*POSITION_NAMES, *ROTATION_NAMES, "gripper.left", "gripper.right"),
                (*["metres"] * 3, *["radians"] * 3, *["metres"] * 2),
                rotation="axis_angle",
            ),
            # Fractions of the controller's largest step: 0.05 m along, 0.5 radians about the axes of the world frame.
            action=ActionSpec(
                (*POSITION_NAMES, *ROTATION_NAMES, "gripper"),
                ("unitless",) * 7,
                kind="relative",
                frame="world",
                gripper=GripperSpec("gripper", closed=self.gripper_closed, open=self.gripper_open),
            ),
            control_hz=float(CONTROL_HZ),
        )

    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper bound of an action, float32 [7] each."""
        ends = (self.gripper_closed, self.gripper_open)
        lower, upper = [-1.0] * 6 + [min(ends)], [1.0] * 6 + [max(ends)]
        return np.array(lower, dtype=np.float32), np.array(upper, dtype=np.float32)

    def to_robosuite_action(self, action: np.ndarray) -> np.ndarray:
        """Return robosuite's action float64 [7], clipped to [-1, 1], for an action [7] in these conventions."""
        closed_fraction = (action[6] - self.gripper_open) / (self.gripper_closed - self.gripper_open)
        return np.clip(np.append(action[:6], GRIPPER_OPEN_COMMAND + 2.0 * closed_fraction), -1.0, 1.0)

    def from_robosuite_action(self, robosuite_action: np.ndarray) -> np.ndarray:
        """Return the action float32 [7] in these conventions for robosuite's [7]; inverse of `to_robosuite_action`."""
        closed_fraction = (robosuite_action[6] - GRIPPER_OPEN_COMMAND) / 2.0
        gripper = self.gripper_open + closed_fraction * (self.gripper_closed - self.gripper_open)
        return np.append(robosuite_action[:6], gripper).astype(np.float32)

    def to_policy_image(self, rendered: np.ndarray) -> np.ndarray:
        """Return the image that the policy sees.

        The image is rotated, resized with Lanczos, then cropped and resized back bilinearly: the order of OpenVLA's
        evaluation.

        Args:
            rendered: uint8 [R, R, 3], R = `rendered_size`, as robosuite returns it.

        Returns:
            uint8 [H, H, 3], H = `image_size`.
        """
        image = rendered[::-1, ::-1] if self.rotation_degrees == 180 else rendered  # [R, R, 3]
        if image.shape[0] != self.image_size:
            size = (self.image_size, self.image_size)
            image = np.asarray(Image.fromarray(image.copy()).resize(size, Image.Resampling.LANCZOS))  # [H, H, 3]
        return np.ascontiguousarray(image if self.crop == 1.0 else crop_centre(image, self.crop))

    def to_image_point(self, point: np.ndarray) -> np.ndarray:
        """Return where a point is in the image of `to_policy_image`.

        Args:
            point: Column and row [2] in the upright, unmirrored view, as fractions from the upper left corner.

        Returns:
            Column and row [2] in the policy's image, as fractions from its upper left corner; outside 0 to 1 where the
            crop removes the point.
        """
        column, row = point
        rotated = np.array([1.0 - column, row] if self.rotation_degrees == 180 else [column, 1.0 - row])
        return 0.5 + (rotated - 0.5) / np.sqrt(self.crop)


def crop_centre(image: np.ndarray, crop: float) -> np.ndarray:
    """Crop the centre of a square image and resize it back to the image's size.

    Bilinear, with the corners of the crop on the corners of the result, as TensorFlow's crop_and_resize does.

    Args:
        image: uint8 [H, H, 3].
        crop: Fraction of the area to keep.

    Returns:
        uint8 [H, H, 3].
    """
    last = image.shape[0] - 1
    side = np.sqrt(crop)
    at = np.linspace((1 - side) / 2 * last, (1 + side) / 2 * last, image.shape[0])  # [H], pixel coordinates
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, last), (at - low).astype(np.float32)
    rows = image[low] * (1 - weight)[:, None, None] + image[high] * weight[:, None, None]  # [H, H, 3]
    cropped = rows[:, low] * (1 - weight)[:, None] + rows[:, high] * weight[:, None]  # [H, H, 3]
    return np.clip(cropped + 0.5, 0, 255).astype(np.uint8)


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation vector (axis times angle) of a unit quaternion.

    The quaternion's sign is kept, so angles go from 0 to 2π: the published states contain the angle of that sign, even
    where the opposite sign gives a smaller one. Policies trained on them do much worse with the smaller angle.

    Args:
        quaternion: [4] in the order xyzw, as robosuite returns it.

    Returns:
        Rotation vector float64 [3] in radians.
    """
    x, y, z, w = np.asarray(quaternion, dtype=np.float64)
    w = float(np.clip(w, -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0, rtol=1e-9, atol=0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * np.arccos(w) / sine)
