"""Collection of demonstrations: resumable, reproducible, and safe for existing data."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from saccade.errors import InputError, WorldError
from saccade.sim.demonstrations import collection
from saccade.sim.demonstrations.collection import CollectedTask, CollectionRequest, collect, plan_attempt
from saccade_testing import SUPPORT
from saccade_testing.toy_world import REQUEST, ToyWorld


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return collect(REQUEST, ToyWorld(), tmp_path_factory.mktemp("whole") / "toy", workers=2, progress=False)


def test_only_successes_are_kept_and_failures_counted(uninterrupted):
    import pandas as pd

    # Of the initial states 1000, 1001, ... those that end in 3 or 8 cannot succeed.
    assert [(count.task, count.successes, count.failures) for count in uninterrupted.tasks] == [
        ("near", 6, 1),
        ("far", 6, 1),
    ]
    assert uninterrupted.episodes == 12
    frames = pd.concat(map(pd.read_parquet, sorted((uninterrupted.root / "data").rglob("*.parquet"))))
    assert len(frames) == uninterrupted.frames
    assert sorted(frames["episode_index"].unique()) == list(range(12))
    assert not uninterrupted.root.with_name("toy.partial").exists()
    assert set(pd.read_parquet(uninterrupted.root / "meta/tasks.parquet").index) <= {
        sentence for task in REQUEST.tasks for sentence in task.instructions
    }


def test_killed_and_resumed_collection_gives_the_same_dataset(tmp_path, uninterrupted):
    out = tmp_path / "toy"
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "from saccade_testing.toy_world import REQUEST, ToyWorld\n"
        "from saccade.sim.demonstrations.collection import collect\n"
        f"if __name__ == '__main__': collect(REQUEST, ToyWorld(delay=0.02), Path({str(out)!r}), workers=3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    process = subprocess.Popen([sys.executable, str(program)], env=environment, stderr=subprocess.DEVNULL)
    staging = tmp_path / "toy.partial"
    deadline = time.monotonic() + 60
    while len(list(staging.glob("*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # the workers notice the death of their parent and exit
    left = len(list(staging.glob("*.npz")))
    assert 3 <= left < 12
    time.sleep(1.0)
    assert len(list(staging.glob("*.npz"))) == left, "orphaned workers must exit"
    assert not out.exists()
    (staging / ".toy.near.000005.npz.partial").write_bytes(b"half an episode")

    with pytest.raises(InputError, match="--resume"):
        collect(REQUEST, ToyWorld(), out, progress=False)
    with pytest.raises(InputError, match="seed"):
        collect(replace(REQUEST, seed=4), ToyWorld(), out, resume=True, progress=False)
    building = tmp_path / "toy.building"
    (building / "data").mkdir(parents=True)
    (building / "data" / "half").write_bytes(b"half a dataset")
    summary = collect(REQUEST, ToyWorld(), out, workers=1, resume=True, progress=False)
    assert tree(out) == tree(uninterrupted.root)
    assert summary.tasks == uninterrupted.tasks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py", "toy"]


def test_finished_dataset_is_not_overwritten_unasked(tmp_path, uninterrupted):
    before = tree(uninterrupted.root)
    with pytest.raises(InputError, match="--overwrite"):
        collect(REQUEST, ToyWorld(), uninterrupted.root, progress=False)
    again = collect(REQUEST, ToyWorld(), uninterrupted.root, resume=True, progress=False)
    assert again.already_complete and again.tasks == uninterrupted.tasks
    with pytest.raises(InputError, match="episodes"):
        collect(replace(REQUEST, episodes=7), ToyWorld(), uninterrupted.root, resume=True, progress=False)
    with pytest.raises(WorldError, match="the toy broke"):
        broken = replace(REQUEST, first_initial_state=6666)
        collect(broken, ToyWorld(), uninterrupted.root, overwrite=True, progress=False)
    assert tree(uninterrupted.root) == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="another --out"):
        collect(REQUEST, ToyWorld(), notes, overwrite=True, progress=False)
    assert (notes / "diary.txt").read_text() == "mine"


def test_overwrite_replaces_the_dataset(tmp_path):
    out, small = tmp_path / "toy", replace(REQUEST, episodes=1)
    collect(small, ToyWorld(), out, workers=1, progress=False)
    finished = []
    summary = collect(
        replace(small, seed=9), ToyWorld(), out, workers=1, overwrite=True, finish=finished.append, progress=False
    )
    assert summary.episodes == 2 and not summary.already_complete
    assert finished == [tmp_path / "toy.building"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_full_disk_keeps_staged_episodes(tmp_path, monkeypatch, uninterrupted):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(collection, "write_dataset", full)
        with pytest.raises(InputError, match="No space left on device.*--resume"):
            collect(REQUEST, ToyWorld(), tmp_path / "toy", progress=False)
    staged = tmp_path / "toy.partial"
    assert len(list(staged.glob("*.npz"))) == 12
    collect(REQUEST, ToyWorld(), tmp_path / "toy", resume=True, progress=False)
    assert tree(tmp_path / "toy") == tree(uninterrupted.root)


def test_dead_worker_is_a_world_error(tmp_path):
    with pytest.raises(WorldError, match="--resume"):
        collect(replace(REQUEST, first_initial_state=7777), ToyWorld(), tmp_path / "toy", progress=False)


def test_demonstrator_that_never_succeeds_is_a_world_error(tmp_path):
    unsolvable = CollectionRequest(REQUEST.tasks[:1], episodes=1, first_initial_state=1003, attempts_per_episode=1)
    with pytest.raises(WorldError, match="toy/near"):
        collect(unsolvable, ToyWorld(), tmp_path / "toy", workers=1, progress=False)


@pytest.mark.parametrize("change", [{"episodes": 0}, {"tasks": ()}, {"seed": -1}, {"tasks": REQUEST.tasks[:1] * 2}])
def test_invalid_request_is_refused(change):
    with pytest.raises(InputError):
        replace(REQUEST, **change)


def test_each_recording_is_replayed_once_and_successes_are_kept(tmp_path):
    task = CollectedTask("toy", "near", ("go",), recordings=6)
    request = CollectionRequest((task,), episodes=1, first_initial_state=0)
    summary = collect(request, ToyWorld(), tmp_path / "toy", workers=1, progress=False)
    assert [(count.successes, count.failures) for count in summary.tasks] == [(5, 1)]
    lost = replace(request, tasks=(replace(task, recordings=1),), first_initial_state=3)
    with pytest.raises(WorldError, match="none of the 1 recordings of toy/near succeeds"):
        collect(lost, ToyWorld(), tmp_path / "lost", workers=1, progress=False)


def test_attempts_depend_on_the_request_alone():
    task = REQUEST.tasks[0]
    first = [plan_attempt(REQUEST, task, number) for number in range(20)]
    assert first == [plan_attempt(REQUEST, task, number) for number in range(20)]
    assert {attempt.instruction for attempt in first} == set(task.instructions)
    assert len({attempt.seed for attempt in first}) == 20
    assert [attempt.initial_state for attempt in first[:3]] == [1000, 1001, 1002]
