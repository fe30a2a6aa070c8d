"""The same episodes on the machines of a Ray cluster: Ray places them, this file keeps count.

A node gets the checkpoint from the head unless it sees the same files under the same path, and is refused when its
packages, its renderer or its worlds are others than the head's. Episodes whose node is lost are run again, as often as
that takes; whatever else goes wrong is tried twice, as on one machine. The run folder lies with the driver alone.
"""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError, WorldError
from .episode import Actor
from .fingerprint import differences
from .pool import ATTEMPTS, ONE_THREAD, raise_from_process
from .records import Job, error_record
from .worker import Finished, MakeEnv, Order, Player

LOSSES = 10
"""How often an episode may lose its node before it is recorded as an error."""

SHIPPED_BYTES = 2 * 2**30
"""What a checkpoint may weigh to be sent to the nodes; a larger one belongs on a disk that all of them see."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Memory for what Ray passes around on one machine: a small checkpoint, and films."""

SILENCE_SECONDS = 10
"""How long the head may not answer before it is given up: Ray itself would end this process after a minute."""

MAY_DIFFER = ("processor", "cores")
"""What of the fingerprint may differ between machines: the last bits of a result may do so, too."""


class PortableActors(Protocol):
    """An actor factory that can be told where its checkpoint lies."""

    folder: Path

    def __call__(self) -> Actor: ...

    def at(self, folder: Path) -> PortableActors: ...


@dataclass(frozen=True)
class Setup:
    """What every node needs; `fingerprint` is called there and compared with `expected`, the head's.

    `files` are the checkpoint's, by name, or None where it is too large to be sent; `digest` is `folder_digest`'s.
    """

    make_env: MakeEnv
    make_actor: PortableActors
    fingerprint: Callable[[], Mapping[str, Any]]
    expected: Mapping[str, Any]
    digest: str
    files: Mapping[str, bytes] | None
    environment: Mapping[str, str]
    episode_seconds: float


@dataclass(frozen=True)
class ClusterOptions:
    """A Ray cluster: `address` is its head's, as host:port, or `local` for one of this machine with `cpus` CPUs.

    On a cluster an episode takes a CPU, or with `gpu` a GPU, so that one holds one policy.
    """

    address: str
    cpus: int
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.address != "local" and not _host_and_port(self.address):
            raise InputError(
                "cluster",
                got=repr(self.address),
                expected="'local', or the head's host:port",
                fix="`ray status` tells the address; the port is 6379 unless it was chosen.",
            )


