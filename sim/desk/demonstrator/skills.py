"""The motions that a demonstrator chains: put, push, press, pour. Each is a function of what is there now.

None keeps a clock or a memory: from the hand's state and the desk's follows where the tool goes next. A policy without
memory can learn it, and a push, a slip or a missed grasp is recovered from. Lengths in metres, angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arm import PAN
from ..fixtures import Basin, Button, Desk, Drawer, Mat
from ..goals import OPEN, ROOMY
from ..objects import SHAPES, DeskObject
from ..places import CARRIED, Place

WIDE, PRESS, MISSED = 0.90, -0.12, 0.12
"""Gripper angles: open, where it presses to when closing, and where it must have missed."""

CARRY_HEIGHT, RELEASE_HEIGHT, TRAVEL_HEIGHT, POUR_HEIGHT = 0.085, 0.075, 0.075, 0.095
GRIP_RATE = 0.16
"""How far the gripper turns in one control step."""

MARGIN = 0.009
"""Gap between the fixed finger and the object before the jaw closes."""

AROUND = np.deg2rad(60)
"""How far around the base the hand goes in a straight line."""

TILT_RATE, TILTED, POUR_AHEAD = 0.05, 1.30, 0.040
"""How far the hand leans in one step when it pours, how far at most, and how far beyond the bowl the cup is then."""


@dataclass(frozen=True)
class Hand:
    """The hand as it is: tool [3], gripper angle, outward lean; and its habits: speed, and where it aims aside [2]."""

    tool: np.ndarray
    gripper: float
    lean: float
    speed: float
    aim: np.ndarray


@dataclass(frozen=True)
class Motion:
    """Where the tool should go, how fast at most, the gripper's next angle; the usual lean unless one is given."""

    goal: np.ndarray
    speed: float
    gripper: float
    lean: float | None = None
    calm: float = 1.0
    """How much of the demonstrator's disturbance it bears."""


def put(desk: Desk, hand: Hand, thing: DeskObject, place: Place) -> Motion:
    """Pick a thing and let it go at a place."""
    at, middle = desk.position(thing.body), place.middle(desk)
    touching = desk.finger_contacts(thing.body)
    offset = np.linalg.norm(at[:2] - middle[:2])
    height = at[2] - thing.rest_height - middle[2] - place.let_go_height
    if touching == 2 and offset > _carried_near_enough(place, height):
        return Motion(_carry(hand, at, middle), hand.speed, max(hand.gripper - GRIP_RATE, PRESS))
    if touching == 2 and height > 0.004:
        below = hand.tool + np.array([*(middle - at)[:2], -height])
        return Motion(below, 0.12, max(hand.gripper - GRIP_RATE, PRESS))
    if offset < place.let_go_within and height < 0.012:
        return _let_go(hand, at, place)
    return _reach(desk, hand, thing)


def _carried_near_enough(place: Place, height: float) -> float:
    """Return how far aside a carried thing may be: the less the higher it still is, so that it comes down straight."""
    if place.let_go_height == CARRIED:
        return 0.014
    return float(np.interp(height, (0.01, 0.05), (place.let_go_within - 0.002, 0.5 * place.let_go_within)))


def _carry(hand: Hand, at: np.ndarray, to: np.ndarray) -> np.ndarray:
    high = np.clip((hand.tool[2] - 0.035) / 0.035, 0.0, 1.0)
    return np.array([*(hand.tool[:2] + high * (to[:2] - at[:2])), CARRY_HEIGHT])


def _let_go(hand: Hand, at: np.ndarray, place: Place) -> Motion:
    gripper = min(hand.gripper + GRIP_RATE, WIDE)
    if place.let_go_height == CARRIED:
        return Motion(np.array([*hand.tool[:2], max(hand.tool[2], RELEASE_HEIGHT)]), 0.1, gripper)
    # The jaw opens away by itself; the fixed finger steps back, and only then the hand may rise.
    away = -tangent(at) * 0.008
    rise = 0.02 if hand.gripper > WIDE - 0.2 else 0.0
    return Motion(hand.tool + np.array([*away, rise]), 0.06, gripper)


def tangent(at: np.ndarray) -> np.ndarray:
    """Return the direction [2] in which the jaws close at a position: from the fixed finger to the moving one."""
    angle = np.arctan2(at[1] - PAN[1], at[0] - PAN[0])
    return np.array([-np.sin(angle), np.cos(angle)])


def _reach(desk: Desk, hand: Hand, thing: DeskObject, lean: float | None = None) -> Motion:
    at, touching = desk.position(thing.body), desk.finger_contacts(thing.body)
    # The tool lies at the fixed finger: it goes beside the thing, so that the jaws close on its middle.
    beside = (SHAPES[thing.shape][1][0] + MARGIN) * tangent(at)
    grasp = np.array([*(at[:2] - beside + hand.aim), max(at[2] - 0.003, 0.010)])
    aside = np.linalg.norm(hand.tool[:2] - grasp[:2])
    closing = hand.gripper < WIDE - 0.25
    aligned = aside < (0.018 if closing else 0.006) and abs(hand.tool[2] - grasp[2]) < (0.015 if closing else 0.006)
    if aligned and not (hand.gripper < MISSED and touching == 0):
        return Motion(grasp, 0.05, max(hand.gripper - GRIP_RATE, PRESS), lean)
    # A funnel: far aside stay above everything, come down as the tool comes over the grasp.
    above = np.clip((aside - 0.004) * 6.0, 0.0, 0.06)
    gripper = min(hand.gripper + GRIP_RATE, WIDE)
    return Motion(np.array([*grasp[:2], grasp[2] + above]), hand.speed, gripper, lean)


