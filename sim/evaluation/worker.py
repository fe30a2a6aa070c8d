"""A worker process: it runs the episodes that it is sent, one at a time, with its own environment and actor."""

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
"""Builds the gymnasium environment of (suite, task); it is pickled, because it is called in another process."""

ActorFactory = Callable[[], Actor]

COMPLETED_OUTCOMES = frozenset({"success", "failure"})
"""Outcomes of an episode that ran without an error."""


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to run, and whether to record it.

    Attributes:
        job: What to run.
        outcomes_to_record: The episode is recorded as a video if it ends with one of these outcomes.
        folder: Folder of the video; None for no video.
    """

    job: Job
    outcomes_to_record: frozenset[str] = frozenset()
    folder: Path | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """The result of an episode.

    Attributes:
        record: What happened.
        repeated: False if the episode went differently when it was run again for the video.
    """

    record: EpisodeRecord
    repeated: bool = True


class EpisodeWorker:
    """Runs episodes with one actor; it keeps the environment while suite and task stay the same."""

    def __init__(self, make_env: EnvFactory, actor: Actor) -> None:
        self._make_env, self._actor = make_env, actor
        self._env: Any = None
        self._suite_task: tuple[str, str] | None = None

    def run(self, request: EpisodeRequest) -> EpisodeResult:
        """Run an episode, and record a video if the request asks for one.

        If only some outcomes are to be recorded, the episode is first run without rendering for a video, which is much
        faster, and run again for the video if its outcome is one of them.

        Raises:
            Exception: Whatever the environment or the actor raises; the environment is then built again for the next
                episode, because its state may be wrong.
        """
        job = request.job
        try:
            if self._suite_task != job.suite_task:
                self.close()
                self._env, self._suite_task = self._make_env(job.suite, job.task), job.suite_task
            video_recorder = (
                VideoRecorder()
                if request.folder is not None and request.outcomes_to_record >= COMPLETED_OUTCOMES
                else None
            )
            record = self._run_job(job, video_recorder)
            if record.outcome not in request.outcomes_to_record or request.folder is None:
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
        """Close the environment."""
        env, self._env, self._suite_task = self._env, None, None
        if env is not None:
            with suppress(Exception):  # A broken environment may fail to close.
                env.close()

    def _run_job(self, job: Job, video_recorder: VideoRecorder | None) -> EpisodeRecord:
        # Our code does not use the global generators; an environment that does must still be repeatable.
        random.seed(job.seed)
        np.random.seed(job.seed)
        return run_episode(self._env, self._actor, job, step_callback=video_recorder)


def worker_main(
    connection: Connection,
    environment: Mapping[str, str],
    make_env: EnvFactory,
    make_actor: ActorFactory | SharedPolicyFactory,
) -> None:
    """Run requests from a connection until it closes or sends None.

    Sends ("ready",), then for every request ("finished", EpisodeResult) or ("error", traceback), ("ask", what, content)
    for an actor that decides in another process, and `refused_message` for an InputError while setting up or writing a
    video, which a retry would not solve.

    Args:
        connection: This process's end of the pipe to `LocalPool`.
        environment: Environment variables to set first.
        make_env: Builds the environment of a suite and task.
        make_actor: Builds the actor; for a `SharedPolicyFactory` the actor asks the policy's process.
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
        pass  # The parent has ended.
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    if episode_worker is not None:
        episode_worker.close()
