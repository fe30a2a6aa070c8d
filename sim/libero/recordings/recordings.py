"""LIBERO's recorded human demonstrations: HDF5 files in robomimic's layout, read and checked.

One file has the demonstrations of one task. Its group `data` has the attribute `bddl_file_name` and the groups
`demo_0`, `demo_1` ..., each with `actions` [F, 7] (robosuite's), `states` [F, D] (MuJoCo's time, qpos and qvel before
each action) and the attribute `model_file`, the scene's XML. Images are not read: a replay renders them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ....errors import InputError
from ..tasks import LiberoTask, find_task, suites

NO_OP_THRESHOLD = 1e-4
"""An action is a no-op if the norm of its motion [6] is below this and the gripper's command does not change."""

DOWNLOAD_AGAIN = "Pass a file of LIBERO's demonstrations (*_demo.hdf5); if it is one, download it again."


@dataclass(frozen=True)
class RecordedDemonstration:
    """One demonstration.

    Attributes:
        start: State float64 [D] at the start: time, then MuJoCo's qpos and qvel.
        actions: robosuite's actions float64 [F, 7].
        bodies: Poses of the recorded scene's bodies by name, each in its parent's frame: position [3] in metres and
            quaternion [4] in the order wxyz.
    """

    start: np.ndarray
    actions: np.ndarray
    bodies: dict[str, tuple[np.ndarray, np.ndarray]]


def recorded_task(path: Path) -> tuple[LiberoTask, int]:
    """Return the task of a file and its number of demonstrations.

    Args:
        path: An HDF5 file of LIBERO's demonstrations.

    Raises:
        InputError: The file cannot be read, has another layout, or is of no task of the four suites.
    """
    with _open(path) as data:
        problem = data.attrs.get("bddl_file_name", "")
        problem = problem.decode() if isinstance(problem, bytes) else str(problem)
        name, folder = Path(problem).stem, Path(problem).parent.name
        known = [suite for suite, tasks in suites().items() if name in {task.name for task in tasks}]
        if not known:
            raise InputError(
                f"{path}: data.bddl_file_name",
                got=repr(problem),
                expected="a task of libero_spatial, libero_object, libero_goal or libero_10",
                fix="Use recordings of these suites; LIBERO-90 and other problems are not supported.",
            )
        count = len(_names(data))
        if not count:
            raise InputError(f"{path}", got="no demonstrations", expected="groups data/demo_0 ...", fix=DOWNLOAD_AGAIN)
        return find_task(folder if folder in known else known[0], name), count


def read_recording(path: Path, number: int) -> RecordedDemonstration:
    """Read one demonstration.

    Args:
        path: An HDF5 file of LIBERO's demonstrations.
        number: Index of the demonstration, in the order of the numbers in their names.

    Raises:
        InputError: There is no such demonstration, or its columns have a wrong shape or values that are not finite.
    """
    with _open(path) as data:
        names = _names(data)
        if not 0 <= number < len(names):
            last = len(names) - 1
            fix = f"Choose a demonstration from 0 to {last}."
            raise InputError(f"{path}: demonstration", got=number, expected=f"0 to {last}", fix=fix)
        group, where = data[names[number]], f"{path}: data/{names[number]}"
        columns = {}
        for column in ("actions", "states"):
            if column not in group:
                raise InputError(where, got=f"no {column}", expected="actions and states", fix=DOWNLOAD_AGAIN)
            columns[column] = np.asarray(group[column], dtype=np.float64)
        actions, states = columns["actions"], columns["states"]
        fits = actions.ndim == states.ndim == 2 and actions.shape[1] == 7 and len(actions) == len(states) > 0
        if not fits or not (np.isfinite(actions).all() and np.isfinite(states).all()):
            raise InputError(
                where,
                got=f"actions {list(actions.shape)}, states {list(states.shape)}",
                expected="finite actions [F, 7] and states [F, D]",
                fix=DOWNLOAD_AGAIN,
            )
        return RecordedDemonstration(states[0], actions, _bodies(group.attrs.get("model_file", ""), where))


def drop_no_ops(actions: np.ndarray) -> np.ndarray:
    """Drop the actions that do nothing: they teach a policy to stop forever.

    An action is kept if it moves the hand or changes the gripper's command of the action before.

    Args:
        actions: robosuite's actions [F, 7].

    Returns:
        The kept actions [n, 7].
    """
    moves_hand = np.linalg.norm(actions[:, :6], axis=1) >= NO_OP_THRESHOLD  # [F]
    changes_gripper = np.append(False, actions[1:, 6] != actions[:-1, 6])  # [F]
    return actions[moves_hand | changes_gripper]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file and yield its group `data`."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "LIBERO's demonstrations",
            got="no h5py",
            expected="the extra libero",
            fix='Install it: uv sync --extra libero, or pip install "lerobot_policy_saccade[libero]".',
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        got = "a file that is no HDF5 file" if path.is_file() else "no such file"
        raise InputError(str(path), got=got, expected="an HDF5 file", fix=DOWNLOAD_AGAIN) from error
    with file:
        if "data" not in file:
            got = f"groups {', '.join(sorted(file)) or 'none'}"
            raise InputError(str(path), got=got, expected="a group data", fix=DOWNLOAD_AGAIN)
        yield file["data"]


def _names(data: Any) -> list[str]:
    """Return the names of the demonstrations, sorted by their numbers."""
    numbered = [name for name in data if name.startswith("demo_") and name[5:].isdigit()]
    return sorted(numbered, key=lambda name: int(name[5:]))


def _bodies(scene: str | bytes, where: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the poses of the named bodies of a scene's XML; none if the file has no scene."""
    if not scene:
        return {}
    try:
        root = ElementTree.fromstring(scene)
        return {
            body.get("name", ""): (
                np.array(body.get("pos", "0 0 0").split(), dtype=np.float64),
                np.array(body.get("quat", "1 0 0 0").split(), dtype=np.float64),
            )
            for body in root.iter("body")
        }
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"{where}: model_file", got=f"no scene ({error})", expected="a scene as XML", fix=DOWNLOAD_AGAIN
        ) from error