def _closed_over(hand: Hand, start: np.ndarray, near: float = 0.02) -> Motion:
    """Bring the closed fingers down to `start` [3] from above; unless `near` aside of it, rise first."""
    aside = np.linalg.norm(hand.tool[:2] - start[:2])
    free = hand.tool[2] > TRAVEL_HEIGHT - 0.02
    # Down there the fingers may still be around something that was just let go.
    gripper = max(hand.gripper - GRIP_RATE, PRESS) if free or aside < 0.012 else hand.gripper
    if aside > near and not free:
        return Motion(np.array([*hand.tool[:2], TRAVEL_HEIGHT]), hand.speed, gripper, calm=0.5)
    start = _around(hand.tool, start)
    ready = hand.gripper < MISSED
    above = np.clip((aside - 0.003) * 6.0, 0.0 if ready else 0.03, max(TRAVEL_HEIGHT - start[2], 0.0))
    return Motion(np.array([*start[:2], start[2] + above]), hand.speed, gripper, calm=0.5)


def _around(tool: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Return where to go first [3], so that the way to a place leads around the arm's base and not over it."""
    (here, radius), (there, far) = (_polar(place) for place in (tool, to))
    turn = there - here  # never through the back, where the first joint does not reach
    if abs(turn) < AROUND:
        return to
    angle, radius = here + np.sign(turn) * AROUND, max(0.5 * (radius + far), 0.16)
    return np.array([*(PAN + radius * np.array([np.cos(angle), np.sin(angle)])), TRAVEL_HEIGHT])


def _polar(place: np.ndarray) -> tuple[float, float]:
    x, y = place[:2] - PAN
    return float(np.arctan2(y, x)), float(np.hypot(x, y))


def push(hand: Hand, contact: np.ndarray, direction: np.ndarray, behind: float, speed: float = 0.10) -> Motion:
    """Push with closed fingers at `contact` [3] in a horizontal direction [2], coming down `behind` it."""
    relative = hand.tool[:2] - contact[:2]
    along = relative @ direction
    aside = np.linalg.norm(relative - along * direction)
    low = hand.tool[2] < contact[2] + 0.010
    if low and aside < 0.012 and -behind - 0.012 < along < 0.0:
        return Motion(np.array([*(contact[:2] + 0.012 * direction), contact[2]]), speed, PRESS)
    return _closed_over(hand, np.array([*(contact[:2] - behind * direction), contact[2]]))


def push_onto(desk: Desk, hand: Hand, thing: DeskObject, mat: Mat) -> Motion:
    """Push a thing onto the mat; step back before rising, so that the fingers do not lift its rim."""
    at = desk.position(thing.body)
    if mat.holds(desk, thing.body):
        away = (hand.tool - at)[:2]
        back = hand.tool[:2] + 0.02 * away / max(np.linalg.norm(away), 1e-6)
        return Motion(np.array([*back, hand.tool[2]]), 0.10, PRESS)
    way = (mat.middle(desk) - at)[:2]
    return push(hand, at, way / max(np.linalg.norm(way), 1e-6), behind=0.044)


def pull_open(desk: Desk, hand: Hand, drawer: Drawer) -> Motion:
    """Hook the handle of a drawer from behind and push it outward."""
    return push(hand, drawer.handle_at(desk), drawer.outward(desk), behind=0.019)


def push_shut(desk: Desk, hand: Hand, drawer: Drawer) -> Motion:
    """Push the handle of a drawer inward."""
    return push(hand, drawer.handle_at(desk), -drawer.outward(desk), behind=0.026)


def is_hooked(desk: Desk, hand: Hand, drawer: Drawer) -> bool:
    """Tell whether the closed fingers are down at the handle of a drawer."""
    aside = np.linalg.norm((hand.tool - drawer.handle_at(desk))[:2])
    return bool(hand.gripper < MISSED and aside < 0.035 and hand.tool[2] < 0.05)


def unhook(hand: Hand) -> Motion:
    """Leave a handle straight up."""
    return Motion(np.array([*hand.tool[:2], TRAVEL_HEIGHT]), hand.speed, PRESS)


def has_room(desk: Desk, hand: Hand, drawer: Drawer) -> bool:
    """Tell whether the drawer is open enough to be filled, or fully open as long as the fingers are hooked in."""
    return drawer.opening(desk) > (OPEN + 0.05 if is_hooked(desk, hand, drawer) else ROOMY)


def press(desk: Desk, hand: Hand, button: Button) -> Motion:
    """Press a button from above with closed fingers."""
    top = button.top(desk)
    if np.linalg.norm(hand.tool[:2] - top[:2]) < 0.010 and hand.gripper < MISSED:
        return Motion(top - [0.0, 0.0, 0.012], 0.10, PRESS)
    return _closed_over(hand, np.array([*top[:2], top[2] + 0.020]))


def pour(desk: Desk, hand: Hand, cup: DeskObject, basin: Basin) -> Motion:
    """Pick a cup upright and lean the hand outward behind the bowl, so that the cup tips towards the arm."""
    at, middle = desk.position(cup.body), basin.middle(desk)
    if desk.finger_contacts(cup.body) < 2:
        return _reach(desk, hand, cup, lean=0.0)
    outward = (middle[:2] - PAN) / np.linalg.norm(middle[:2] - PAN)
    above = np.array([*(middle[:2] + POUR_AHEAD * outward), POUR_HEIGHT])
    gripper = max(hand.gripper - GRIP_RATE, PRESS)
    if np.linalg.norm(above[:2] - at[:2]) > (0.012 if hand.lean < 0.5 else 0.03):
        return Motion(_carry(hand, at, above), 0.8 * hand.speed, gripper, lean=min(max(hand.lean, 0.0), 0.4))
    return Motion(hand.tool + above - at, 0.12, gripper, lean=min(hand.lean + TILT_RATE, TILTED))
