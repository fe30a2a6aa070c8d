"""A suite family: the suites of one world, and what planning and building need to know of that world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ..policy.contract import Contract, Offer
    from .demonstrations.attempt import DemonstrationWorld
    from .perturbation.swap import Swap


class SuiteTask(Protocol):
    """One task of a suite as data: planning needs no simulator."""

    @property
    def suite(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def instruction(self) -> str: ...

    @property
    def paraphrases(self) -> tuple[str, ...]: ...

    @property
    def held_out(self) -> bool:
        """Whether the task is missing from the starter checkpoint's training data."""
        ...

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that make sense in this task."""
        ...


class EvaluationWorld(Protocol):
    """A world to evaluate policies in; it is pickled and sent to the worker processes."""

    def offer(self) -> Offer:
        """Return the observations and actions that the world offers to a policy."""
        ...

    def environment(self, suite: str, task: str) -> Any:
        """Build the gymnasium environment of a task."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the world's part of the evaluation protocol, as plain JSON values."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the environment's fingerprint; raises WorldError when no renderer works."""
        ...


def _name_only(task: SuiteTask) -> tuple[str, ...]:
    return (task.name,)


@dataclass(frozen=True)
class SuiteFamily:
    """The suites of one world. Its functions import the world's packages when they are called, not before.

    Attributes:
        name: Short name, as in `desk`.
        title: Name in error messages, as in `the desk`.
        suites: Names of the suites.
        evaluation_states: Initial states below this number are for evaluation.
        first_demonstration_state: Demonstrations start from this initial state on.
        has_sampled_states: Whether the initial states between the two can be evaluated, too.
        episodes: Default number of evaluation episodes of each task.
        find_suite: Returns the tasks of a suite; raises InputError for an unknown name.
        build_evaluation_world: Builds the world for a policy's contract, with the world's options.
        build_demonstration_world: Builds the world with its scripted demonstrator, for an image size in pixels.
        image_sizes: Smallest and largest height and width of an image, in pixels.
        aliases: Other names of suites, with the name that each stands for.
        options_type: Class of the world's options; None if it has none.
        task_names: Returns the names by which a task can be chosen.
    """

    name: str
    title: str
    suites: tuple[str, ...]
    evaluation_states: int
    first_demonstration_state: int
    has_sampled_states: bool
    episodes: int
    find_suite: Callable[[str], tuple[SuiteTask, ...]]
    build_evaluation_world: Callable[[Contract, Any], EvaluationWorld]
    build_demonstration_world: Callable[[int, Any], DemonstrationWorld]
    image_sizes: tuple[int, int] = (16, 1024)
    aliases: Mapping[str, str] = field(default_factory=dict)
    options_type: type | None = None
    task_names: Callable[[SuiteTask], tuple[str, ...]] = _name_only

    def tasks(self, suite: str) -> tuple[SuiteTask, ...]:
        """Return a suite's tasks; raises InputError, with the nearest name, for an unknown suite."""
        return self.find_suite(suite)

    def check_evaluation_states(self, first: int, count: int) -> None:
        """Check that an evaluation may start from these initial states.

        Args:
            first: The first initial state.
            count: How many initial states, counted from `first`.

        Raises:
            InputError: Some of them are reserved for demonstrations, or do not exist.
        """
        end = self.first_demonstration_state if self.has_sampled_states else self.evaluation_states
        if first + count > end:
            raise InputError(
                "episodes",
                got=f"initial states {first} to {first + count - 1}",
                expected=f"states below {end}",
                fix=f"Use states from 0 to {self.evaluation_states - 1}: demonstrations use the others.",
            )

    def check_image_size(self, size: int) -> None:
        """Check that the world can render images of this size.

        Args:
            size: Height and width, in pixels.

        Raises:
            InputError: The size is out of range.
        """
        least, most = self.image_sizes
        if not least <= size <= most:
            fix = "Use 128, the default."
            raise InputError("--image-size", got=size, expected=f"{least} to {most} pixels", fix=fix)

    def check_first_demonstration_state(self, first: int) -> None:
        """Check that demonstrations may start from this initial state on.

        Raises:
            InputError: The state is reserved for evaluation.
        """
        least = self.evaluation_states if self.has_sampled_states else self.first_demonstration_state
        if first < least:
            raise InputError(
                "first_initial_state",
                got=first,
                expected=f"{least} or more",
                fix=f"Choose {least} or more: the lower states are reserved for evaluation.",
            )
