"""A node's part in an evaluation on a cluster: its environment is checked, its checkpoint fetched, episodes run."""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError
from ..fingerprint import differences
from ..processes import refused_message
from .episode import Actor
from .worker import EnvFactory, EpisodeRequest, EpisodeWorker

MAX_TRANSFER_BYTES = 2 * 2**30
"""What a checkpoint may weigh to be sent to the nodes; a larger one belongs on a disk that all of them see."""

IGNORED_FINGERPRINT_FIELDS = ("processor", "cores")
"""What of the fingerprint may differ between machines: the last bits of a result may do so, too."""


class RelocatableActorFactory(Protocol):
    """An actor factory that can be told where its checkpoint lies."""

    folder: Path

    def __call__(self) -> Actor: ...

    def with_folder(self, folder: Path) -> RelocatableActorFactory: ...


@dataclass(frozen=True)
class NodeSetup:
    """What every node needs; `fingerprint` is called there and compared with `expected`, the head's.

    Once `with_checkpoint_files`: `digest` is `folder_digest`'s of the checkpoint, and `files` are its files by name, None where it is
    too large to be sent.
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
    """Run one episode in a process of a node, and return what a worker would send, with the film's bytes.

    `setup` holds the reference to a Setup: the world and the actor are kept for the process's next episode.
    """
    try:
        episode_worker, seconds = _cached_episode_worker(setup[0])
    except InputError as error:
        return refused_message(error)
    except Exception:
        return "broken", traceback.format_exc()
    # Ends the process whatever it hangs in: its timer needs neither the interpreter nor Ray.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            finished = episode_worker.run(replace(request, folder=Path(folder)))
            video = finished.record.video
            video_bytes = (Path(folder) / Path(video).name).read_bytes() if video else None
        return "finished", (finished, video_bytes)
    except InputError as error:
        return refused_message(error)
    except Exception:
        return "error", traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.lru_cache(maxsize=1)
def _cached_episode_worker(reference: Any) -> tuple[EpisodeWorker, float]:
    """Return this process's player, built for the setup that a reference names, and how long an episode may take."""
    import ray

    setup: NodeSetup = ray.get(reference)
    os.environ.update(setup.environment)
    here = setup.fingerprint()
    other = [line for line in differences(setup.expected, here) if line.split(":")[0] not in IGNORED_FINGERPRINT_FIELDS]
    if other:
        raise InputError(
            f"node {socket.gethostname()}",
            got="; ".join(other),
            expected="the head's environment (named first)",
            fix="Install the same versions on all machines: uv sync.",
        )
    with _checkpoint(setup) as folder:
        return EpisodeWorker(setup.make_env, setup.make_actor.with_folder(Path(folder))()), setup.episode_seconds


def _checkpoint(setup: NodeSetup) -> Any:
    """Return a context that gives the checkpoint's folder: one that all machines see, or a copy of the head's."""
    folder = setup.make_actor.folder
    if folder.is_dir() and folder_digest(folder) == setup.digest:
        return nullcontext(folder)
    if setup.files is None:
        raise InputError(
            f"checkpoint on node {socket.gethostname()}",
            got=f"no such files in {folder}",
            expected=f"the head's, which are too large to be sent (more than {MAX_TRANSFER_BYTES / 2**30:.0f} GiB)",
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
    """Return a setup with the checkpoint's digest, and its files, unless not to be sent or too large."""
    folder = setup.make_actor.folder
    paths = _paths(folder)
    files = None
    if send and sum(path.stat().st_size for path in paths) <= MAX_TRANSFER_BYTES:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return replace(setup, digest=folder_digest(folder), files=files)


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
