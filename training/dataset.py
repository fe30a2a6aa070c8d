"""Demonstrations for training: images from the frame cache, all other data in memory, loaded by the batch."""

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
    """The frames of one or more LeRobotDatasets, each with the action chunk that follows it.

    `batch(indices)` returns, for B frames, V cameras, S state elements, chunks of T steps and A action dimensions:
      images             uint8 [B, V, 3, H, W], a view of channels-last memory
      state              float32 [B, S], in the dataset's units
      action             float32 [B, T, A], in the dataset's units; after the end of an episode its last action repeats
      action_is_pad      bool [B, T], true for the repeated actions
      grounding          float32 [B, G], privileged labels; only if every dataset has them
      instruction        int64 [B], an index into `instructions`
      index              int64 [B], the index of the frame in this dataset
    and, after `set_history`, the remembered frames of H earlier decisions:
      past_images        uint8 [F, V, 3, H, W], the remembered frames that are not among the B, each once
      past_member        int64 [F], a row of the batch that is in the same episode
      past_place         int64 [B, H], index into the B + F frames of the frame k + 1 decisions earlier; -1 before the
                         episode
    An item has the same entries without B, and `task`, the text of the instruction. A `DataLoader` fetches whole
    batches with `collate_fn=DemonstrationDataset.collate`.

    Attributes:
        sources: The columns of every dataset.
        frames: The decoded images of every dataset, uint8 [F, V, H, W, 3] memory maps.
        state: All states, float32 [F, S].
        action: All actions, float32 [F, A].
        grounding: All privileged labels, float32 [F, G], or None.
        episode: Episode of every frame, int64 [F].
        episode_starts: First frame of every episode.
        episode_ends: One past the last frame of every episode.
        instructions: The different instructions.
        instruction: Instruction of every frame, an index into `instructions`, int64 [F].
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
        """Open datasets; decode their images into the frame cache if they are not there yet.

        Args:
            roots: Folders of the datasets.
            chunk: Steps of an action chunk, T.
            image_size: Height and width of the images in pixels; those of the dataset when left out.
            cache_folder: Folder of the frame cache, see `frames.default_cache_folder`.
            progress: Show a progress bar while images are decoded.

        Raises:
            InputError: A dataset is missing, truncated or of another format, or the datasets do not fit together.
        """
        if chunk < 1:
            raise InputError("chunk", got=chunk, expected="1 or more", fix="Use 16.")
        roots = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        if not roots:
            raise InputError(
                "datasets", got="none", expected="one or more", fix="Give the folder of a dataset with --data."
            )
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
        numbers = {task: number for number, task in enumerate(self.instructions)}
        self.instruction = np.concatenate(
            [np.array([numbers[task] for task in s.tasks])[s.vectors["task_index"]] for s in self.sources]
        )

    def set_history(self, history: int, decision_interval: int) -> None:
        """Return remembered frames with every batch from now on.

        Args:
            history: Earlier decisions that the policy remembers, H; 0 for none.
            decision_interval: Steps between two decisions.

        Raises:
            InputError: A number is out of range.
        """
        if history < 0 or decision_interval < 1:
            got, expected = (
                f"{history} frames, {decision_interval} steps apart",
                "0 frames or more, 1 step apart or more",
            )
            raise InputError(
                "history", got=got, expected=expected, fix="Set execute to a number of steps within the chunk."
            )
        self.history, self.decision_interval = history, decision_interval

    @property
    def fingerprint(self) -> str:
        """Identifies the content of all datasets, for the provenance of a checkpoint."""
        return "+".join(source.fingerprint for source in self.sources)

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self.sources[0].fps

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the camera features, V."""
        return self.sources[0].camera_keys

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """V, H, W, 3."""
        views, height, width, channels = self.frames[0].shape[1:]
        return views, height, width, channels

    def names(self, key: str) -> tuple[str, ...]:
        """Return the names of the elements of the vector feature `key`."""
        return tuple(self.sources[0].features[key]["names"] or ())

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        batch = self.batch([index])
        # Remembered frames are shared by the rows of a batch; here is only one row, so all of them are its own.
        item = {key: value if key in ("past_images", "past_member") else value[0] for key, value in batch.items()}
        return item | {"task": self.instructions[self.instruction[index]]}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.batch(indices)

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return `batch` as it is: `__getitems__` has collated it."""
        return batch

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the frames at `indices` [B] as a dictionary of tensors, see the class."""
        index = np.asarray(indices, dtype=np.int64)
        steps = index[:, None] + np.arange(self.chunk)  # [B, T]
        end = self.ends[index][:, None]  # [B, 1]
        arrays = {
            "state": self.state[index],
            "action": self.action[np.minimum(steps, end - 1)],  # [B, T, A]
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
        """Return the remembered frames that are not in `index` [B], their `past_member`, and `past_place` [B, H]."""
        past_index = index[:, None] - self.decision_interval * np.arange(1, self.history + 1)  # [B, H]
        is_inside = past_index >= self.starts[index][:, None]
        batch_frames, first = np.unique(index, return_index=True)
        frames, frame_of_entry = np.unique(past_index[is_inside], return_index=True)
        is_new = ~np.isin(frames, batch_frames)
        # Place of every remembered frame: its row in the batch if it is there, or else behind the batch.
        places = np.empty(len(frames), dtype=np.int64)
        places[is_new] = len(index) + np.arange(is_new.sum())
        places[~is_new] = first[np.searchsorted(batch_frames, frames[~is_new])]
        place = np.full(past_index.shape, -1, dtype=np.int64)
        place[is_inside] = places[np.searchsorted(frames, past_index[is_inside])]
        return frames[is_new], np.nonzero(is_inside)[0][frame_of_entry][is_new], place

    def decision_runs(self, frames: np.ndarray, length: int) -> np.ndarray:
        """Return runs of consecutive decisions of an episode, `decision_interval` steps apart.

        Args:
            frames: First frame of each run, [n].
            length: Decisions of a run. After the last decision of an episode, its first one follows.

        Returns:
            Frame indices, int64 [n * length].
        """
        start, number = self.starts[frames], (frames - self.starts[frames]) // self.decision_interval
        phase = (frames - start) % self.decision_interval
        count = -(-(self.ends[frames] - start - phase) // self.decision_interval)
        numbers = (number[:, None] + np.arange(length)) % count[:, None]
        return ((start + phase)[:, None] + self.decision_interval * numbers).flatten()

    def images(self, index: np.ndarray) -> np.ndarray:
        """Return a copy of the images of the frames `index` int64 [B]: uint8 [B, V, H, W, 3]."""
        images = np.empty((len(index), *self.image_shape), dtype=np.uint8)
        source = np.searchsorted(self._offsets, index, side="right") - 1
        for number, frames in enumerate(self.frames):
            for row in np.flatnonzero(source == number):
                images[row] = frames[index[row] - self._offsets[number]]
        return images

    def chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the chunk of every frame, float32 [F, T, A], and which of its steps are inside the episode, [F, T]."""
        return action_chunks(self.action, self.ends, self.chunk)

    def _concatenated(self, key: str) -> np.ndarray:
        return np.concatenate([source.vectors[key] for source in self.sources]).astype(np.float32)


def _check_compatible(first: DatasetColumns, other: DatasetColumns) -> None:
    """Raise InputError with every difference because of which two datasets cannot be combined."""
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
            fix="Train on datasets of one robot, with the same cameras and frame rate.",
        )
