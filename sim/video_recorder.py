"""Record what a policy saw as a video: all cameras side by side, with its visual tokens drawn over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .video import write_video

VIEW_HEIGHT = 256
"""Height of a view in the video, in pixels: small images are enlarged to keep the circles apart."""

FRAME_STRIDE = 2
"""Every second step is recorded: half the control rate looks smooth and halves the cost."""

LAST_FRAME_REPEATS = 10
"""How often the last frame is repeated, to show the end before the video starts again."""

SUPERSAMPLING = 2
KEPT_COLOUR, DROPPED_COLOUR, OUTLINE_COLOUR = (255, 214, 64), (255, 255, 255), (20, 20, 20)


class VideoRecorder:
    """Collects frames as the step callback of `run_episode` and writes them as a video.

    Args:
        height: Height of the video in pixels.
        stride: One frame is kept for this many steps.
    """

    def __init__(self, height: int = VIEW_HEIGHT, stride: int = FRAME_STRIDE) -> None:
        self.height, self.stride = height, stride
        self.frames: list[np.ndarray] = []
        self._last: tuple[Mapping[str, Any], Any] | None = None
        self._count = 0
        self._token_layers: tuple[Any, dict[str, np.ndarray]] = (None, {})

    def __call__(self, observation: Mapping[str, Any], overlay: Mapping[str, np.ndarray] | None) -> None:
        if "pixels" in observation:
            self._last = (observation, overlay)
        if self._count % self.stride == 0:
            self.frames.append(self.compose(observation, overlay))
        self._count += 1

    def compose(self, observation: Mapping[str, Any], overlay: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """Return one frame, uint8 [height, width, 3]: the images of `observation["pixels"]` from left to right."""
        pixels = observation["pixels"]
        views = pixels if isinstance(pixels, Mapping) else {"camera": pixels}
        # A decision lasts for many frames with the same circles: draw them once.
        if overlay is not self._token_layers[0]:
            self._token_layers = (overlay, {})
        layers = self._token_layers[1]
        parts = []
        for name, view in views.items():
            width = round(view.shape[1] * self.height / view.shape[0])
            frame = np.asarray(Image.fromarray(view).resize((width, self.height), Image.Resampling.BICUBIC))
            if overlay is not None and name in overlay:
                if name not in layers:
                    layers[name] = draw_tokens(overlay[name], width, self.height)
                layer = layers[name]
                # Blend only the pixels with circles: nine of ten have none.
                drawn = layer[..., 3] > 0
                alpha = layer[drawn][:, 3:]
                frame = frame.copy()
                frame[drawn] = (frame[drawn] * (1 - alpha) + layer[drawn][:, :3] * alpha).astype(np.uint8)
            parts.append(frame)
        return np.concatenate(parts, axis=1)

    def save(self, path: Path, control_hz: float) -> None:
        """Write the video in real time; `control_hz` is the number of steps per second."""
        if self._last is None:
            return
        last = self.compose(*self._last)
        write_video(path, [*self.frames, *[last] * LAST_FRAME_REPEATS], control_hz / self.stride)


def draw_tokens(tokens: np.ndarray, width: int, height: int) -> np.ndarray:
    """Draw visual tokens on a transparent layer: kept ones as rings that grow with their weight, dropped ones as dots.

    Args:
        tokens: Tokens [M, 4]: x, y, weight and kept, see `Overlay`.
        width: Width of the layer in pixels.
        height: Height of the layer in pixels.

    Returns:
        The layer, float32 [height, width, 4], with alpha from 0 to 1.
    """
    scale = SUPERSAMPLING
    layer = Image.new("RGBA", (width * scale, height * scale), (*OUTLINE_COLOUR, 0))
    pen = ImageDraw.Draw(layer)
    unit = height * scale / 256

    def ring(x: float, y: float, radius: float, colour: tuple[int, ...], thickness: float) -> None:
        box = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse(box, outline=colour, width=max(1, round(thickness)))

    for across, down, weight, kept in sorted(tokens.tolist(), key=lambda token: token[3]):
        x, y = across * width * scale, down * height * scale
        if kept < 0.5:
            for radius, colour in ((3.0 * unit, (*OUTLINE_COLOUR, 60)), (2.0 * unit, (*DROPPED_COLOUR, 150))):
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
            continue
        radius = (5 + 9 * float(np.clip(weight, 0, 1)) ** 0.5) * unit
        ring(x, y, radius + 1.0 * unit, (*OUTLINE_COLOUR, 170), 4.0 * unit)
        ring(x, y, radius, (*KEPT_COLOUR, 255), 2.2 * unit)
    small = layer.resize((width, height), Image.Resampling.BOX)
    drawn = np.asarray(small, dtype=np.float32)
    return np.concatenate([drawn[..., :3], drawn[..., 3:] / 255], axis=-1)
