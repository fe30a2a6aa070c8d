"""Write a LeRobotDataset v3 from staged episodes, without encoding the videos again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...disk import write_atomically
from ...errors import WorldError
from .staging import (
    CODEC,
    CRF,
    GOP_SIZE,
    PIXEL_FORMAT,
    PRESET,
    camera_key,
    dataset_features,
    frame_rate,
)

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDatasetMetadata

    from ...policy.contract import Offer

OFFER_FILE = "meta/offer.json"
"""File of a dataset with the offer of its world: units, conventions and control rate."""

DATA_FILE_BYTES, VIDEO_FILE_BYTES = 100 * 2**20, 200 * 2**20


def write_dataset(
    root: Path, offer: Offer, staged_episodes: Iterable[Path], *, robot_type: str, grounding: bool = True
) -> int:
    """Write a LeRobotDataset v3 from staged episodes.

    The files depend on the episodes only, byte for byte. The statistics of state and action are LeRobot's aggregate,
    whose quantiles are wrong: `training.statistics.write_exact_statistics` corrects them.

    Args:
        root: The new folder.
        offer: What the world offers: cameras, state, action and control rate.
        staged_episodes: Files of `stage_episode`, in the order of the dataset.
        robot_type: Name of the robot in the dataset's metadata.
        grounding: Whether the episodes have grounding labels (all or none).

    Returns:
        Number of frames.
    """
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata.create(
        repo_id=f"local/{root.name}",
        fps=frame_rate(offer),
        features=dataset_features(offer, grounding=grounding),
        root=root,
        robot_type=robot_type,
    )
    table = _TableWriter(meta)
    video_writers = {key: _VideoWriter(meta, key) for key in meta.video_keys}
    for index, path in enumerate(staged_episodes):
        with np.load(path, allow_pickle=False) as episode:
            instruction, length = str(episode["instruction"]), len(episode["state"])
            meta.save_episode_tasks([instruction])
            statistics = json.loads(str(episode["statistics"]))
            statistics = {k: {name: np.array(value) for name, value in row.items()} for k, row in statistics.items()}
            row, vector_statistics = table.append(index, episode, meta.get_task_index(instruction))
            for camera in offer.cameras:
                video_writer = video_writers[camera_key(camera.name)]
                row |= video_writer.add_episode(index, episode[f"video/{camera.name}"].tobytes(), length)
        meta.save_episode(index, length, [instruction], vector_statistics | statistics, row)
    table.close()
    encoder = RGBEncoderConfig(vcodec=CODEC, pix_fmt=PIXEL_FORMAT, g=GOP_SIZE, crf=CRF, preset=PRESET)
    for key, video_writer in video_writers.items():
        video_writer.close()
        meta.update_video_info(key, video_encoder=encoder)
    meta.finalize()
    _write_json(root / "meta" / "info.json", meta.info.to_dict())
    write_atomically(root / OFFER_FILE, offer.to_json())
    stats = root / "meta" / "stats.json"
    # LeRobot writes the features in an order that changes from run to run.
    _write_json(stats, dict(sorted(json.loads(stats.read_text()).items())))
    return meta.total_frames


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=4, ensure_ascii=False))


class _TableWriter:
    """Appends episodes to the parquet files under `data/`, one row group each."""

    def __init__(self, meta: LeRobotDatasetMetadata) -> None:
        from lerobot.datasets.feature_utils import get_hf_features_from_features

        self._meta = meta
        self._schema = get_hf_features_from_features(meta.features).arrow_schema
        self._vectors = {k: feature for k, feature in meta.features.items() if feature["dtype"] != "video"}
        self._file, self._frames = -1, 0
        self._writer: Any = None

    def append(self, index: int, episode: Any, task_index: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write one episode; return its row in the episode index, and the statistics of its columns."""
        import pyarrow as pa
        from lerobot.datasets.compute_stats import compute_episode_stats

        length = len(episode["state"])
        frame = np.arange(length)
        columns = {
            "observation.state": episode["state"],
            "action": episode["action"],
            **({"grounding": episode["grounding"]} if "grounding" in self._meta.features else {}),
            "timestamp": (frame / self._meta.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, index),
            "index": self._frames + frame,
            "task_index": np.full(length, task_index),
        }
        arrays = [
            pa.array(columns[field.name])
            if columns[field.name].ndim == 1
            else pa.FixedSizeListArray.from_arrays(columns[field.name].reshape(-1), columns[field.name].shape[1])
            for field in self._schema
        ]
        self._open().write_table(pa.table(arrays, schema=self._schema))
        row = {
            "data/chunk_index": self._file // self._meta.chunks_size,
            "data/file_index": self._file % self._meta.chunks_size,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        self._frames += length
        return row, compute_episode_stats(columns, self._vectors)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        """Return the writer of the current file, or of the next one if the file is full."""
        import pyarrow.parquet as pq

        if self._writer is not None and self._path.stat().st_size < DATA_FILE_BYTES:
            return self._writer
        self.close()
        self._file += 1
        chunk, number = divmod(self._file, self._meta.chunks_size)
        self._path = self._meta.root / self._meta.data_path.format(chunk_index=chunk, file_index=number)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="snappy", use_dictionary=True)
        return self._writer


class _VideoWriter:
    """Collects one camera's episode videos and joins them, without encoding again, into the files of `videos/`."""

    def __init__(self, meta: LeRobotDatasetMetadata, key: str) -> None:
        self._meta, self._key, self._file = meta, key, 0
        self._folder = meta.root / "parts" / key
        self._folder.mkdir(parents=True)
        self._parts: list[Path] = []
        self._bytes, self._frames = 0, 0

    def add_episode(self, index: int, video: bytes, length: int) -> dict[str, Any]:
        """Add one episode's MP4 of `length` frames; return its row in the episode index."""
        if self._parts and self._bytes + len(video) > VIDEO_FILE_BYTES:
            self._join()
            self._file += 1
        self._parts.append(self._folder / f"{index:06d}.mp4")
        self._parts[-1].write_bytes(video)
        start, self._frames, self._bytes = self._frames, self._frames + length, self._bytes + len(video)
        chunk, number = divmod(self._file, self._meta.chunks_size)
        return {
            f"videos/{self._key}/chunk_index": chunk,
            f"videos/{self._key}/file_index": number,
            f"videos/{self._key}/from_timestamp": start / self._meta.fps,
            f"videos/{self._key}/to_timestamp": self._frames / self._meta.fps,
        }

    def close(self) -> None:
        self._join()
        self._folder.rmdir()
        if not any(self._folder.parent.iterdir()):
            self._folder.parent.rmdir()

    def _join(self) -> None:
        import av.logging
        from lerobot.datasets.video_utils import concatenate_video_files

        if not self._parts:
            return
        av.logging.set_libav_level(av.logging.ERROR)  # Otherwise it logs a line for every episode.
        chunk, number = divmod(self._file, self._meta.chunks_size)
        template = self._meta.video_path
        if template is None:
            raise WorldError("the dataset has cameras but no path for their videos")
        path = self._meta.root / template.format(video_key=self._key, chunk_index=chunk, file_index=number)
        concatenate_video_files(list(self._parts), path)
        for part in self._parts:
            part.unlink()
        self._parts, self._bytes, self._frames = [], 0, 0
