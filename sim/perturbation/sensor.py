"""Sensor: the world stays the same, but images or state are corrupted, in one of six ways per episode."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CORRUPTIONS = ("noise", "blur", "compression", "stains", "exposure", "state")

NOISE_STD = 7.0
"""Increase of the image noise's standard deviation per level, of 255."""

BLUR_STD = 0.004
"""Increase of the blur's standard deviation per level, as a fraction of the image's height."""

JPEG_QUALITY = {1: 40, 2: 25, 3: 15, 4: 10, 5: 6}
"""JPEG's quality at each level, of 100."""

STAIN_COUNT, STAIN_SHARE = 4, 0.02
"""Number of stains on each lens, and the fraction of the image that they cover per level."""

EXPOSURE = 0.16
"""Change of the logarithm of the exposure per level, up or down."""

STATE_NOISE_STD = {"degrees": 0.4, "percent": 0.8, "radians": 0.007, "metres": 0.002}
DEFAULT_STATE_NOISE_STD = 0.004
"""Increase of the state noise's standard deviation per level, by unit."""


class SensorCorruption:
    """Corrupts the observations of one episode.

    The corruption depends on the generator and the number of the step only, not on which steps are rendered.

    Args:
        level: 1 to 5.
        generator: Chooses the kind of corruption and its details.
        units: Units of the state's entries.
    """

    def __init__(self, level: int, generator: np.random.Generator, units: tuple[str, ...]) -> None:
        self.kind = str(generator.choice(CORRUPTIONS))
        self._level = level
        self._noise_seed, self._step = int(generator.integers(2**31)), -1
        self._exposure_sign = float(generator.choice((-1.0, 1.0)))
        self._stain_seed = int(generator.integers(2**31))
        self._stains: dict[str, Image.Image] = {}
        self._state_noise_std = level * np.array([STATE_NOISE_STD.get(unit, DEFAULT_STATE_NOISE_STD) for unit in units])

    @property
    def drawn(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is measured instead of an observation: of the same shapes and types, in new arrays."""
        corrupted = dict(observation)
        self._step += 1
        self._generator = np.random.default_rng([self._noise_seed, self._step])
        if self.kind == "state":
            state = np.asarray(observation["agent_pos"])
            noisy = state + self._generator.normal(0.0, 1.0, state.shape) * self._state_noise_std
            return corrupted | {"agent_pos": noisy.astype(state.dtype)}
        if "pixels" not in observation:
            return corrupted
        return corrupted | {"pixels": {name: self._corrupt(name, view) for name, view in observation["pixels"].items()}}

    def _corrupt(self, camera: str, view: np.ndarray) -> np.ndarray:
        match self.kind:
            case "noise":
                noisy = view + self._generator.normal(0.0, self._level * NOISE_STD, view.shape)
            case "exposure":
                noisy = view * np.exp(self._exposure_sign * self._level * EXPOSURE)
            case "blur":
                blurred = ImageFilter.GaussianBlur(self._level * BLUR_STD * view.shape[0])
                noisy = np.asarray(Image.fromarray(view).filter(blurred))
            case "compression":
                content = io.BytesIO()
                Image.fromarray(view).save(content, "JPEG", quality=JPEG_QUALITY[self._level])
                noisy = np.asarray(Image.open(content).convert("RGB"))
            case "stains":
                noisy = self._stain(camera, view)
            case _:
                raise ValueError(f"unknown kind of sensor noise {self.kind!r}")
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    def _stain(self, camera: str, view: np.ndarray) -> np.ndarray:
        height, width = view.shape[:2]
        if camera not in self._stains:
            self._stains[camera] = self._draw_stains(len(self._stains), height, width)
        cover = np.asarray(self._stains[camera], dtype=np.float64)[..., None] / 255.0
        return view * (1 - cover) + 48.0 * cover

    def _draw_stains(self, place: int, height: int, width: int) -> Image.Image:
        """Draw the stains on one lens, 255 where it is covered; their positions do not depend on the level."""
        generator = np.random.default_rng([self._stain_seed, place])
        cover = Image.new("L", (width, height))
        pen = ImageDraw.Draw(cover)
        radius = np.sqrt(self._level * STAIN_SHARE * height * width / STAIN_COUNT / np.pi)
        for _ in range(STAIN_COUNT):
            x, y, stretch = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(0.8, 1.25)
            pen.ellipse((x - radius * stretch, y - radius / stretch, x + radius * stretch, y + radius / stretch), 235)
        return cover.filter(ImageFilter.GaussianBlur(0.01 * height))
