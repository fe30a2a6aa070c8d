"""The live view of a `saccade run`: cameras, joints, targets and events in rerun, an optional extra.

Its own thread does all the work, and drops items if it is too slow, so that nothing that drives the arm waits for it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...robot.governor.chunk import ActionChunk
from ...robot.governor.outputs import Event
from ...robot.session.summary import EpisodeSummary, SessionObserver, StepSnapshot

MAX_PENDING_ITEMS = 8
"""Items that may wait to be shown."""

JPEG_QUALITY = 80
CLOSE_SECONDS = 5.0
APPLICATION = "saccade run"


class LiveView(SessionObserver):
    """Shows a session in rerun's viewer, writes it to a .rrd file, or both; `close` ends it.

    Args:
        names: Names of the joints.
        viewer: Whether to open the viewer.
        file: The .rrd file, if any.

    Raises:
        InputError: rerun is not installed, the viewer does not open, or the file cannot be written.
    """

    def __init__(self, names: tuple[str, ...], *, viewer: bool, file: Path | None) -> None:
        rerun = import_rerun()
        self._rerun, self._names = rerun, names
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            except OSError as error:
                fix = "Choose a file that you may write."
                raise InputError(f"live_file {file}", got=error.strerror, expected="a new file", fix=fix) from None
        self._recording = rerun.RecordingStream(APPLICATION)
        if viewer:
            _open_viewer(rerun)
        sinks = [rerun.GrpcSink()] if viewer else []
        sinks += [rerun.FileSink(str(file))] if file is not None else []
        self._recording.set_sinks(*sinks)
        self._items: queue.Queue[Any] = queue.Queue(MAX_PENDING_ITEMS)
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def on_step(self, view: StepSnapshot) -> None:
        self._enqueue(view)

    def on_chunk(self, chunk: ActionChunk, seconds: float) -> None:
        self._enqueue((chunk.observed, seconds))

    def on_event(self, event: Event) -> None:
        self._enqueue(event)

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        self._enqueue(summary)

    def close(self) -> None:
        """Show the waiting items, and end the thread."""
        try:
            self._items.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(timeout=CLOSE_SECONDS)
        self._recording.flush()
        self._recording.disconnect()

    def _enqueue(self, item: Any) -> None:
        try:
            self._items.put_nowait(item)
        except queue.Full:
            return

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, StepSnapshot):
                self._log_step(item)
            elif isinstance(item, Event):
                self._set_time(item.time)
                self._log("events", self._rerun.TextLog(f"{item.kind}: {item.detail}"))
            elif isinstance(item, EpisodeSummary):
                said = f"episode {item.index} ended by {item.ended_by}, {item.outcome or 'no outcome'}"
                self._log("events", self._rerun.TextLog(said))
            else:
                self._set_time(item[0])
                self._log("decision_ms", self._rerun.Scalars([1000.0 * item[1]]))

    def _log_step(self, view: StepSnapshot) -> None:
        self._set_time(view.time)
        for name, frame in view.frames.items():
            self._log(f"cameras/{name}", self._rerun.Image(frame.image).compress(jpeg_quality=JPEG_QUALITY))
        for index, name in enumerate(self._names):
            self._log(f"joints/{name}/measured", self._rerun.Scalars([float(view.joints[index])]))
            if view.target is not None:
                self._log(f"joints/{name}/target", self._rerun.Scalars([float(view.target[index])]))
        self._log("instruction", self._rerun.TextDocument(f"episode {view.episode}: {view.instruction} ({view.state})"))

    def _set_time(self, seconds: float) -> None:
        self._recording.set_time("time", duration=seconds)

    def _log(self, path: str, item: Any) -> None:
        self._recording.log(path, item)


def _open_viewer(rerun: Any) -> None:
    """Start rerun's viewer; InputError if it does not open."""
    fix = "Use --live-file FILE.rrd, and look at it on a machine with a display: rerun FILE.rrd."
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("live", got="no display", expected="a screen for the viewer", fix=fix)
    # The package installs the viewer beside this interpreter, which need not be on the path.
    own = Path(sys.executable).with_name("rerun")
    try:
        rerun.spawn(connect=False, executable_path=str(own) if own.exists() else None)
    except (RuntimeError, OSError) as error:
        said = str(error).splitlines()[0]
        raise InputError("live", got=said, expected="a viewer that opens", fix=fix) from None


def import_rerun() -> Any:
    """Return rerun's module; InputError if it is not installed."""
    try:
        import rerun
    except ImportError:
        raise InputError(
            "live",
            got="no package rerun",
            expected="the extra `rerun`",
            fix="Install it: pip install 'lerobot_policy_saccade[rerun]'.",
        ) from None
    return rerun
