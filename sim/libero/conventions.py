"""How LIBERO's numbers and pictures are written: what policies trained on it see, and what their actions mean.

robosuite hands a camera's picture over with its lowest row first. The published demonstrations, and every policy
trained on them, turn that picture by 180 degrees: right way up, and mirrored left to right. `rotation_degrees` counts
from the picture as robosuite hands it over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import InputError
from ...policy.contract import ActionSpec, CameraSpec, Contract, GripperSpec, Offer, StateSpec

CONTROL_HZ = 20

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our name of each camera, and robosuite's."""

POSITION_NAMES = tuple(f"end_effector.{axis}" for axis in "xyz")
ROTATION_NAMES = tuple(f"end_effector.rotation_{axis}" for axis in "xyz")
GRIPPER_OPEN_COMMAND = -1.0
"""What robosuite's Panda takes for an opening gripper; 1 closes it, and only the sign counts."""

PUBLISHED_RENDER_SIZE = 256
"""The size at which the published demonstrations were drawn, in pixels, before anything was cropped or scaled."""

NO_OPERATION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, GRIPPER_OPEN_COMMAND])
"""The action that lets a scene settle: no motion, gripper open."""


@dataclass(frozen=True)
class Conventions:
    """What varies between policies for LIBERO; the defaults are what `saccade collect` records.

    `image_size` in pixels, square; `rotation_degrees` 0 or 180, counted from robosuite's picture; `crop` the fraction
    of the area that is kept; `render_size` the size to draw at before cropping and scaling, 256 for cropped pictures
    as in the published demonstrations, else `image_size`; `gripper_closed` and `gripper_open` the values of the last
    action element.
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
                raise InputError(name, got=size, expected="16 to 1024", fix="Policies see 128, 224 or 256 pixels.")
        if self.rotation_degrees not in (0, 180):
            fix = "Published policies see robosuite's pictures turned by 180."
            raise InputError("rotation_degrees", got=self.rotation_degrees, expected="0 or 180", fix=fix)
        if not 0.0 < self.crop <= 1.0:
            raise InputError("crop", got=self.crop, expected="a fraction above 0 and at most 1", fix="1 keeps all.")
        if self.gripper_closed == self.gripper_open:
            fix = "robosuite's own are 1 and -1, OpenVLA's 0 and 1."
            raise InputError("gripper", got=f"{self.gripper_open} for open and closed", expected="two values", fix=fix)

    @classmethod
    def from_contract(cls, contract: Contract) -> Conventions:
        """Return the conventions that a contract asks for, as far as LIBERO can follow; its check tells the rest."""
        camera = contract.cameras[0]
        gripper = contract.from_robosuite_action.gripper
        return cls(
            image_size=camera.height,
            rotation_degrees=camera.rotation_degrees if camera.rotation_degrees in (0, 180) else 180,
            crop=camera.crop,
            gripper_closed=gripper.closed if gripper else 1.0,
            gripper_open=gripper.open if gripper else GRIPPER_OPEN_COMMAND,
        )

    @property
    def rendered_size(self) -> int:
        """The size at which robosuite draws, in pixels."""
        return self.render_size or (PUBLISHED_RENDER_SIZE if self.crop < 1.0 else self.image_size)

    def offer(self) -> Offer:
        """Return what the world offers under these conventions."""
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
            # Fractions of the controller's greatest step: 5 cm and 0.5 radians along and about the world's axes.
            from_robosuite_action=ActionSpec(
                (*POSITION_NAMES, *ROTATION_NAMES, "gripper"),
                ("unitless",) * 7,
                kind="relative",
                frame="world",
                gripper=GripperSpec("gripper", closed=self.gripper_closed, open=self.gripper_open),
            ),
            control_hz=float(CONTROL_HZ),
        )

    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the greatest action, float32 [7] each."""
        ends = (self.gripper_closed, self.gripper_open)
        return np.float32([-1.0] * 6 + [min(ends)]), np.float32([1.0] * 6 + [max(ends)])

    def to_robosuite_action(self, from_robosuite_action: np.ndarray) -> np.ndarray:
        """Return robosuite's action float64 [7] for one in these conventions."""
        closed_fraction = (from_robosuite_action[6] - self.gripper_open) / (self.gripper_closed - self.gripper_open)
        return np.clip(np.append(from_robosuite_action[:6], GRIPPER_OPEN_COMMAND + 2.0 * closed_fraction), -1.0, 1.0)

    def from_robosuite_action(self, to_robosuite_action: np.ndarray) -> np.ndarray:
        """Return the action float32 [7] in these conventions for one of robosuite's: the inverse of `to_robosuite_action`."""
        closed_fraction = (to_robosuite_action[6] - GRIPPER_OPEN_COMMAND) / 2.0
        gripper = self.gripper_open + closed_fraction * (self.gripper_closed - self.gripper_open)
        return np.append(to_robosuite_action[:6], gripper).astype(np.float32)

    def to_policy_image(self, rendered: np.ndarray) -> np.ndarray:
        """Return a picture uint8 [image_size, image_size, 3] as the policy sees it, of one as robosuite draws it.

        Turned, scaled with Lanczos, then cropped and scaled back bilinearly: the order of OpenVLA's evaluation.
        """
        turned = rendered[::-1, ::-1] if self.rotation_degrees == 180 else rendered
        if turned.shape[0] != self.image_size:
            size = (self.image_size, self.image_size)
            turned = np.asarray(Image.fromarray(turned.copy()).resize(size, Image.Resampling.LANCZOS))
        return np.ascontiguousarray(turned if self.crop == 1.0 else crop_centre(turned, self.crop))

    def to_image_point(self, point: np.ndarray) -> np.ndarray:
        """Return where a point [2] of the upright, unmirrored view (fractions from the upper left) is in `to_policy_image`."""
        across, down = point
        turned = np.array([1.0 - across, down] if self.rotation_degrees == 180 else [across, 1.0 - down])
        return 0.5 + (turned - 0.5) / np.sqrt(self.crop)


def crop_centre(to_policy_image: np.ndarray, crop: float) -> np.ndarray:
    """Return the middle of a square picture uint8 [H, H, 3], `crop` of its area, scaled back to its size.

    Bilinear, with the corners of the crop on the corners of the result, as TensorFlow's crop_and_resize does.
    """
    last = to_policy_image.shape[0] - 1
    side = np.sqrt(crop)
    at = np.linspace((1 - side) / 2 * last, (1 + side) / 2 * last, to_policy_image.shape[0])
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, last), (at - low).astype(np.float32)
    rows = to_policy_image[low] * (1 - part)[:, None, None] + to_policy_image[high] * part[:, None, None]
    both = rows[:, low] * (1 - part)[:, None] + rows[:, high] * part[:, None]
    return np.clip(both + 0.5, 0, 255).astype(np.uint8)


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Return axis times angle [3], 0 to 2π radians, of a unit quaternion xyzw as robosuite gives it.

    Its sign is kept: the published states have the angle that belongs to it, also where the opposite sign would give a
    smaller one. Policies that saw these states do much worse when it is changed.
    """
    x, y, z, w = np.asarray(quaternion, dtype=np.float64)
    w = float(np.clip(w, -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0, rtol=1e-9, atol=0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * np.arccos(w) / sine)
