"""A process that runs the episodes it is sent, one at a time, with a world and an actor of its own."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .episode import Actor, run_episode
from .film import Film
from .records import EpisodeRecord, Job

MakeEnv = Callable[[str, str], Any]
"""(suite, task) to a gymnasium environment; must be importable by name, for it is called in another process."""

MakeActor = Callable[[], Actor]


def work(connection: Connection, make_env: MakeEnv, make_actor: MakeActor, videos: Path | None) -> None:
    """Serve jobs from `connection` until it closes or sends `None`.

    Sends ("ready",), then for every job ("record", record) or ("error", traceback), and ("refused", four strings) for
    an InputError while setting up or writing a film, which no further try would mend. After an error the world is
    built anew: what is left of it may not be trusted.
    """
    env: Any = None
    current: tuple[str, str] | None = None
    try:
        actor = make_actor()
        connection.send(("ready",))
        while (job := connection.recv()) is not None:
            try:
                if current != (job.suite, job.task):
                    _close(env)
                    env, current = None, None
                    env, current = make_env(job.suite, job.task), (job.suite, job.task)
            except InputError:
                raise
            except Exception:
                connection.send(("error", traceback.format_exc()))
                continue
            try:
                film = Film() if videos is not None else None
                record = _run(env, actor, job, film)
            except Exception:
                connection.send(("error", traceback.format_exc()))
                _close(env)
                env, current = None, None
                continue
            if videos is not None and film is not None:
                film.save(videos / f"{job.file_stem}.mp4", env.metadata.get("render_fps", 30))
                record = replace(record, video=f"videos/{job.file_stem}.mp4")
            connection.send(("record", record))
    except InputError as error:
        connection.send(("refused", error.what, str(error.got), str(error.expected), error.fix))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever sent the jobs is gone; there is nobody left to tell.
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    _close(env)


def _close(env: Any) -> None:
    if env is not None:
        with suppress(Exception):  # A world that broke may not close; there is nothing left to lose.
            env.close()


def _run(env: Any, actor: Actor, job: Job, film: Film | None) -> EpisodeRecord:
    # Nothing of ours draws from the global generators; a world that does must still repeat.
    random.seed(job.seed)
    np.random.seed(job.seed)
    return run_episode(env, actor, job, watch=film)
