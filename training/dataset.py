"""Demonstrations for training: decoded frames from the cache, everything else in memory, whole batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..policy.datasets.columns import ACTION_KEY, GROUNDING_KEY, STATE_KEY, DatasetColumns, read_columns
from ..policy.normalization import action_chunks
from .frames import open_frames


class DemonstrationDataset(torch.utils.data.Dataset):
    """The frames of one or more LeRobotDatasets, one after another, each with the chunk of actions that follows.

    `batch(indices)` returns, for B frames and V cameras:
      images             uint8 [B, V, 3, H, W], a view of channels-last memory
      state              float32 [B, S], in the dataset's units
      action             float32 [B, T, A], in the dataset's units; past an episode's end its last action is repeated
      action_is_pad      bool [B, T], true for those repetitions
      grounding          float32 [B, G], privileged labels; only when every dataset has them
      instruction        int64 [B], a place in `instructions`
      index              int64 [B], the frame's place in this dataset
    and, after `set_history`, what decisions remember of H frames:
      past_images        uint8 [F, V, 3, H, W], remembered frames that are none of the B, each once
      past_member        int64 [F], a row of the batch in whose episode each is
      past_place         int64 [B, H], which of the B + F frames stands k + 1 decisions back, -1 before the episode
    An item is the same without B, and `task`, the instruction itself. A `DataLoader` fetches whole batches when
    `collate_fn=DemonstrationDataset.collate` is given.

    Raises InputError when a dataset is missing, truncated or foreign, and when several do not fit together.
    """

    def __init__(
        self,
        roots: Path | Sequence[Path],
        chunk: int,
        *,
        image_size: int | None = None,
        cache_folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        if chunk < 1:
            raise InputError("chunk", got=chunk, expected="1 or more", fix="A common choice is 16.")
        roots = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        if not roots:
            raise InputError("datasets", got="none", expected="one or more", fix="Name the folder of a dataset.")
        self.chunk, self.history, self.decision_interval = chunk, 0, 1
        self.sources: tuple[DatasetColumns, ...] = tuple(read_columns(root) for root in roots)
        for source in self.sources[1:]:
            _check_compatible(self.sources[0], source)
        self.frames: tuple[np.ndarray, ...] = tuple(
            open_frames(source, cache_folder=cache_folder, image_size=image_size, progress=progress)
            for source in self.sources
        )
        self._offsets = np.cumsum([0, *(source.frames for source in self.sources)])
        self.state = self._concatenated(STATE_KEY)
        self.action = self._concatenated(ACTION_KEY)
        self.grounding = (
            self._concatenated(GROUNDING_KEY) if all(GROUNDING_KEY in s.vectors for s in self.sources) else None
        )
        pairs = list(zip(self._offsets[:-1], self.sources, strict=True))
        self.episode_starts = np.concatenate([source.starts + first for first, source in pairs])
        self.episode_ends = np.concatenate([source.ends + first for first, source in pairs])
        lengths = self.episode_ends - self.episode_starts
        self.episode = np.repeat(np.arange(len(lengths)), lengths)
        self.starts, self.ends = self.episode_starts[self.episode], self.episode_ends[self.episode]
        self.instructions: tuple[str, ...] = tuple(dict.fromkeys(task for s in self.sources for task in s.tasks))
        places = {task: place for place, task in enumerate(self.instructions)}
        self.instruction = np.concatenate(
            [np.array([places[task] for task in s.tasks])[s.vectors["task_index"]] for s in self.sources]
        )

    def set_history(self, history: int, decision_interval: int) -> None:
        """Give with every frame what a policy with that `history` remembers, decisions standing `decision_interval` steps apart.

        Raises InputError for numbers out of range.
        """
        if history < 0 or decision_interval < 1:
            got, expected = (
                f"{history} frames, {decision_interval} steps apart",
                "0 frames or more, 1 step apart or more",
            )
            raise InputError("history", got=got, expected=expected, fix="A policy executes so many steps of a chunk.")
        self.history, self.decision_interval = history, decision_interval

    @property
    def fingerprint(self) -> str:
        """Return what identifies the content of all datasets, for a checkpoint's provenance."""
        return "+".join(source.fingerprint for source in self.sources)

    @property
    def fps(self) -> int:
        return self.sources[0].fps

    @property
    def camera_keys(self) -> tuple[str, ...]:
        return self.sources[0].camera_keys

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Return V, H, W, 3."""
        return self.frames[0].shape[1:]

    def names(self, key: str) -> tuple[str, ...]:
        """Return the names of a vector feature's elements."""
        return tuple(self.sources[0].features[key]["names"] or ())

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        batch = self.batch([index])
        # What is remembered belongs to no row alone: there is only one, so that all of it is this one's.
        item = {key: value if key in ("past_images", "past_member") else value[0] for key, value in batch.items()}
        return item | {"task": self.instructions[self.instruction[index]]}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.batch(indices)

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pass a batch through: `__getitems__` has made it already."""
        return batch

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the frames at `indices` [B] as one dictionary of tensors, described above."""
        index = np.asarray(indices, dtype=np.int64)
        steps = index[:, None] + np.arange(self.chunk)
        end = self.ends[index][:, None]
        arrays = {
            "state": self.state[index],
            "action": self.action[np.minimum(steps, end - 1)],
            "action_is_pad": steps >= end,
            "instruction": self.instruction[index],
            "index": index,
        }
        if self.grounding is not None:
            arrays["grounding"] = self.grounding[index]
        images = {"images": index}
        if self.history:
            images["past_images"], arrays["past_member"], arrays["past_place"] = self._past_frames(index)
        return {key: torch.from_numpy(self.images(which)).permute(0, 1, 4, 2, 3) for key, which in images.items()} | {
            key: torch.from_numpy(array) for key, array in arrays.items()
        }

    def _past_frames(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the remembered frames that are not among `index` [B], a row for each, and `past_place` [B, H]."""
        past_index = index[:, None] - self.decision_interval * np.arange(1, self.history + 1)
        is_inside = past_index >= self.starts[index][:, None]
        batch_frames, first = np.unique(index, return_index=True)
        frames, frame_of_entry = np.unique(past_index[is_inside], return_index=True)
        is_new = ~np.isin(frames, batch_frames)
        # Every frame's place: that of a row which decides on it, or behind them all.
        places = np.empty(len(frames), dtype=np.int64)
        places[is_new] = len(index) + np.arange(is_new.sum())
        places[~is_new] = first[np.searchsorted(batch_frames, frames[~is_new])]
        place = np.full(past_index.shape, -1, dtype=np.int64)
        place[is_inside] = places[np.searchsorted(frames, past_index[is_inside])]
        return frames[is_new], np.nonzero(is_inside)[0][frame_of_entry][is_new], place

    def decision_runs(self, frames: np.ndarray, length: int) -> np.ndarray:
        """Return `length` decisions of one episode for each of `frames` [n], which is the first: int64 [n * length].

        They follow each other `decision_interval` steps apart; behind the episode's last one comes its first.
        """
        start, number = self.starts[frames], (frames - self.starts[frames]) // self.decision_interval
        phase = (frames - start) % self.decision_interval
        count = -(-(self.ends[frames] - start - phase) // self.decision_interval)
        numbers = (number[:, None] + np.arange(length)) % count[:, None]
        return ((start + phase)[:, None] + self.decision_interval * numbers).flatten()

    def images(self, index: np.ndarray) -> np.ndarray:
        """Return the frames at `index` int64 [B] as a copy, uint8 [B, V, H, W, 3]."""
        images = np.empty((len(index), *self.image_shape), dtype=np.uint8)
        source = np.searchsorted(self._offsets, index, side="right") - 1
        for number, frames in enumerate(self.frames):
            for place in np.flatnonzero(source == number):
                images[place] = frames[index[place] - self._offsets[number]]
        return images

    def chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every frame's chunk, float32 [F, T, A], and which of its steps lie inside the episode, [F, T]."""
        return action_chunks(self.action, self.ends, self.chunk)

    def _concatenated(self, key: str) -> np.ndarray:
        return np.concatenate([source.vectors[key] for source in self.sources]).astype(np.float32)


def _check_compatible(first: DatasetColumns, other: DatasetColumns) -> None:
    """Raise InputError naming every difference that keeps two datasets from being trained on together."""
    differences = []
    if first.fps != other.fps:
        differences.append(("fps", other.fps, first.fps))
    if first.camera_keys != other.camera_keys:
        differences.append(("cameras", other.camera_keys, first.camera_keys))
    for key in (STATE_KEY, ACTION_KEY, GROUNDING_KEY, *first.camera_keys):
        for field in ("shape", "names"):
            one, two = (source.features.get(key, {}).get(field) for source in (first, other))
            if one != two and not (key == GROUNDING_KEY and field == "names"):
                differences.append((f"{key} {field}", two, one))
    if first.offer is not None and other.offer is not None and first.offer != other.offer:
        differences.append(("offer", "other units or conventions", f"those of {first.root}"))
    if differences:
        raise InputError(
            f"dataset {other.root}",
            got="; ".join(f"{name} {got}" for name, got, _ in differences),
            expected=f"what {first.root} has: " + "; ".join(f"{name} {expected}" for name, _, expected in differences),
            fix="Train on datasets of one arm, one set of cameras and one rate.",
        )
