"""A long job in stages: announced with the time that is left, timed through interruptions, resumed where it stopped."""

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
"""How much of a stage's time a kill may lose."""


@dataclass(frozen=True)
class Stage:
    """One stage: `run` does it, or goes on with it; `is_done` tells from its own output whether nothing is left to do.

    `seconds` is what it takes on two cores, give or take.
    """

    name: str
    title: str
    seconds: float
    is_done: Callable[[], bool]
    run: Callable[[], None]


def run_stages(stages: Sequence[Stage], timings: Path, log: Callable[[str], None] = print) -> dict[str, float]:
    """Do what is left of the stages, in their order; return the seconds that each has taken over all runs.

    The seconds are kept in the file `timings`. A stage that was done before it was ever timed has none.
    """
    timer = StageTimer(timings)
    for number, stage in enumerate(stages):
        heading = f"[{number + 1}/{len(stages)}] {stage.title}"
        if stage.is_done():
            log(f"{heading}: done before")
            continue
        # What the stages so far took on this machine corrects what the others are expected to take.
        timed = [other for other in stages[:number] if other.name in timer.seconds]
        slowdown = (
            sum(timer.seconds[other.name] for other in timed) / sum(other.seconds for other in timed) if timed else 1
        )
        spent = timer.seconds.get(stage.name, 0.0)
        stage_seconds_left = max(slowdown * stage.seconds - spent, 0.0)
        total_seconds_left = stage_seconds_left + slowdown * sum(
            other.seconds for other in stages[number + 1 :] if not other.is_done()
        )
        log(f"{heading} ({_format_duration(stage_seconds_left)}; {_format_duration(total_seconds_left)} left in all)")
        with timer.timing(stage.name):
            stage.run()
    return timer.seconds


class StageTimer:
    """Seconds by name in a JSON file that is at most some seconds behind when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = json.loads(path.read_text())
            self.seconds = {str(name): float(seconds) for name, seconds in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time inside to what `name` has taken so far."""
        before, began, stop = self.seconds.get(name, 0.0), time.perf_counter(), threading.Event()

        def save_seconds() -> None:
            from ...sim.evaluation.run_folder import write_json

            self.seconds[name] = round(before + time.perf_counter() - began, 1)
            write_json(self._path, self.seconds)

        def save_periodically() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with suppress(InputError):  # a full disk is the stage's to report
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
