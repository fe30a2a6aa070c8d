"""A process that runs the episodes it is sent, one at a time, with a world and an actor of its own."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..film import Film
from ..job import Job
from .episode import Actor, run_episode
from .records import EpisodeRecord, episodes_that_differ
from .shared_policy import RemoteActor, SharedPolicy

MakeEnv = Callable[[str, str], Any]
"""(suite, task) to a gymnasium environment; must be importable by name, for it is called in another process."""

MakeActor = Callable[[], Actor]

OUTCOMES = frozenset({"success", "failure"})
"""How an episode may end that ran to its end."""


@dataclass(frozen=True)
class Order:
    """An episode to run, and the outcomes that are to be filmed; `folder` is where films go."""

    job: Job
    filmed: frozenset[str] = frozenset()
    folder: Path | None = None


@dataclass(frozen=True)
class Finished:
    """An episode that ran to its end; `repeated` is False when it went another way while it was filmed."""

    record: EpisodeRecord
    repeated: bool = True


class Player:
    """Runs episodes with one actor, in a world that is kept for as long as the task stays the same."""

    def __init__(self, make_env: MakeEnv, actor: Actor) -> None:
        self._make_env, self._actor = make_env, actor
        self._env: Any = None
        self._scene: tuple[str, str] | None = None

    def run(self, order: Order) -> Finished:
        """Run an episode, and film it where its film is wanted however it ends.

        Where that depends on its outcome it is run again for the film: a step that nobody watches costs a fraction.
        Raises whatever the world or the actor raise; the world is built anew then, for what is left of it may not be
        trusted.
        """
        job = order.job
        try:
            if self._scene != (job.suite, job.task):
                self.close()
                self._env, self._scene = self._make_env(job.suite, job.task), (job.suite, job.task)
            film = Film() if order.folder is not None and order.filmed >= OUTCOMES else None
            record = self._play(job, film)
            if record.outcome not in order.filmed or order.folder is None:
                return Finished(record)
            if film is None:
                film = Film()
                again = self._play(job, film)
                if episodes_that_differ([record], [again]):
                    return Finished(record, repeated=False)
                seen = {"visual_tokens": again.visual_tokens, "visual_tokens_kept": again.visual_tokens_kept}
                record = replace(record, **seen)
            name = f"{job.file_stem}.mp4"
            film.save(order.folder / name, self._env.metadata.get("render_fps", 30))
            return Finished(replace(record, video=f"videos/{name}"))
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        env, self._env, self._scene = self._env, None, None
        if env is not None:
            with suppress(Exception):  # A world that broke may not close; there is nothing left to lose.
                env.close()

    def _play(self, job: Job, film: Film | None) -> EpisodeRecord:
        # Nothing of ours draws from the global generators; a world that does must still repeat.
        random.seed(job.seed)
        np.random.seed(job.seed)
        return run_episode(self._env, self._actor, job, watch=film)


def work(
    connection: Connection, environment: Mapping[str, str], make_env: MakeEnv, make_actor: MakeActor | SharedPolicy
) -> None:
    """Run orders from `connection` until it closes or sends `None`.

    `environment` is set in this process first. Sends ("ready",), then for every order ("finished", Finished) or
    ("error", traceback), ("ask", what, content) for an actor that decides elsewhere, and ("refused", four strings) for
    an InputError while setting up or writing a film, which no further try would mend.
    """
    os.environ.update(environment)
    player = None
    try:
        actor = RemoteActor(connection) if isinstance(make_actor, SharedPolicy) else make_actor()
        player = Player(make_env, actor)
        connection.send(("ready",))
        while (order := connection.recv()) is not None:
            try:
                connection.send(("finished", player.run(order)))
            except (InputError, EOFError, BrokenPipeError):
                raise
            except Exception:
                connection.send(("error", traceback.format_exc()))
    except InputError as error:
        connection.send(("refused", error.what, str(error.got), str(error.expected), error.fix))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever sent the orders is gone; there is nobody left to tell.
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    if player is not None:
        player.close()
