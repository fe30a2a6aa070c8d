"""Images that one process shares with others: a ring buffer of frames in a file that all of them map.

A copied frame is valid if its slot holds the frame's number before and after the copy; the writer never waits.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ...disk import write_atomically
from ...errors import InputError, WorldError

RING_SLOTS = 6
"""Frames in the ring: a reader has the time of several frames to copy one."""

MAGIC = 0x53414343414445
TRIES = 20

_HEADER_DTYPE = np.dtype([("magic", "u8"), ("height", "u8"), ("width", "u8"), ("latest", "u8")])


@dataclass(frozen=True)
class SharedFrame:
    """One frame.

    Attributes:
        image: The image, uint8 [H, W, 3].
        captured: When it was taken, in seconds of time.monotonic.
        number: Number of the frame, from 1 on.
    """

    image: np.ndarray
    captured: float
    number: int


def frame_path(folder: Path, camera: str) -> Path:
    """Return the file that holds the frames of a camera."""
    return folder / f"{camera}.frames"


def _slot_dtype(height: int, width: int) -> np.dtype:
    return np.dtype([("number", "u8"), ("captured", "f8"), ("image", "u1", (height, width, 3))])


class FrameWriter:
    """Creates the file and writes frames to it."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path = path
        slot = _slot_dtype(height, width)
        header = np.array([(MAGIC, height, width, 0)], _HEADER_DTYPE)
        # Readers must never find a file without its header.
        write_atomically(path, header.tobytes() + bytes(RING_SLOTS * slot.itemsize))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._header = np.frombuffer(self._map, _HEADER_DTYPE, 1)
        self._slots = np.frombuffer(self._map, slot, RING_SLOTS, offset=_HEADER_DTYPE.itemsize)
        self._count = 0

    def write(self, image: np.ndarray, captured: float) -> None:
        """Add a frame.

        Args:
            image: The image, uint8 [H, W, 3].
            captured: When it was taken, in seconds of time.monotonic.
        """
        self._count += 1
        slot = self._slots[self._count % RING_SLOTS]
        slot["number"] = 0
        slot["image"], slot["captured"] = image, captured
        slot["number"] = self._count
        self._header["latest"] = self._count


class FrameReader:
    """Reads the frames that another process writes; raises InputError if the file is missing or holds no frames."""

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            fix = "Start the virtual arm first, and use its camera's configuration."
            raise InputError("camera source", got=f"{path} ({error})", expected="frames", fix=fix) from error
        head = np.frombuffer(self._map, _HEADER_DTYPE, 1) if len(self._map) >= _HEADER_DTYPE.itemsize else None
        if head is None or int(head["magic"][0]) != MAGIC:
            raise InputError(
                "camera source",
                got=str(path),
                expected="frames of a virtual arm",
                fix="Use its camera's configuration.",
            )
        self._header = head
        self.height, self.width = int(head["height"][0]), int(head["width"][0])
        self._slots = np.frombuffer(
            self._map, _slot_dtype(self.height, self.width), RING_SLOTS, offset=_HEADER_DTYPE.itemsize
        )

    @property
    def latest_number(self) -> int:
        """Number of the newest frame; 0 before the first."""
        return int(self._header["latest"][0])

    def latest(self) -> SharedFrame | None:
        """Return the newest frame, or None before the first."""
        for _ in range(TRIES):
            number = self.latest_number
            if not number:
                return None
            slot = self._slots[number % RING_SLOTS]
            image, captured = slot["image"].copy(), float(slot["captured"])
            if int(slot["number"]) == number:
                return SharedFrame(image, captured, number)
        raise WorldError(f"no frame could be read in {TRIES} tries: the machine is too slow for its cameras")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        del self._header, self._slots
        with suppress(BufferError):  # A frame is still being copied: the map is freed with its last view.
            self._map.close()
