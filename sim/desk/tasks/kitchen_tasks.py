"""The tasks of desk_goal, one goal in a scene that allows several, and of desk_long, chains of goals."""

from __future__ import annotations

from ..fixtures import Basin, Button, Drawer, Knob, Mat
from ..objects import DeskObject, LandmarkObject
from .goals import CloseDrawerGoal, Goal, OpenDrawerGoal, PlaceGoal, PourGoal, PressButtonGoal, PushGoal, TurnKnobGoal
from .kitchen import CentralFixture, KitchenArrangement
from .receptacles import Bin, Plate, Top
from .task import Task

RED, BLUE = DeskObject("red", "cube"), DeskObject("blue", "cube")
PUCK, DISC = DeskObject("orange", "puck"), DeskObject("orange", "disc")
CUP, BALL = DeskObject("white", "cup"), DeskObject("orange", "ball")
DRAWER, BUTTON, KNOB, BOWL, MAT, PLATE = Drawer(), Button(), Knob(), Basin(), Mat(), LandmarkObject("plate")

POURING_BOWL_RADII = (0.175, 0.200)
"""Range of the basin's distance from the pan axis, in metres: the hand has to tilt outward behind it to pour."""


def _kitchen(
    central_fixture: CentralFixture, *, starts_open: bool | None = None, has_bin: bool = False
) -> KitchenArrangement:
    # The disc is pushed: place it where the hand can get behind it on every side.
    third, near_objects = (DISC, (DISC,)) if central_fixture == MAT else (PUCK, ())
    return KitchenArrangement(
        (RED, BLUE, third),
        central_fixture,
        None if has_bin else DRAWER,
        starts_open=starts_open,
        near_objects=near_objects,
    )


def _goal(name: str, arrangement: KitchenArrangement, goal: Goal, *instructions: str) -> Task:
    return Task("desk_goal", name, instructions, arrangement, (goal,))


def _long(
    name: str,
    arrangement: KitchenArrangement,
    goals: tuple[Goal, ...],
    max_steps: int,
    *instructions: str,
    in_order: bool = False,
) -> Task:
    return Task("desk_long", name, instructions, arrangement, goals, max_steps=max_steps, in_order=in_order)


GOAL_TASKS = (
    _goal(
        "open_drawer",
        _kitchen(PLATE, starts_open=False),
        OpenDrawerGoal(DRAWER),
        "open the drawer",
        "pull the drawer open",
        "slide the drawer out",
        "get the drawer open",
    ),
    _goal(
        "close_drawer",
        _kitchen(PLATE, starts_open=True),
        CloseDrawerGoal(DRAWER),
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
        "shut the drawer",
    ),
    _goal(
        "press_button",
        _kitchen(PLATE),
        PressButtonGoal(BUTTON),
        "press the button",
        "push the button down",
        "hit the red button",
        "switch the button on",
    ),
    _goal(
        "turn_knob",
        _kitchen(PLATE),
        TurnKnobGoal(KNOB),
        "turn the knob to the green mark",
        "turn the knob",
        "push the lever of the knob round",
        "set the knob to green",
    ),
    _goal(
        "push_disc",
        _kitchen(MAT),
        PushGoal(DISC, MAT),
        "push the disc onto the mat",
        "slide the disc onto the mat",
        "shove the orange disc onto the blue mat",
        "move the disc over to the mat",
    ),
    _goal(
        "stack_cubes",
        _kitchen(MAT),
        PlaceGoal(RED, Top(BLUE)),
        "stack the red cube on the blue cube",
        "put the red cube on top of the blue one",
        "set the red cube on the blue cube",
        "pile red on blue",
    ),
    _goal(
        "pour_ball",
        KitchenArrangement(
            (CUP, RED), BOWL, DRAWER, near_objects=(CUP,), ball=BALL, central_fixture_radii=POURING_BOWL_RADII
        ),
        PourGoal(CUP, BALL, BOWL),
        "pour the ball from the cup into the bowl",
        "tip the cup over the bowl",
        "tip the ball into the bowl",
        "empty the cup into the bowl",
    ),
    _goal(
        "cube_in_drawer",
        _kitchen(PLATE, starts_open=True),
        PlaceGoal(RED, DRAWER),
        "put the red cube in the drawer",
        "drop the red cube into the drawer",
        "place the red cube in the drawer",
        "stow the red cube in the drawer",
    ),
    _goal(
        "cube_on_plate",
        _kitchen(PLATE),
        PlaceGoal(RED, Plate()),
        "put the red cube on the plate",
        "set the red cube on the plate",
        "place the red cube on the plate",
        "lay the red cube on the plate",
    ),
    _goal(
        "puck_in_bowl",
        _kitchen(BOWL),
        PlaceGoal(PUCK, BOWL),
        "put the orange puck in the bowl",
        "drop the puck into the bowl",
        "place the orange puck in the bowl",
        "move the puck into the bowl",
    ),
)

