"""Test LIBERO's HDF5 demonstrations: reading, dropping no-ops, refusing invalid files, and a replay."""

from __future__ import annotations

import os

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.libero.recordings.recordings import drop_no_ops, read_recording, recorded_task
from saccade.sim.libero.tasks import find_task

h5py = pytest.importorskip("h5py", reason="the extra libero is not installed")

TASK = find_task("libero_object", "0")
SCENE = (
    '<mujoco><worldbody><body name="bin_main" pos="1 2 3" quat="0 1 0 0"><body name="inner"/></body></worldbody>'
    "</mujoco>"
)


def write(path, demonstrations, *, problem: str = f"libero/libero/bddl_files/libero_object/{TASK.name}.bddl"):
    """Write demonstrations (start [D], actions [F, 7], scene) in LIBERO's layout."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = problem
        for number, (start, actions, scene) in enumerate(demonstrations):
            group = data.create_group(f"demo_{number}")
            group.create_dataset("actions", data=actions)
            group.create_dataset("states", data=np.tile(start, (len(actions), 1)))
            group.attrs["model_file"] = scene
    return path


def moves(*rows: float) -> np.ndarray:
    """Return an action for each number: its magnitude along x, with a closing gripper where it is negative."""
    return np.array([[abs(row), 0, 0, 0, 0, 0, 1 if row < 0 else -1] for row in rows], dtype=np.float64)


def test_file_is_read_with_its_task_and_sorted_demonstrations(tmp_path):
    starts = [np.full(5, float(number)) for number in range(11)]
    path = write(tmp_path / "a_demo.hdf5", [(start, moves(0.1, 0.2), SCENE) for start in starts])
    task, count = recorded_task(path)
    assert (task, count) == (TASK, 11)
    # Sorted by number, not by name: demo_10 comes last.
    recording = read_recording(path, 10)
    assert recording.start.tolist() == [10.0] * 5 and recording.actions.shape == (2, 7)
    position, quaternion = recording.bodies["bin_main"]
    assert position.tolist() == [1, 2, 3] and quaternion.tolist() == [0, 1, 0, 0]
    assert recording.bodies["inner"][1].tolist() == [1, 0, 0, 0]


def test_no_ops_are_dropped_but_gripper_changes_are_kept():
    actions = moves(0.0, 0.1, 0.0, 0.1, -0.00001, -0.00001, -0.2, 0.0)
    assert drop_no_ops(actions)[:, [0, 6]].tolist() == [[0.1, -1], [0.1, -1], [0.00001, 1], [0.2, 1], [0.0, -1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("data"), "a group data"),
        (lambda file: file["data"].attrs.update(bddl_file_name="x/KITCHEN_SCENE99_fly.bddl"), "LIBERO-90"),
        (lambda file: file["data"].pop("demo_0"), "no demonstrations"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    path = write(tmp_path / "a_demo.hdf5", [(np.zeros(5), moves(0.1), "")])
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        recorded_task(path)


def test_invalid_demonstrations_are_refused(tmp_path):
    nothing = np.full(5, np.nan)
    path = write(tmp_path / "a_demo.hdf5", [(nothing, moves(0.1), ""), (np.zeros(5), moves(0.1), "<mujoco>")])
    for number, message in ((0, "finite actions"), (1, "a scene as XML"), (2, "0 to 1")):
        with pytest.raises(InputError, match=message):
            read_recording(path, number)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/states"]
    with pytest.raises(InputError, match="no states"):
        read_recording(path, 0)
    path.write_bytes(b"not a file of that kind")
    with pytest.raises(InputError, match="no HDF5 file"):
        read_recording(path, 0)


@pytest.mark.slow
@pytest.mark.skipif("SACCADE_LIBERO_ASSETS" not in os.environ, reason="SACCADE_LIBERO_ASSETS names no assets of LIBERO")
def test_replay_repeats_the_actions_and_renders_new_images(tmp_path):
    from saccade.sim.demonstrations.attempt import Attempt, run_attempt
    from saccade.sim.libero.conventions import Conventions
    from saccade.sim.libero.demonstrator.demonstrator import LiberoDemonstrator
    from saccade.sim.libero.environment import LiberoEnv
    from saccade.sim.libero.recordings.replay import RecordedWorld

    small = Conventions(image_size=32)
    env = LiberoEnv(TASK.suite, TASK.name, conventions=small, visuals="fast")
    env.rendering_enabled = False
    env.reset(options={"initial_state": 1003})
    # The recording's fixtures have poses that no other initial state samples.
    flat = env.simulation.environment.sim.get_state().flatten()
    scene = env.simulation.environment.sim.model.get_xml()
    demonstrator, actions, success = LiberoDemonstrator(env, np.random.default_rng(0), noise=0.0), [], False
    while not success and len(actions) < 250:
        actions.append(demonstrator.decide()[0].astype(np.float64))
        success = env.step(actions[-1])[2]
        if len(actions) % 20 == 0:
            actions.append(np.array([0, 0, 0, 0, 0, 0, actions[-1][6]]))  # a no-op, which the replay drops
    assert success
    last = env.simulation.position(env.simulation.goal[0][1])
    env.close()
    path = write(tmp_path / f"{TASK.name}_demo.hdf5", [(flat, np.array(actions), scene)])

    world = RecordedWorld.from_files((path,), small, "fast", None)
    replayed = world.environment(TASK.suite, TASK.name)
    episode = run_attempt(world, replayed, Attempt(TASK.suite, TASK.name, 0, 0, 0, TASK.instruction))
    assert episode is not None
    moving = [action for number, action in enumerate(actions) if action[:6].any() or number == 0]
    assert len(episode.action) <= len(moving)
    np.testing.assert_allclose(episode.action[:20], np.array(moving[:20]), atol=1e-6)
    assert episode.images["agentview"].shape[1:] == (32, 32, 3) and episode.images["agentview"].std() > 5
    np.testing.assert_allclose(replayed.simulation.position(replayed.simulation.goal[0][1]), last, atol=0.03)
    replayed.close()
