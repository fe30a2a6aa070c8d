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
from ..perturbation.job import Job
from ..processes import refused_message
from ..video_recorder import VideoRecorder
from .episode import Actor, run_episode
from .records import EpisodeRecord, episodes_that_differ
from .shared_policy import RemoteActor, SharedPolicyFactory

EnvFactory = Callable[[str, str], Any]
"""(suite, task) to a gymnasium environment; must be importable by name, for it is called in another process."""

ActorFactory = Callable[[], Actor]

COMPLETED_OUTCOMES = frozenset({"success", "failure"})
"""How an episode may end that ran to its end."""


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to run, and the outcomes that are to be filmed; `folder` is where films go."""

    job: Job
    outcomes_to_film: frozenset[str] = frozenset()
    folder: Path | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """An episode that ran to its end; `repeated` is False when it went another way while it was filmed."""

    record: EpisodeRecord
    repeated: bool = True


class EpisodeWorker:
    """Runs episodes with one actor, in a world that is kept for as long as the task stays the same."""

    def __init__(self, make_env: EnvFactory, actor: Actor) -> None:
        self._make_env, self._actor = make_env, actor
        self._env: Any = None
        self._suite_task: tuple[str, str] | None = None

    def run(self, request: EpisodeRequest) -> EpisodeResult:
        """Run an episode, and film it where its film is wanted however it ends.

        Where that depends on its outcome it is run again for the film: a step that nobody watches costs a fraction.
        Raises whatever the world or the actor raise; the world is built anew then, for what is left of it may not be
        trusted.
        """
        job = request.job
        try:
            if self._suite_task != (job.suite, job.task):
                self.close()
                self._env, self._suite_task = self._make_env(job.suite, job.task), (job.suite, job.task)
            video_recorder = (
                VideoRecorder()
                if request.folder is not None and request.outcomes_to_film >= COMPLETED_OUTCOMES
                else None
            )
            record = self._run_job(job, video_recorder)
            if record.outcome not in request.outcomes_to_film or request.folder is None:
                return EpisodeResult(record)
            if video_recorder is None:
                video_recorder = VideoRecorder()
                again = self._run_job(job, video_recorder)
                if episodes_that_differ([record], [again]):
                    return EpisodeResult(record, repeated=False)
                seen = {"visual_tokens": again.visual_tokens, "visual_tokens_kept": again.visual_tokens_kept}
                record = replace(record, **seen)
            name = f"{job.file_stem}.mp4"
            video_recorder.save(request.folder / name, self._env.metadata.get("render_fps", 30))
            return EpisodeResult(replace(record, video=f"videos/{name}"))
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        env, self._env, self._suite_task = self._env, None, None
        if env is not None:
            with suppress(Exception):  # A world that broke may not close; there is nothing left to lose.
                env.close()

    def _run_job(self, job: Job, video_recorder: VideoRecorder | None) -> EpisodeRecord:
        # Nothing of ours draws from the global generators; a world that does must still repeat.
        random.seed(job.seed)
        np.random.seed(job.seed)
        return run_episode(self._env, self._actor, job, step_callback=video_recorder)


def worker_main(
    connection: Connection,
    environment: Mapping[str, str],
    make_env: EnvFactory,
    make_actor: ActorFactory | SharedPolicyFactory,
) -> None:
    """Run orders from `connection` until it closes or sends `None`.

    `environment` is set in this process first. Sends ("ready",), then for every order ("finished", Finished) or
    ("error", traceback), ("ask", what, content) for an actor that decides elsewhere, and ("refused", four strings) for
    an InputError while setting up or writing a film, which no further try would mend.
    """
    os.environ.update(environment)
    episode_worker = None
    try:
        actor = RemoteActor(connection) if isinstance(make_actor, SharedPolicyFactory) else make_actor()
        episode_worker = EpisodeWorker(make_env, actor)
        connection.send(("ready",))
        while (request := connection.recv()) is not None:
            try:
                connection.send(("finished", episode_worker.run(request)))
            except (InputError, EOFError, BrokenPipeError):
                raise
            except Exception:
                connection.send(("error", traceback.format_exc()))
    except InputError as error:
        connection.send(refused_message(error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever sent the orders is gone; there is nobody left to tell.
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    if episode_worker is not None:
        episode_worker.close()