LONG_TASKS = (
    _long(
        "open_and_fill",
        _kitchen(PLATE, starts_open=False),
        (OpenDrawerGoal(DRAWER), PlaceGoal(RED, DRAWER)),
        420,
        "open the drawer and put the red cube in it",
        "pull the drawer open and put the red cube inside",
        "open the drawer, then drop the red cube in it",
        "stow the red cube in the drawer, opening it first",
    ),
    _long(
        "fill_and_close",
        _kitchen(PLATE, starts_open=True),
        (PlaceGoal(RED, DRAWER), CloseDrawerGoal(DRAWER)),
        420,
        "put the red cube in the drawer and close it",
        "drop the red cube in the drawer and shut it",
        "stow the red cube in the drawer and push it shut",
        "put the red cube in the drawer, then close it",
    ),
    _long(
        "open_fill_close",
        _kitchen(PLATE, starts_open=False),
        (PlaceGoal(RED, DRAWER), CloseDrawerGoal(DRAWER)),
        600,
        "open the drawer, put the red cube in, close it",
        "open the drawer, stow the red cube, shut it",
        "shut the red cube away in the closed drawer",
        "open drawer, red cube in, drawer shut again",
    ),
    _long(
        "bowl_then_button",
        _kitchen(BOWL),
        (PlaceGoal(RED, BOWL), PressButtonGoal(BUTTON)),
        420,
        "put the red cube in the bowl, then press the button",
        "red cube into the bowl, then press the button",
        "drop the red cube in the bowl, then hit the button",
        "press the button once the red cube is in the bowl",
        in_order=True,
    ),
    _long(
        "button_then_knob",
        _kitchen(PLATE),
        (PressButtonGoal(BUTTON), TurnKnobGoal(KNOB)),
        420,
        "press the button, then turn the knob",
        "hit the button, then turn the knob to green",
        "first the button, then the knob",
        "turn the knob after pressing the button",
        in_order=True,
    ),
    _long(
        "stack_then_button",
        _kitchen(MAT),
        (PlaceGoal(RED, Top(BLUE)), PressButtonGoal(BUTTON)),
        420,
        "stack red on blue, then press the button",
        "put the red cube on the blue, then hit the button",
        "pile red on blue, then press the button",
        "press the button once red is stacked on blue",
        in_order=True,
    ),
    _long(
        "close_then_knob",
        _kitchen(PLATE, starts_open=True),
        (CloseDrawerGoal(DRAWER), TurnKnobGoal(KNOB)),
        420,
        "close the drawer, then turn the knob",
        "shut the drawer, then turn the knob to green",
        "first the drawer shut, then the knob turned",
        "turn the knob after closing the drawer",
        in_order=True,
    ),
    _long(
        "push_then_button",
        _kitchen(MAT),
        (PushGoal(DISC, MAT), PressButtonGoal(BUTTON)),
        420,
        "push the disc onto the mat, then press the button",
        "slide the disc onto the mat, then hit the button",
        "disc onto the mat, then the button",
        "press the button once the disc is on the mat",
        in_order=True,
    ),
    _long(
        "two_in_bin",
        _kitchen(PLATE, has_bin=True),
        (PlaceGoal(RED, Bin()), PlaceGoal(PUCK, Bin())),
        420,
        "put the red cube and the puck in the bin",
        "bin the red cube and the orange puck",
        "move the red cube and the puck into the bin",
        "drop both the red cube and the puck in the bin",
    ),
    _long(
        "bin_and_plate",
        _kitchen(PLATE, has_bin=True),
        (PlaceGoal(PUCK, Bin()), PlaceGoal(RED, Plate())),
        420,
        "put the puck in the bin, the red cube on the plate",
        "puck to the bin and red cube to the plate",
        "bin the puck and set the red cube on the plate",
        "drop the puck in the bin, plate the red cube",
    ),
)
