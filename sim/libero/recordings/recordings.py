"""LIBERO's recorded human demonstrations: HDF5 files in robomimic's layout, read and checked.

One file holds one task. `data` carries the attribute `bddl_file_name`; each of its groups `demo_0`, `demo_1` ... holds
`actions` [F, 7], robosuite's own, and `states` [F, D], MuJoCo's time, positions and velocities before each action, and
the attribute `model_file`, the scene's XML. What was seen is not read: it is drawn anew.
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
"""An action whose motion is shorter than this, with the gripper's command unchanged, does nothing."""

DOWNLOAD_AGAIN = "Give a file of LIBERO's demonstrations (*_demo.hdf5); if it is one, download it again."


@dataclass(frozen=True)
class RecordedDemonstration:
    """One demonstration: its `start` float64 [D], the `actions` float64 [F, 7] that followed, and the poses of the
    bodies in the scene that it was recorded in, by name: position [3] and quaternion [4] in their parents."""

    start: np.ndarray
    actions: np.ndarray
    bodies: dict[str, tuple[np.ndarray, np.ndarray]]


def recorded_task(path: Path) -> tuple[LiberoTask, int]:
    """Return the task that a file's demonstrations show, and how many there are.

    Raises InputError for a file that cannot be read, is laid out otherwise, or shows no task of the four suites.
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
                fix="LIBERO-90 and other problems are not among the worlds to be judged in.",
            )
        count = len(_names(data))
        if not count:
            raise InputError(f"{path}", got="no demonstrations", expected="groups data/demo_0 ...", fix=DOWNLOAD_AGAIN)
        return find_task(folder if folder in known else known[0], name), count


def read_recording(path: Path, number: int) -> RecordedDemonstration:
    """Read demonstration `number` of a file, counted in the order of their names.

    Raises InputError for one that is not there or whose columns are no demonstration.
    """
    with _open(path) as data:
        names = _names(data)
        if not 0 <= number < len(names):
            raise InputError(f"{path}: demonstration", got=number, expected=f"0 to {len(names) - 1}", fix="Choose one.")
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
    """Return the actions [n, 7] that do something, of F: the others teach a policy to stop for ever.

    An action does something when it moves the hand or changes the gripper's command; the first has none before it.
    """
    moves = np.linalg.norm(actions[:, :6], axis=1) >= NO_OP_THRESHOLD
    turns = np.append(False, actions[1:, 6] != actions[:-1, 6])
    return actions[moves | turns]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
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
    """Return the names of the demonstrations in the order of their numbers."""
    numbered = [name for name in data if name.startswith("demo_") and name[5:].isdigit()]
    return sorted(numbered, key=lambda name: int(name[5:]))


def _bodies(scene: str | bytes, where: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the poses of a scene's named bodies; none where the file keeps no scene."""
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
