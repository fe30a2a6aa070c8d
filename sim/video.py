"""Write small videos that every browser plays: H.264 in MP4, or VP9 in WebM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from ..disk import report_disk_errors
from ..errors import InputError

CODECS = {
    ".mp4": ("libx264", {"crf": "28", "preset": "veryfast", "movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"crf": "34", "b:v": "0", "deadline": "realtime", "cpu-used": "6"}),
}
MEDIA_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}


def write_video(path: Path, frames: Sequence[np.ndarray], rate: float) -> None:
    """Write frames as a video, atomically.

    Odd sizes are cropped by one pixel: the pixel format that browsers play (yuv420p) needs even sizes.

    Args:
        path: The file; its suffix, .mp4 or .webm, chooses the codec.
        frames: Frames, uint8 [H, W, 3], at least one.
        rate: Frames per second.

    Raises:
        InputError: Another suffix, no frames, or the disk refused to write.
    """
    if path.suffix not in CODECS:
        raise InputError("video file", got=path.name, expected=" or ".join(CODECS), fix="Use one of these suffixes.")
    if not len(frames):
        raise InputError("video", got="no frames", expected="at least one", fix="Record at least one step.")
    codec, options = CODECS[path.suffix]
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        with report_disk_errors(path, fix="Free some space and resume, or use --videos 0 for no videos."):
            path.parent.mkdir(parents=True, exist_ok=True)
            container_options = {"movflags": options["movflags"]} if "movflags" in options else {}
            with av.open(str(partial), "w", options=container_options) as container:
                # add_stream's type does not say that a video codec makes a video stream.
                stream = cast("VideoStream", container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000)))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                # Videos are encoded beside running episodes: one thread leaves them the other cores.
                stream.codec_context.thread_count = 1
                stream.options = {key: value for key, value in options.items() if key != "movflags"}
                for frame in frames:
                    image = np.ascontiguousarray(frame[:height, :width])
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
            os.replace(partial, path)
    except InputError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def poster(path: Path, at: float = 0.0) -> Image.Image:
    """Return the frame of a video at a fraction `at` of its length, from 0 to 1."""
    container = av.open(str(path))
    try:
        frames = list(container.decode(video=0))
        return frames[round(at * (len(frames) - 1))].to_image()
    finally:
        container.close()