class ClusterPool:
    """Runs jobs on a Ray cluster, as many at once as it has room for; `order` turns a job into what a node is sent.

    `out` is where films go. `lost` counts the episodes that lost their node and were run again. Raises InputError
    without Ray, and for an address where no cluster answers.
    """

    def __init__(
        self,
        options: ClusterOptions,
        make_env: MakeEnv,
        make_actor: PortableActors,
        fingerprint: Callable[[], Mapping[str, Any]],
        expected: Mapping[str, Any],
        out: Path,
        jobs: Sequence[Job],
        order: Callable[[Job], Order],
        *,
        episode_seconds: float = 600.0,
    ) -> None:
        self._options, self._out, self._order = options, out, order
        self._waiting = [(job, 1) for job in jobs]
        self._losses: dict[str, int] = {}
        self._running: dict[Any, tuple[Job, int]] = {}
        self._silent = 0
        self._ray: Any = None
        if not jobs:
            return
        self._ray = _connect(options)
        setup = Setup(
            make_env,
            make_actor,
            fingerprint,
            expected,
            folder_digest(make_actor.folder),
            _files(make_actor.folder),
            ONE_THREAD,
            episode_seconds,
        )
        self._setup = self._ray.put(setup)
        resources = {"num_gpus": 1} if options.gpu else {}
        self._play = self._ray.remote(num_cpus=1, max_retries=0, **resources)(play)

    @property
    def lost(self) -> int:
        return sum(self._losses.values())

    def run(self) -> Iterator[Finished]:
        """Yield what came of every job, as they finish; raises WorldError when the cluster is gone."""
        while self._waiting or self._running:
            self._require_head()
            while self._waiting and len(self._running) < self._room():
                job, attempt = self._waiting.pop(0)
                ref = self._play.remote([self._setup], replace(self._order(job), folder=None))
                self._running[ref] = (job, attempt)
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
            for ref in done:
                finished = self._settle(ref, *self._running.pop(ref))
                if finished is not None:
                    yield finished

    def close(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()

    def _room(self) -> int:
        """Return how many episodes the cluster has room for now; nodes may come and go."""
        kind = "GPU" if self._options.gpu else "CPU"
        room = int(self._ray.cluster_resources().get(kind, 0))
        if room < 1 and not self._running:
            raise WorldError(f"cluster {self._options.address}: got no {kind}, expected at least one.")
        return max(room, 1)

    def _settle(self, ref: Any, job: Job, attempt: int) -> Finished | None:
        """Return what came of a job, or put it back."""
        errors = self._ray.exceptions
        try:
            kind, *content = self._ray.get(ref)
        except errors.NodeDiedError as error:
            self._losses[job.key] = self._losses.get(job.key, 0) + 1
            if self._losses[job.key] > LOSSES:
                return Finished(error_record(job, f"lost {LOSSES} nodes; the last: {_first_line(error)}", attempt))
            self._waiting.insert(0, (job, attempt))
            return None
        except errors.RayTaskError as error:
            # What the task itself catches comes back as a value: this is a node that cannot even begin.
            raise WorldError(f"a node could not start: {_first_line(error.cause or error)}.") from error
        except errors.RayError as error:
            reason = f"the worker died, or took longer than allowed: {_first_line(error)}"
            return self._again(job, attempt, reason)
        raise_from_process(kind, content, "a node")
        if kind == "error":
            return self._again(job, attempt, content[0].strip())
        finished, film = content
        if film is not None:
            path = self._out / finished.record.video
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(film)
        return replace(finished, record=replace(finished.record, attempts=attempt))

    def _again(self, job: Job, attempt: int, reason: str) -> Finished | None:
        if attempt >= ATTEMPTS:
            return Finished(error_record(job, reason, attempt))
        self._waiting.append((job, attempt + 1))
        return None

    def _require_head(self) -> None:
        address = self._ray.get_runtime_context().gcs_address
        self._silent = 0 if _answers(address, seconds=1.0) else self._silent + 1
        if self._silent >= SILENCE_SECONDS:
            raise WorldError(
                f"cluster {address}: the head does not answer any more. The episodes that finished are recorded: "
                "start the cluster again, and repeat the command with --resume."
            )


def _connect(options: ClusterOptions) -> Any:
    """Return Ray, connected; nothing is reported to anybody, and no page is served."""
    # Read when Ray is imported. The second has it stay on the loopback interface, on Linux, too, if it starts here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if options.address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    elif not _answers(options.address, seconds=5.0):
        raise InputError(
            "cluster",
            got=f"{options.address}, where nobody answers",
            expected="the head of a running Ray cluster",
            fix="Start one with `ray start --head`, or use --cluster local.",
        )
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "cluster", got="no Ray", expected="the extra 'cluster'", fix="Install it: uv sync --extra cluster."
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if options.address == "local":
            ray.init(
                address="local",
                num_cpus=options.cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=options.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise WorldError(
            f"cluster {options.address}: {_first_line(error)}. Run this on a machine of the cluster, with its Ray."
        ) from error
    return ray


def play(setup: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """Run one episode in a process of a node, and return what a worker would send, with the film's bytes.

    `setup` holds the reference to a Setup: the world and the actor are kept for the process's next episode.
    """
    try:
        player, seconds = _player(setup[0])
    except InputError as error:
        return "refused", error.what, str(error.got), str(error.expected), error.fix
    except Exception:
        return "broken", traceback.format_exc()
    # Ends the process whatever it hangs in: its timer needs neither the interpreter nor Ray.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            finished = player.run(replace(order, folder=Path(folder)))
            video = finished.record.video
            film = (Path(folder) / Path(video).name).read_bytes() if video else None
        return "finished", finished, film
    except InputError as error:
        return "refused", error.what, str(error.got), str(error.expected), error.fix
    except Exception:
        return "error", traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.lru_cache(maxsize=1)
def _player(reference: Any) -> tuple[Player, float]:
    """Return this process's player, built for the setup that a reference names, and how long an episode may take."""
    import ray

    setup: Setup = ray.get(reference)
    os.environ.update(setup.environment)
    here = setup.fingerprint()
    other = [line for line in differences(setup.expected, here) if line.split(":")[0] not in MAY_DIFFER]
    if other:
        raise InputError(
            f"node {socket.gethostname()}",
            got="; ".join(other),
            expected="the head's environment (named first)",
            fix="Install the same versions on all machines: uv sync.",
        )
    with _checkpoint(setup) as folder:
        return Player(setup.make_env, setup.make_actor.at(Path(folder))()), setup.episode_seconds


def _checkpoint(setup: Setup) -> Any:
    """Return a context that gives the checkpoint's folder: one that all machines see, or a copy of the head's."""
    folder = setup.make_actor.folder
    if folder.is_dir() and folder_digest(folder) == setup.digest:
        return nullcontext(folder)
    if setup.files is None:
        raise InputError(
            f"checkpoint on node {socket.gethostname()}",
            got=f"no such files in {folder}",
            expected=f"the head's, which are too large to be sent (more than {SHIPPED_BYTES / 2**30:.0f} GiB)",
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


def _files(folder: Path) -> dict[str, bytes] | None:
    paths = _paths(folder)
    if sum(path.stat().st_size for path in paths) > SHIPPED_BYTES:
        return None
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and "/" not in host and port.isdigit() and 0 < int(port) < 65536 else None


def _answers(address: str, seconds: float) -> bool:
    try:
        with socket.create_connection(_host_and_port(address) or ("", 0), timeout=seconds):
            return True
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
