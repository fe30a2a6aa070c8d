"""A cache of decoded camera frames: one memory-mapped array for each dataset.

Decoding frames from video is too slow for a training step; reading one from the cache is a copy. The cache is made once
and checked when it is opened.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from ..machine import usable_cores
from ..policy.datasets.columns import DatasetColumns, dataset_error

EPISODES_PER_TASK = 32


@dataclass(frozen=True)
class DecodeTask:
    """Neighbouring episodes of one camera in one file, which one thread decodes.

    Attributes:
        camera: Index of the camera.
        key: Name of the camera's feature.
        path: The video or data file.
        episodes: Indices of the episodes.
    """

    camera: int
    key: str
    path: Path
    episodes: tuple[int, ...]


def default_cache_folder() -> Path:
    """Return the default folder of the frame cache: in $SACCADE_CACHE, or else in the user's cache folder."""
    if chosen := os.environ.get("SACCADE_CACHE"):
        return Path(chosen) / "frames"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "saccade" / "frames"


def open_frames(
    columns: DatasetColumns,
    *,
    cache_folder: Path | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Open the decoded frames of a dataset; decode them first if they are not in the cache.

    The name of the cache file is the fingerprint of the dataset. A truncated file is decoded again. While one process
    decodes, the others wait.

    Args:
        columns: The dataset.
        cache_folder: Folder of the cache, `default_cache_folder()` when left out.
        image_size: Height and width of the frames in pixels; those of the dataset when left out.
        threads: Threads that decode, one for each usable core when left out.
        progress: Show a progress bar.

    Returns:
        Read-only memory map uint8 [F, V, H, W, 3], with the cameras in the dataset's order.

    Raises:
        InputError: A video is damaged or missing, the cameras have different sizes, or the disk is too small.
    """
    if not columns.camera_keys:
        raise dataset_error(columns.root, "no camera", "one or more", "Choose a dataset with images.")
    folder = Path(cache_folder or default_cache_folder())
    folder.mkdir(parents=True, exist_ok=True)
    shape = (columns.frames, len(columns.camera_keys), *_frame_size(columns, image_size), 3)
    name = f"{columns.fingerprint[:32]}-{shape[2]}x{shape[3]}"
    path = folder / f"{name}.npy"
    with _exclusive_lock(folder / f"{name}.lock"):
        if not _is_complete(path, shape):
            _decode(columns, path, shape, threads or usable_cores(), progress=progress)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _frame_size(columns: DatasetColumns, image_size: int | None) -> tuple[int, ...]:
    if image_size is not None:
        return image_size, image_size
    sizes = {tuple(columns.features[key]["shape"][:2]) for key in columns.camera_keys}
    if len(sizes) > 1:
        raise dataset_error(
            columns.root, f"cameras of sizes {sorted(sizes)}", "one size", "Set image_size for all cameras."
        )
    return sizes.pop()


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system releases even if the process is killed."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_complete(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _decode(columns: DatasetColumns, path: Path, shape: tuple[int, ...], threads: int, *, progress: bool) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"frame cache in {path.parent}",
            got=f"{free / 2**30:.1f} GiB free",
            expected=f"{needed / 2**30:.1f} GiB",
            fix="Free some space, set SACCADE_CACHE to a larger disk, or choose a smaller image size.",
        )
    frames = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    bar = tqdm(total=shape[0] * shape[1], desc="decoding frames", unit="frame", disable=not progress)
    try:
        # Decoding releases the GIL, so threads are enough.
        with ThreadPoolExecutor(threads) as pool:
            for count in pool.map(lambda task: _decode_task(columns, task, frames), list(_decode_tasks(columns))):
                bar.update(count)
        frames.flush()
        os.replace(temporary, path)
    finally:
        bar.close()
        temporary.unlink(missing_ok=True)


def _decode_tasks(columns: DatasetColumns) -> Iterator[DecodeTask]:
    template = {"video": str(columns.info.get("video_path")), "image": str(columns.info.get("data_path"))}
    for camera, key in enumerate(columns.camera_keys):
        kind = columns.features[key]["dtype"]
        prefix = f"videos/{key}" if kind == "video" else "data"

        def file_of(episode: int, key: str = key, kind: str = kind, prefix: str = prefix) -> Path:
            row = columns.episodes[episode]
            return columns.root / template[kind].format(
                video_key=key, chunk_index=row[f"{prefix}/chunk_index"], file_index=row[f"{prefix}/file_index"]
            )

        for path, group in groupby(range(len(columns.episodes)), key=file_of):
            episodes = tuple(group)
            for first in range(0, len(episodes), EPISODES_PER_TASK):
                yield DecodeTask(camera, key, path, episodes[first : first + EPISODES_PER_TASK])


def _decode_task(columns: DatasetColumns, task: DecodeTask, frames: np.ndarray) -> int:
    if not task.path.is_file():
        raise dataset_error(
            columns.root, f"no {task.path.relative_to(columns.root)}", "every file that its metadata names"
        )
    read = _read_video if columns.features[task.key]["dtype"] == "video" else _read_images
    expected = sum(int(columns.ends[episode] - columns.starts[episode]) for episode in task.episodes)
    found = 0
    try:
        for index, image in read(columns, task):
            frames[index, task.camera] = _resize(image, frames.shape[2:4])
            found += 1
    except (OSError, ValueError) as error:
        got = f"a damaged {task.path.relative_to(columns.root)} ({error})"
        raise dataset_error(columns.root, got, "videos that decode") from error
    if found != expected:
        got = f"{found} of {expected} frames of episodes {task.episodes[0]} to {task.episodes[-1]} in {task.path.name}"
        raise dataset_error(columns.root, got, "all of them")
    return found


def _read_video(columns: DatasetColumns, task: DecodeTask) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame index, uint8 [H, W, 3]) of the task's frames; the file is read once, from the first episode on."""
    import av

    # Video frames are counted from the start of the file: timestamps in the metadata are multiples of the frame time.
    frame_indices: dict[int, int] = {}
    for episode in task.episodes:
        first = round(columns.episodes[episode][f"videos/{task.key}/from_timestamp"] * columns.fps)
        start, end = int(columns.starts[episode]), int(columns.ends[episode])
        frame_indices |= zip(range(first, first + end - start), range(start, end), strict=True)
    last = max(frame_indices)
    with av.open(str(task.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if stream.time_base is None:
            raise ValueError("a video without timestamps")
        container.seek(max(round(min(frame_indices) / columns.fps / stream.time_base) - 1, 0), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError("a video without timestamps")
            number = round(frame.pts * stream.time_base * columns.fps)
            if number in frame_indices:
                yield frame_indices[number], frame.to_ndarray(format="rgb24")
            if number >= last:
                return


def _read_images(columns: DatasetColumns, task: DecodeTask) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame index, uint8 [H, W, 3]) of images that are stored one by one in the data file."""
    import pyarrow.parquet as pq
    from PIL import Image

    first, last = int(columns.starts[task.episodes[0]]), int(columns.ends[task.episodes[-1]])
    rows: Any = pq.read_table(
        task.path,
        columns=["index", task.key],
        filters=[("index", ">=", first), ("index", "<", last)],
        partitioning=None,  # pyright: ignore[reportArgumentType] - the stubs lack None, which turns it off
    )
    for index, image in zip(rows["index"].to_pylist(), rows[task.key], strict=True):
        yield index, np.asarray(Image.open(io.BytesIO(image["bytes"].as_py())).convert("RGB"))


def _resize(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
