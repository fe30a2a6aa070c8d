"""The differences between an offer and a contract, all at once, each with a fix."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from .offer import ActionSpec, CameraSpec, Offer, VectorSpec


@dataclass(frozen=True)
class Difference:
    """One way in which an offer does not fit a contract."""

    field: str
    got: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}, expected {self.expected}. {self.fix}"


class ContractMismatch(InputError):
    """An offer does not fit a contract; `differences` has every reason, the message has a line for each."""

    def __init__(self, differences: tuple[Difference, ...]) -> None:
        self.differences = differences
        columns = (
            "; ".join(getattr(each, name) for each in differences) for name in ("field", "got", "expected", "fix")
        )
        what, got, expected, fix = columns
        super().__init__(what, got=got, expected=expected, fix=fix)
        if len(differences) > 1:
            lines = "".join(f"\n  {each}" for each in differences)
            self.args = (f"the policy's contract is not met in {len(differences)} places:{lines}",)

    def __reduce__(self) -> tuple:
        return type(self), (self.differences,)


def find_differences(contract: Offer, offer: Offer) -> tuple[Difference, ...]:
    """Return every way in which `offer` does not fit `contract`, cameras first, then state, action and rate."""
    found = [each for camera in contract.cameras for each in _camera_differences(camera, offer.cameras)]
    found += _vector_differences("state", contract.state, offer.state)
    got, expected = offer.state.rotation, contract.state.rotation
    if got != expected:
        fix = f"Convert the orientation from {got} to {expected} before the policy gets it."
        found.append(Difference("state.rotation", got, expected, fix))
    found += _vector_differences("action", contract.action, offer.action)
    found += _action_differences(contract.action, offer.action)
    if not math.isclose(offer.control_hz, contract.control_hz, rel_tol=1e-6):
        got, expected = f"{offer.control_hz:g} Hz", f"{contract.control_hz:g} Hz"
        fix = f"Run the control loop at {expected}, or train a policy on demonstrations at {got}."
        found.append(Difference("control_hz", got, expected, fix))
    return tuple(found)


def _camera_differences(wanted: CameraSpec, offered: tuple[CameraSpec, ...]) -> list[Difference]:
    field = f"cameras.{wanted.name}"
    camera = next((each for each in offered if each.name == wanted.name), None)
    if camera is None:
        names = [each.name for each in offered]
        near = difflib.get_close_matches(wanted.name, names, n=1)
        fix = f"Rename camera {near[0]!r} to {wanted.name!r}." if near else f"Add a camera named {wanted.name!r}."
        return [Difference(field, f"only {', '.join(names)}" if names else "no cameras", str(wanted), fix)]
    found = []
    if (camera.height, camera.width) != (wanted.height, wanted.width):
        size = f"{wanted.height}x{wanted.width}"
        fix = f"Set the camera to {size} (height x width), or resize its images before the policy gets them."
        found.append(Difference(f"{field}.size", f"{camera.height}x{camera.width}", size, fix))
    if camera.rotation_degrees != wanted.rotation_degrees:
        turn = (wanted.rotation_degrees - camera.rotation_degrees) % 360
        fix = f"Rotate its images by {turn} degrees counter-clockwise, once, before the policy gets them."
        got, expected = (f"{camera.rotation_degrees} degrees", f"{wanted.rotation_degrees} degrees")
        found.append(Difference(f"{field}.rotation_degrees", got, expected, fix))
    if not math.isclose(camera.crop, wanted.crop, rel_tol=1e-6):
        fix = f"Crop its full images once to the central {wanted.crop:g} of their area, then resize them."
        found.append(Difference(f"{field}.crop", f"{camera.crop:g}", f"{wanted.crop:g}", fix))
    return found


def _vector_differences(field: str, wanted: VectorSpec, offered: VectorSpec) -> list[Difference]:
    found = []
    if offered.names != wanted.names:
        missing = [name for name in wanted.names if name not in offered.names]
        extra = [name for name in offered.names if name not in wanted.names]
        steps = [f"add {', '.join(missing)}"] * bool(missing) + [f"leave out {', '.join(extra)}"] * bool(extra)
        fix = f"{' and '.join([*steps, 'keep the expected order'] if steps else ['put them in the expected order'])}."
        found.append(
            Difference(f"{field}.names", ", ".join(offered.names), ", ".join(wanted.names), fix[0].upper() + fix[1:])
        )
    units = dict(zip(offered.names, offered.units, strict=True))
    unit_conflicts: dict[tuple[str, str], list[str]] = {}
    for name, unit in zip(wanted.names, wanted.units, strict=True):
        if units.get(name, unit) != unit:
            unit_conflicts.setdefault((units[name], unit), []).append(name)
    for (got, expected), names in unit_conflicts.items():
        # A state goes to the policy and an action comes from it: units are converted in opposite directions.
        way = (
            f"{got} to {expected} before the policy gets"
            if field == "state"
            else f"{expected} to {got} before the environment executes"
        )
        fix = f"Convert from {way} {'it' if len(names) == 1 else 'them'}."
        found.append(Difference(f"{field}.units of {', '.join(names)}", got, expected, fix))
    return found


def _action_differences(wanted: ActionSpec, offered: ActionSpec) -> list[Difference]:
    found = []
    if offered.kind != wanted.kind:
        step = "add the measured state to" if wanted.kind == "relative" else "subtract the measured state from"
        fix = f"Choose the {wanted.kind} action interface, or {step} each action before the environment executes it."
        found.append(Difference("action.kind", offered.kind, wanted.kind, fix))
    if offered.frame != wanted.frame:
        fix = f"Choose the {wanted.frame} action interface, or a policy trained for the {offered.frame} frame."
        found.append(Difference("action.frame", offered.frame, wanted.frame, fix))
    if offered.gripper != wanted.gripper:
        fix = "Declare the same gripper on both sides."
        if wanted.gripper and offered.gripper:
            scale = (offered.gripper.open - offered.gripper.closed) / (wanted.gripper.open - wanted.gripper.closed)
            shift = offered.gripper.closed - scale * wanted.gripper.closed
            fix = f"Send {scale:g} * g + {shift:g} to {offered.gripper.name} where the policy outputs g."
        got, expected = (str(each.gripper or "no gripper") for each in (offered, wanted))
        found.append(Difference("action.gripper", got, expected, fix))
    return found
