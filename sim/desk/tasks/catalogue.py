"""The desk's suites and their tasks."""

from __future__ import annotations

from ....errors import unknown_name
from ..objects import DeskObject
from .arrangement import ScatteredArrangement, SpatialRelationArrangement
from .cue import Cue
from .goals import PlaceGoal
from .kitchen_tasks import GOAL_TASKS, LONG_TASKS
from .receptacles import Bin
from .task import Task

INSTRUCTION_TEMPLATES = (
    "put the {} in the bin",
    "move the {} into the bin",
    "drop the {} in the bin",
    "pick up the {} and bin it",
)
"""Instructions to put an object in the bin: the instruction, then its paraphrases."""


def bin_instructions(noun: str) -> tuple[str, ...]:
    """Return the instructions to put an object in the bin, by the noun that names it."""
    return tuple(template.format(noun) for template in INSTRUCTION_TEMPLATES)


OBJECT_CATALOGUE = tuple(
    DeskObject(colour, shape)
    for shape, colours in (
        ("cube", ("red", "green", "blue", "yellow")),
        ("can", ("red", "green", "blue", "yellow")),
        ("puck", ("orange", "purple")),
    )
    for colour in colours
)
"""The objects of the suite desk_object."""

HELD_OUT_OBJECTS = ("blue cube", "yellow can", "purple puck")
"""Objects that the starter's training data never ask for: known colours on another shape, and a colour never named."""


def _object_task(target: DeskObject) -> Task:
    others = tuple(each for each in OBJECT_CATALOGUE if each != target)
    return Task(
        suite="desk_object",
        name=target.name.replace(" ", "_"),
        instructions=bin_instructions(target.name),
        arrangement=ScatteredArrangement(target, others),
        goals=(PlaceGoal(target, Bin()),),
        held_out=target.name in HELD_OUT_OBJECTS,
    )


OPPOSITE = {
    "left": "right",
    "front": "behind",
    "next_to": "far_from",
    "on_plate": "off_plate",
    "near_bin": "far_bin",
}
"""Relations and their opposites."""

RELATIONS = {
    "left": "cube left of the bowl",
    "right": "cube right of the bowl",
    "front": "cube in front of the bowl",
    "behind": "cube behind the bowl",
    "next_to": "cube next to the bowl",
    "far_from": "cube far from the bowl",
    "on_plate": "cube on the plate",
    "off_plate": "cube off the plate",
    "near_bin": "cube nearest the bin",
    "far_bin": "cube farthest from the bin",
}
"""Relation of `SpatialRelationArrangement` to the noun that names the target."""


def _spatial_task(relation: str, noun: str) -> Task:
    arrangement = SpatialRelationArrangement(relation, DeskObject("red", "cube", 0), DeskObject("red", "cube", 1))
    opposite = {**OPPOSITE, **{second: first for first, second in OPPOSITE.items()}}[relation]
    other_nouns = (RELATIONS[opposite],)
    return Task(
        suite="desk_spatial",
        name=relation,
        instructions=bin_instructions(noun),
        arrangement=arrangement,
        goals=(PlaceGoal(arrangement.target, Bin()),),
        other_nouns=other_nouns,
    )


def _memory_task(name: str, noun: str, colour: str, shape: str, count: int) -> Task:
    """Return a task with equal objects, of which the first is the target; all positions have the same distribution."""
    target, *others = (DeskObject(colour, shape, instance) for instance in range(count))
    unlit = "not lit" in noun
    words, opposite = ("was not lit", "was lit") if unlit else ("was lit", "was not lit")
    return Task(
        suite="desk_memory",
        name=name,
        instructions=bin_instructions(noun),
        arrangement=ScatteredArrangement(target, tuple(others), count=count - 1),
        goals=(PlaceGoal(target, Bin()),),
        max_steps=280,
        cue=Cue(others[0] if unlit else target),
        other_nouns=(noun.replace(words, opposite),) if count == 2 else (),
    )


SUITES: dict[str, tuple[Task, ...]] = {
    "desk_object": tuple(_object_task(target) for target in OBJECT_CATALOGUE),
    "desk_spatial": tuple(_spatial_task(relation, noun) for relation, noun in RELATIONS.items()),
    "desk_memory": (
        _memory_task("lit_cube", "cube that was lit", "red", "cube", 2),
        _memory_task("lit_can", "can that was lit", "green", "can", 2),
        _memory_task("lit_puck", "puck that was lit", "purple", "puck", 2),
        _memory_task("unlit_cube", "cube that was not lit", "blue", "cube", 2),
        _memory_task("lit_cube_of_three", "cube of three that was lit", "yellow", "cube", 3),
        _memory_task("lit_can_of_three", "can of three that was lit", "red", "can", 3),
    ),
    "desk_goal": GOAL_TASKS,
    "desk_long": LONG_TASKS,
}
"""Tasks of each suite."""


def find_suite(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite; raises InputError, with the nearest name, for an unknown one."""
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    return SUITES[suite]


def find_task(suite: str, name: str) -> Task:
    """Return one task of a suite; raises InputError, with the nearest name, for an unknown one."""
    tasks = {task.name: task for task in find_suite(suite)}
    if name not in tasks:
        raise unknown_name(f"task of {suite}", name, tasks)
    return tasks[name]
