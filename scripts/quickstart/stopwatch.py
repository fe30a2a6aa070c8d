"""Run a long job in stages: announce the remaining time, time every stage, continue where it stopped."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError

HEARTBEAT_SECONDS = 5.0
"""Interval of saving the timings, in seconds: a kill loses so much of a stage's time."""


@dataclass(frozen=True)
class Stage:
    """One stage of a long job.

    Attributes:
        name: Key of its time in the file of timings.
        title: What the user reads.
        seconds: Expected time on two cores.
        is_done: Tells from the stage's output whether nothing is left to do.
        run: Runs the stage, or continues it after an interruption.
    """

    name: str
    title: str
    seconds: float
    is_done: Callable[[], bool]
    run: Callable[[], None]


def run_stages(stages: Sequence[Stage], timings: Path, log: Callable[[str], None] = print) -> dict[str, float]:
    """Run the stages that are not done yet, in their order, and announce each with the remaining time.

    Args:
        stages: The stages of the job.
        timings: JSON file with the seconds of each stage; it is kept through interruptions.
        log: Prints a line.

    Returns:
        The seconds of each stage over all runs. A stage that was done before it was ever timed is missing.
    """
    timer = StageTimer(timings)
    for index, stage in enumerate(stages):
        heading = f"[{index + 1}/{len(stages)}] {stage.title}"
        if stage.is_done():
            log(f"{heading}: already done")
            continue
        slowdown = _slowdown(stages[:index], timer.seconds)
        spent = timer.seconds.get(stage.name, 0.0)
        stage_seconds_left = max(slowdown * stage.seconds - spent, 0.0)
        total_seconds_left = stage_seconds_left + slowdown * sum(
            other.seconds for other in stages[index + 1 :] if not other.is_done()
        )
        log(f"{heading} ({_format_duration(stage_seconds_left)}; {_format_duration(total_seconds_left)} remaining)")
        with timer.timing(stage.name):
            stage.run()
    return timer.seconds


def _slowdown(stages: Sequence[Stage], seconds: dict[str, float]) -> float:
    """Return the measured over the expected time of the stages that were timed; 1 if there is none."""
    timed = [stage for stage in stages if stage.name in seconds]
    if not timed:
        return 1.0
    return sum(seconds[stage.name] for stage in timed) / sum(stage.seconds for stage in timed)


class StageTimer:
    """Measures the seconds of stages and saves them in a JSON file every few seconds.

    Args:
        path: The file; a damaged one is ignored.

    Attributes:
        seconds: The seconds of each stage so far, by its name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = json.loads(path.read_text())
            self.seconds = {str(name): float(seconds) for name, seconds in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` block to the seconds of a stage."""
        before, began, stop = self.seconds.get(name, 0.0), time.perf_counter(), threading.Event()

        def save_seconds() -> None:
            from ...sim.json_files import write_json

            self.seconds[name] = round(before + time.perf_counter() - began, 1)
            write_json(self._path, self.seconds)

        def save_periodically() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with suppress(InputError):  # the stage itself reports a full disk
                    save_seconds()

        thread = threading.Thread(target=save_periodically, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            save_seconds()


def _format_duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 60 else "less than a minute"
