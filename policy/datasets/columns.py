"""Read the numeric columns of a LeRobotDataset v3 without LeRobot and without its images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..contract import Offer

STATE_KEY, ACTION_KEY, GROUNDING_KEY = "observation.state", "action", "grounding"
COLLECT_AGAIN = "Copy or collect the dataset again."


@dataclass(frozen=True)
class DatasetColumns:
    """A dataset of F frames in E episodes, without its images.

    Attributes:
        root: The dataset's folder.
        info: The contents of `meta/info.json`.
        vectors: Every numeric feature, [F] or [F, width], in the order of the frames.
        tasks: Instructions, which `vectors["task_index"]` indexes.
        starts: int64 [E], the first frame of each episode.
        ends: int64 [E], the index after the last frame of each episode.
        episodes: The rows of `meta/episodes`, with the location of each episode's videos.
        offer: The environment of the recording, from `meta/offer.json`; None if the dataset has none.
    """

    root: Path
    info: dict[str, Any]
    vectors: dict[str, np.ndarray]
    tasks: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    episodes: tuple[dict[str, Any], ...]
    offer: Offer | None

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """The features by name: dtype, shape and names of their elements."""
        return self.info["features"]

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self.info["fps"]

    @property
    def frames(self) -> int:
        """Number of frames, F."""
        return len(self.vectors["index"])

    @cached_property
    def fingerprint(self) -> str:
        """The result of `dataset_fingerprint`, computed once."""
        return dataset_fingerprint(self.root)

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """The names of the camera features, in the dataset's order."""
        return tuple(key for key, feature in self.features.items() if feature["dtype"] in ("video", "image"))


def dataset_error(root: Path, got: object, expected: str, fix: str = COLLECT_AGAIN) -> InputError:
    """Build the error for a dataset that cannot be read."""
    return InputError(f"dataset {root}", got=got, expected=expected, fix=fix)


def read_columns(root: Path) -> DatasetColumns:
    """Read a dataset's numeric columns.

    Args:
        root: The dataset's folder.

    Raises:
        InputError: The dataset is missing, truncated or of another format, or has no state or action.
    """
    root = Path(root)
    info = _read_info(root)
    numeric = [key for key, feature in info["features"].items() if _is_numeric(feature)]
    for key in (STATE_KEY, ACTION_KEY):
        if key not in numeric:
            raise dataset_error(
                root,
                f"features {', '.join(info['features'])}",
                f"{key} among them",
                "Choose a dataset of demonstrations.",
            )
    table = _read_parquet(root, "data", numeric)
    vectors = {key: _as_array(table[key]) for key in numeric}
    if len(vectors["index"]) != info["total_frames"] or (np.diff(vectors["index"]) != 1).any():
        raise dataset_error(
            root, f"{len(vectors['index'])} frames in data/", f"{info['total_frames']}, as meta/info.json says"
        )
    episodes = _read_parquet(root, "meta/episodes", None)
    wanted = [name for name in episodes.column_names if not name.startswith("stats/")]
    rows = tuple(sorted(episodes.select(wanted).to_pylist(), key=lambda row: row["episode_index"]))
    if len(rows) != info["total_episodes"]:
        raise dataset_error(root, f"{len(rows)} episodes", f"{info['total_episodes']}, as meta/info.json says")
    ends = np.array([row["dataset_to_index"] for row in rows], dtype=np.int64)
    starts = np.array([row["dataset_from_index"] for row in rows], dtype=np.int64)
    if len(rows) == 0:
        raise dataset_error(root, "no episodes", "at least one")
    if starts[0] != 0 or ends[-1] != info["total_frames"] or (starts[1:] != ends[:-1]).any() or (ends <= starts).any():
        raise dataset_error(root, "episodes with gaps between them", "episodes that cover all frames")
    offer = root / "meta" / "offer.json"
    return DatasetColumns(
        root=root,
        info=info,
        vectors=vectors,
        tasks=_read_tasks(root),
        starts=starts,
        ends=ends,
        episodes=rows,
        offer=Offer.from_json(offer.read_text(), source=str(offer)) if offer.is_file() else None,
    )


def dataset_fingerprint(root: Path) -> str:
    """Return a SHA-256 over the content of a dataset: data, videos and metadata, without the derived statistics."""
    root = Path(root)
    _read_info(root)
    digest = hashlib.sha256()
    files = [path for folder in ("data", "meta", "videos") for path in (root / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if path.name == "stats.json":
            continue
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        got = "no meta/info.json" if root.is_dir() else "no such folder"
        raise dataset_error(root, got, "a LeRobotDataset v3", "Check the path, or collect one with 'saccade collect'.")
    try:
        info = json.loads(path.read_text())
        version, _ = info["codebase_version"], (info["features"], info["fps"], info["total_frames"])
    except (ValueError, KeyError, TypeError) as error:
        raise dataset_error(root, f"an unreadable meta/info.json ({error})", "that of a LeRobotDataset v3") from error
    if not str(version).startswith("v3."):
        fix = "Convert it with LeRobot's dataset conversion scripts."
        raise dataset_error(root, f"format {version}", "format v3.x", fix)
    return info


def _is_numeric(feature: dict[str, Any]) -> bool:
    return feature["dtype"].startswith(("float", "int", "uint", "bool")) and len(feature["shape"]) == 1


def _read_parquet(root: Path, folder: str, columns: list[str] | None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((root / folder).glob("*/*.parquet"))
    if not paths:
        raise dataset_error(root, f"no parquet file in {folder}/", "at least one")
    tables = []
    for path in paths:
        try:
            # pyarrow documents None for no partitioning, its stubs do not.
            tables.append(pq.read_table(path, columns=columns, partitioning=None))  # pyright: ignore[reportArgumentType]
        except (pa.ArrowException, OSError, KeyError) as error:
            got = f"a damaged {path.relative_to(root)} ({str(error).splitlines()[0]})"
            raise dataset_error(root, got, "whole parquet files") from error
        if missing := set(columns or ()) - set(tables[-1].column_names):
            raise dataset_error(root, f"{path.relative_to(root)} without {', '.join(sorted(missing))}", "all features")
    return pa.concat_tables(tables, promote_options="default")


def _as_array(column: Any) -> np.ndarray:
    column = column.combine_chunks()
    if not hasattr(column, "flatten") or column.type.num_fields == 0:
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _read_tasks(root: Path) -> tuple[str, ...]:
    import pandas as pd

    path = root / "meta" / "tasks.parquet"
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise dataset_error(root, f"no readable meta/tasks.parquet ({error})", "the instructions in it") from error
    return tuple(str(task) for task in table.sort_values("task_index").index)
