"""What the desk lets a perturbation change between a reset and the first step (see `sim/perturbation/world.py`)."""

from __future__ import annotations

import mujoco
import numpy as np

from . import arm
from .simulation import DeskSimulation
from .tasks.arrangement import free_position, is_pickable, standing_pose
from .tasks.catalogue import INSTRUCTION_TEMPLATES, find_suite
from .tasks.goals import involved_bodies
from .tasks.kitchen import KitchenArrangement
from .tasks.receptacles import Bin
from .tasks.task import Task


class PerturbableDesk(DeskSimulation):
    """A desk whose layout and instruction can be changed; `DeskEnv` adds the members that concern an episode."""

    arm_joints = arm.JOINTS[:5]
    """Names of the arm's joints in the model, without the gripper's."""

    @property
    def background(self) -> tuple[int, ...]:
        """Ids of the geoms of the background."""
        return (self.model.geom("desk").id,)

    def movable_objects(self) -> dict[str, str]:
        """Return the kind of each object in play by its body; objects that look alike have the same kind."""
        return {body: self._objects[body].name for body in self.present_bodies}

    def add_object(self, generator: np.random.Generator) -> str | None:
        """Place one more object among those in play.

        Args:
            generator: Decides which object and where.

        Returns:
            The object's body; None if all objects are in play or there is no room.
        """
        absent_bodies = [body for body in self._objects if body not in self.present_bodies]
        object_positions = [self.position(body)[:2] for body in self.present_bodies]
        landmarks = [self.position(fixture.body)[:2] for fixture in self.task_spec.arrangement.fixtures]
        free = free_position(object_positions, landmarks, generator)
        if not absent_bodies or free is None:
            return None
        body = absent_bodies[int(generator.integers(len(absent_bodies)))]
        self.present_bodies = (*self.present_bodies, body)
        self.place_object(body, standing_pose(self._objects[body], free, generator))
        mujoco.mj_forward(self.model, self.data)
        return body

    def is_layout_valid(self) -> bool:
        """Tell whether the instruction is true of the present scene and all objects are within the arm's reach."""
        positions = {body: self.position(body)[:2] for body in self.present_bodies}
        landmarks = {each.body: self.position(each.body)[:2] for each in self.task_spec.arrangement.fixtures}
        return all(map(is_pickable, positions.values())) and self.task_spec.arrangement.is_valid(positions | landmarks)

    def other_instructions(self) -> dict[str, str]:
        """Return instructions for something else in this scene, each with the body that it is about."""
        nouns, target = self.task_spec.other_nouns, self.task_spec.target
        if isinstance(self.task_spec.arrangement, KitchenArrangement):
            tasks = (task for task in find_suite(self.task_spec.suite) if task.target != target)
            return {task.instruction: task.target for task in tasks if self._is_feasible(task)}
        others = [body for body in self.present_bodies if body != target]
        if nouns is None:
            nouns = tuple(self._objects[body].name for body in others)
        return {INSTRUCTION_TEMPLATES[0].format(noun): body for noun, body in zip(nouns, others, strict=False)}

    def _is_feasible(self, task: Task) -> bool:
        """Tell whether this scene has everything that another task needs, and none of the task's goals is achieved."""
        arrangement = self.task_spec.arrangement
        available_bodies = {each.body for each in (*arrangement.objects, *arrangement.fixtures)}
        if arrangement.has_bin:
            available_bodies.add(Bin.body)
        return involved_bodies(task.goals) <= available_bodies and not any(
            goal.is_achieved(self) for goal in task.goals
        )
