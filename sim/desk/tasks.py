"""The desk's tasks, declared: what to say, what to move, how things may stand at the start."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ...errors import unknown_name
from .arrangement import Related, Scattered
from .objects import DeskObject

EVALUATION_STATES = 50
"""Initial states 0 to 49 of every task are for evaluation alone."""

FIRST_DEMONSTRATION_STATE = 1000
"""Demonstrations start from initial states of this number on, so that no evaluated start was ever seen."""

MAX_STEPS = 240

FRAMES = (
    "put the {} in the bin",
    "move the {} into the bin",
    "drop the {} in the bin",
    "pick up the {} and bin it",
)
"""The instruction first, then its paraphrases."""


@dataclass(frozen=True)
class Task:
    """One task: `noun` fills the sentences, `arrangement` holds the target and where things may stand."""

    suite: str
    name: str
    noun: str
    arrangement: Scattered | Related
    left_out: bool = False
    """Whether the starter checkpoint never saw it."""

    @property
    def instruction(self) -> str:
        return FRAMES[0].format(self.noun)

    @property
    def paraphrases(self) -> tuple[str, ...]:
        return tuple(frame.format(self.noun) for frame in FRAMES[1:])

    @property
    def target(self) -> DeskObject:
        return self.arrangement.target

    def generator(self, initial_state: int) -> np.random.Generator:
        """Return the random generator that alone decides this initial state, on every machine alike."""
        return np.random.default_rng([zlib.crc32(f"{self.suite}/{self.name}".encode()), initial_state])


CATALOGUE = tuple(
    DeskObject(colour, shape)
    for shape, colours in (
        ("cube", ("red", "green", "blue", "yellow")),
        ("can", ("red", "green", "blue", "yellow")),
        ("puck", ("orange", "purple")),
    )
    for colour in colours
)

LEFT_OUT = ("blue cube", "yellow can", "purple puck")
"""What the starter never learns to pick: seen colours on an unseen shape, and a colour it never hears of."""


def _object_task(target: DeskObject) -> Task:
    others = tuple(thing for thing in CATALOGUE if thing != target)
    return Task(
        suite="desk_object",
        name=target.name.replace(" ", "_"),
        noun=target.name,
        arrangement=Scattered(target, others),
        left_out=target.name in LEFT_OUT,
    )


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


def _spatial_task(relation: str, noun: str) -> Task:
    arrangement = Related(relation, DeskObject("red", "cube", 0), DeskObject("red", "cube", 1))
    return Task(suite="desk_spatial", name=relation, noun=noun, arrangement=arrangement)


SUITES: dict[str, tuple[Task, ...]] = {
    "desk_object": tuple(_object_task(target) for target in CATALOGUE),
    "desk_spatial": tuple(_spatial_task(relation, noun) for relation, noun in RELATIONS.items()),
}


def find_suite(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite; an unknown name is an InputError with the nearest one."""
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    return SUITES[suite]


def find_task(suite: str, name: str) -> Task:
    """Return one task of a suite; an unknown name is an InputError with the nearest one."""
    tasks = {task.name: task for task in find_suite(suite)}
    if name not in tasks:
        raise unknown_name(f"task of {suite}", name, tasks)
    return tasks[name]
