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
    """One stage: `run` does it, or goes on with it; `done` tells from its own output whether nothing is left to do.

    `seconds` is what it takes on two cores, give or take.
    """

    name: str
    title: str
    seconds: float
    done: Callable[[], bool]
    run: Callable[[], None]


def run_stages(stages: Sequence[Stage], timings: Path, tell: Callable[[str], None] = print) -> dict[str, float]:
    """Do what is left of the stages, in their order; return the seconds that each has taken over all runs.

    The seconds are kept in the file `timings`. A stage that was done before it was ever timed has none.
    """
    watch = Stopwatch(timings)
    for number, stage in enumerate(stages):
        heading = f"[{number + 1}/{len(stages)}] {stage.title}"
        if stage.done():
            tell(f"{heading}: done before")
            continue
        # What the stages so far took on this machine corrects what the others are expected to take.
        timed = [other for other in stages[:number] if other.name in watch.seconds]
        pace = sum(watch.seconds[other.name] for other in timed) / sum(other.seconds for other in timed) if timed else 1
        spent = watch.seconds.get(stage.name, 0.0)
        here = max(pace * stage.seconds - spent, 0.0)
        left = here + pace * sum(other.seconds for other in stages[number + 1 :] if not other.done())
        tell(f"{heading} ({_spoken(here)}; {_spoken(left)} left in all)")
        with watch.running(stage.name):
            stage.run()
    return watch.seconds


class Stopwatch:
    """Seconds by name in a JSON file that is at most some seconds behind when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = json.loads(path.read_text())
            self.seconds = {str(name): float(seconds) for name, seconds in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Add the time inside to what `name` has taken so far."""
        before, began, stop = self.seconds.get(name, 0.0), time.perf_counter(), threading.Event()

        def note() -> None:
            from ...sim.evaluation.run_folder import write_json

            self.seconds[name] = round(before + time.perf_counter() - began, 1)
            write_json(self._path, self.seconds)

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with suppress(InputError):  # a full disk is the stage's to report
                    note()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            note()


def _spoken(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 60 else "less than a minute"
