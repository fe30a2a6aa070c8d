"""The node's side of an evaluation on a cluster: check the environment, get the checkpoint, run episodes."""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError
from ..fingerprint import differences
from ..processes import refused_message
from .episode import Actor
from .worker import EnvFactory, EpisodeRequest, EpisodeWorker

MAX_TRANSFER_BYTES = 2 * 2**30
"""Largest checkpoint that is sent to the nodes; a larger one must be on a disk that all nodes share."""

IGNORED_FINGERPRINT_FIELDS = ("processor", "cores")
"""Fields of the fingerprint that may differ between machines; the last bits of a result may then differ, too."""


class RelocatableActorFactory(Protocol):
    """An actor factory whose checkpoint folder can be changed."""

    @property
    def folder(self) -> Path: ...

    def __call__(self) -> Actor: ...

    def with_folder(self, folder: Path) -> RelocatableActorFactory: ...


@dataclass(frozen=True)
class NodeSetup:
    """What every node needs.

    Attributes:
        make_env: Builds the environment of a suite and task.
        make_actor: Builds the actor from its checkpoint folder.
        fingerprint: Computes the node's fingerprint, which must equal `expected`.
        expected: The head's fingerprint.
        environment: Environment variables to set.
        episode_seconds: Time limit of an episode.
        digest: The checkpoint's `folder_digest`, set by `with_checkpoint_files`.
        files: The checkpoint's files by name, set by `with_checkpoint_files`; None if they are too large to send.
    """

    make_env: EnvFactory
    make_actor: RelocatableActorFactory
    fingerprint: Callable[[], Mapping[str, Any]]
    expected: Mapping[str, Any]
    environment: Mapping[str, str]
    episode_seconds: float
    digest: str = ""
    files: Mapping[str, bytes] | None = None


def run_on_node(setup: Sequence[Any], request: EpisodeRequest) -> tuple[Any, ...]:
    """Run one episode in a process of a node; environment and actor are kept for the process's next episode.

    Args:
        setup: One Ray reference to a `NodeSetup`, in a list so that Ray does not resolve it.
        request: The episode to run.

    Returns:
        The message that a local worker would send; a "finished" one also holds the bytes of the video, or None.
    """
    try:
        episode_worker, seconds = _cached_episode_worker(setup[0])
    except InputError as error:
        return refused_message(error)
    except Exception:
        return "broken", traceback.format_exc()
    # Ends the process even if it hangs in native code: the timer needs neither the interpreter nor Ray.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = episode_worker.run(replace(request, folder=Path(folder)))
            video = result.record.video
            video_bytes = (Path(folder) / Path(video).name).read_bytes() if video else None
        return "finished", (result, video_bytes)
    except InputError as error:
        return refused_message(error)
    except Exception:
        return "error", traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.lru_cache(maxsize=1)
def _cached_episode_worker(reference: Any) -> tuple[EpisodeWorker, float]:
    """Return this process's worker, built from the referenced setup, and the time limit of an episode."""
    import ray

    setup: NodeSetup = ray.get(reference)
    os.environ.update(setup.environment)
    here = setup.fingerprint()
    different = [
        line for line in differences(setup.expected, here) if line.split(":")[0] not in IGNORED_FINGERPRINT_FIELDS
    ]
    if different:
        raise InputError(
            f"node {socket.gethostname()}",
            got="; ".join(different),
            expected="the head's environment (the first value of each pair)",
            fix="Install the same versions on all machines: uv sync.",
        )
    with _checkpoint(setup) as folder:
        return EpisodeWorker(setup.make_env, setup.make_actor.with_folder(Path(folder))()), setup.episode_seconds


def _checkpoint(setup: NodeSetup) -> AbstractContextManager[Path | str]:
    """Return a context that yields the checkpoint's folder: a shared one, or a temporary copy of the head's files."""
    folder = setup.make_actor.folder
    if folder.is_dir() and folder_digest(folder) == setup.digest:
        return nullcontext(folder)
    if setup.files is None:
        raise InputError(
            f"checkpoint on node {socket.gethostname()}",
            got=f"no such files in {folder}",
            expected=f"the head's files, which are too large to send (more than {MAX_TRANSFER_BYTES / 2**30:.0f} GiB)",
            fix="Put the checkpoint on a disk that all machines see under the same path.",
        )
    copy = tempfile.TemporaryDirectory()
    for name, content in setup.files.items():
        path = Path(copy.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return copy


def folder_digest(folder: Path) -> str:
    """Return one sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in _paths(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def with_checkpoint_files(setup: NodeSetup, *, send: bool = True) -> NodeSetup:
    """Return a setup with the checkpoint's digest, and with its files if `send` is set and they are not too large."""
    folder = setup.make_actor.folder
    paths = _paths(folder)
    files = None
    if send and sum(path.stat().st_size for path in paths) <= MAX_TRANSFER_BYTES:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return replace(setup, digest=folder_digest(folder), files=files)


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
