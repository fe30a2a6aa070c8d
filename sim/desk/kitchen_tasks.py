"""The tasks of the goal suite, one thing to do where several could be done, and of the long suite, chains of them."""

from __future__ import annotations

from .fixtures import Basin, Button, Drawer, Knob, Mat
from .goals import Goal, Opened, Poured, Pressed, Pushed, Put, Shut, Turned
from .kitchen import Dish, Kitchen
from .objects import DeskObject, Fixture
from .places import Bin, Plate, Top
from .task import Task

RED, BLUE = DeskObject("red", "cube"), DeskObject("blue", "cube")
PUCK, DISC = DeskObject("orange", "puck"), DeskObject("orange", "disc")
CUP, BALL = DeskObject("white", "cup"), DeskObject("orange", "ball")
DRAWER, BUTTON, KNOB, BOWL, MAT, PLATE = Drawer(), Button(), Knob(), Basin(), Mat(), Fixture("plate")

FAR_ENOUGH_TO_LEAN = (0.175, 0.200)
"""How far the bowl stands from the first joint, so that the hand can lean outward behind it when it pours: metres."""


def _kitchen(dish: Dish, *, starts_open: bool | None = None, has_bin: bool = False) -> Kitchen:
    # The disc, which is to be pushed, lies where the hand gets behind it on every side.
    third, near = (DISC, (DISC,)) if dish == MAT else (PUCK, ())
    return Kitchen((RED, BLUE, third), dish, None if has_bin else DRAWER, starts_open=starts_open, near=near)


def _goal(name: str, arrangement: Kitchen, goal: Goal, *sentences: str) -> Task:
    return Task("desk_goal", name, sentences, arrangement, (goal,))


def _long(
    name: str, arrangement: Kitchen, goals: tuple[Goal, ...], max_steps: int, *sentences: str, in_order: bool = False
) -> Task:
    return Task("desk_long", name, sentences, arrangement, goals, max_steps=max_steps, in_order=in_order)


GOAL_TASKS = (
    _goal(
        "open_drawer",
        _kitchen(PLATE, starts_open=False),
        Opened(DRAWER),
        "open the drawer",
        "pull the drawer open",
        "slide the drawer out",
        "get the drawer open",
    ),
    _goal(
        "close_drawer",
        _kitchen(PLATE, starts_open=True),
        Shut(DRAWER),
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
        "shut the drawer",
    ),
    _goal(
        "press_button",
        _kitchen(PLATE),
        Pressed(BUTTON),
        "press the button",
        "push the button down",
        "hit the red button",
        "switch the button on",
    ),
    _goal(
        "turn_knob",
        _kitchen(PLATE),
        Turned(KNOB),
        "turn the knob to the green mark",
        "turn the knob",
        "push the lever of the knob round",
        "set the knob to green",
    ),
    _goal(
        "push_disc",
        _kitchen(MAT),
        Pushed(DISC, MAT),
        "push the disc onto the mat",
        "slide the disc onto the mat",
        "shove the orange disc onto the blue mat",
        "move the disc over to the mat",
    ),
    _goal(
        "stack_cubes",
        _kitchen(MAT),
        Put(RED, Top(BLUE)),
        "stack the red cube on the blue cube",
        "put the red cube on top of the blue one",
        "set the red cube on the blue cube",
        "pile red on blue",
    ),
    _goal(
        "pour_ball",
        Kitchen((CUP, RED), BOWL, DRAWER, near=(CUP,), ball=BALL, dish_radii=FAR_ENOUGH_TO_LEAN),
        Poured(CUP, BALL, BOWL),
        "pour the ball from the cup into the bowl",
        "tip the cup over the bowl",
        "tip the ball into the bowl",
        "empty the cup into the bowl",
    ),
    _goal(
        "cube_in_drawer",
        _kitchen(PLATE, starts_open=True),
        Put(RED, DRAWER),
        "put the red cube in the drawer",
        "drop the red cube into the drawer",
        "place the red cube in the drawer",
        "stow the red cube in the drawer",
    ),
    _goal(
        "cube_on_plate",
        _kitchen(PLATE),
        Put(RED, Plate()),
        "put the red cube on the plate",
        "set the red cube on the plate",
        "place the red cube on the plate",
        "lay the red cube on the plate",
    ),
    _goal(
        "puck_in_bowl",
        _kitchen(BOWL),
        Put(PUCK, BOWL),
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
        (Opened(DRAWER), Put(RED, DRAWER)),
        420,
        "open the drawer and put the red cube in it",
        "pull the drawer open and put the red cube inside",
        "open the drawer, then drop the red cube in it",
        "stow the red cube in the drawer, opening it first",
    ),
    _long(
        "fill_and_close",
        _kitchen(PLATE, starts_open=True),
        (Put(RED, DRAWER), Shut(DRAWER)),
        420,
        "put the red cube in the drawer and close it",
        "drop the red cube in the drawer and shut it",
        "stow the red cube in the drawer and push it shut",
        "put the red cube in the drawer, then close it",
    ),
    _long(
        "open_fill_close",
        _kitchen(PLATE, starts_open=False),
        (Put(RED, DRAWER), Shut(DRAWER)),
        600,
        "open the drawer, put the red cube in, close it",
        "open the drawer, stow the red cube, shut it",
        "shut the red cube away in the closed drawer",
        "open drawer, red cube in, drawer shut again",
    ),
    _long(
        "bowl_then_button",
        _kitchen(BOWL),
        (Put(RED, BOWL), Pressed(BUTTON)),
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
        (Pressed(BUTTON), Turned(KNOB)),
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
        (Put(RED, Top(BLUE)), Pressed(BUTTON)),
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
        (Shut(DRAWER), Turned(KNOB)),
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
        (Pushed(DISC, MAT), Pressed(BUTTON)),
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
        (Put(RED, Bin()), Put(PUCK, Bin())),
        420,
        "put the red cube and the puck in the bin",
        "bin the red cube and the orange puck",
        "move the red cube and the puck into the bin",
        "drop both the red cube and the puck in the bin",
    ),
    _long(
        "bin_and_plate",
        _kitchen(PLATE, has_bin=True),
        (Put(PUCK, Bin()), Put(RED, Plate())),
        420,
        "put the puck in the bin, the red cube on the plate",
        "puck to the bin and red cube to the plate",
        "bin the puck and set the red cube on the plate",
        "drop the puck in the bin, plate the red cube",
    ),
)
