"""An episode in a world that can leave out rendering: only the used images are rendered, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from saccade.sim.evaluation.records import episodes_that_differ
from saccade.sim.evaluation.runner import run_episode
from saccade.sim.perturbation.job import Job
from saccade.sim.video import poster
from saccade.sim.video_recorder import VideoRecorder
from saccade_testing.fake_world import FakeActor, FakeEnv


class RenderingEnv(FakeEnv):
    """Counts the observations that it renders; has no images while `rendering_enabled` is False."""

    rendering_enabled = True
    rendered = 0

    def _observation(self):
        observation = super()._observation()
        if not self.rendering_enabled:
            return {"agent_pos": observation["agent_pos"]}
        self.rendered += 1
        return observation


class ChunkActor(FakeActor):
    """Uses every third observation only."""

    def reset(self, instruction, seed):
        super().reset(instruction, seed)
        self.queue = []

    @property
    def pending(self):
        return len(self.queue)

    def act(self, observation):
        if not self.queue:
            assert observation["pixels"]["front"].shape == (16, 16, 3)
            self.queue = [super(ChunkActor, self).act(observation) for _ in range(3)]
        return self.queue.pop(0)


@pytest.mark.parametrize("state", [0, 1])
def test_only_observations_that_are_used_are_rendered(state):
    job, world = Job("fake", "reach", state, 7), RenderingEnv("reach")
    np.random.seed(0)
    record = run_episode(world, ChunkActor(), job)
    assert record.steps > 3
    # The first observation, and one for every three steps that another step follows.
    assert world.rendered == 1 + (record.steps - (record.outcome == "success")) // 3
    np.random.seed(0)
    always = run_episode(FakeEnv("reach"), ChunkActor(), job)
    assert episodes_that_differ([record], [always]) == ()


class StepRecorder:
    def __init__(self, stride):
        self.stride, self.observations = stride, []

    def __call__(self, observation, overlay):
        self.observations.append(observation)


def test_step_callback_gets_every_step():
    world, recorder = RenderingEnv("reach"), StepRecorder(1)
    record = run_episode(world, ChunkActor(), Job("fake", "reach", 1, 7), step_callback=recorder)
    assert len(recorder.observations) == record.steps + 1 == world.rendered
    assert all("pixels" in each for each in recorder.observations)


def test_strided_step_callback_gets_images_of_its_steps_only():
    world, recorder = RenderingEnv("reach"), StepRecorder(2)
    record = run_episode(world, ChunkActor(), Job("fake", "reach", 1, 7), step_callback=recorder)
    assert len(recorder.observations) == record.steps + 1 > world.rendered
    assert all("pixels" in each for each in recorder.observations[::2])


def test_video_ends_with_the_last_rendered_image(tmp_path):
    video_recorder = VideoRecorder()
    for shade in (0, 120, 240):
        video_recorder({"pixels": {"front": np.full((32, 32, 3), shade, dtype=np.uint8)}}, None)
    video_recorder({}, None)  # an odd step, whose image the video does not need
    video_recorder.save(tmp_path / "video.mp4", 30)
    assert np.asarray(poster(tmp_path / "video.mp4", 1.0)).mean() == pytest.approx(240, abs=6)


def test_actor_without_pending_actions_gets_every_image():
    world = RenderingEnv("reach")
    world.rendering_enabled = False  # as a previous episode may leave it
    record = run_episode(world, FakeActor(), Job("fake", "reach", 1, 7))
    assert world.rendered == record.steps + 1


def test_worker_modules_do_not_import_mujoco():
    modules = "saccade.sim.evaluation.worker, saccade.scripts.checkpoints.worker_policies"
    loaded = f"import sys, {modules}; print('mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
