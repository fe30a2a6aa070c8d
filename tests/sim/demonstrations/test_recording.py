"""Recording of a dataset: LeRobot reads it, bytes are reproducible, and invalid episodes are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saccade.errors import InputError, WorldError
from saccade.policy.contract import ActionSpec, CameraSpec, Offer, StateSpec
from saccade.sim.demonstrations import dataset_writer
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import (
    RecordedEpisode,
    camera_statistics,
    encode_video,
    frame_rate,
    stage_episode,
)

NAMES = ("a.pos", "b.pos", "c.pos")
OFFER = Offer(
    cameras=(CameraSpec(name="front", height=48, width=64), CameraSpec(name="wrist", height=48, width=64)),
    state=StateSpec(names=NAMES, units=("degrees",) * 3),
    action=ActionSpec(names=NAMES, units=("degrees",) * 3, kind="absolute", frame="joint"),
    control_hz=30.0,
)


def make_episode(seed: int, frames: int) -> RecordedEpisode:
    generator = np.random.default_rng(seed)

    def random_frames() -> np.ndarray:
        images = np.tile(np.linspace(0, 200, 64, dtype=np.uint8)[None, None, :, None], (frames, 48, 1, 3)).copy()
        for frame in range(frames):
            images[frame, 10:22, frame % 50 : frame % 50 + 12] = generator.integers(0, 255, 3)
        return images

    def column(width: int) -> np.ndarray:
        return generator.normal(seed, 1, (frames, width)).astype(np.float32)

    return RecordedEpisode(
        {"front": random_frames(), "wrist": random_frames()}, column(3), column(3), column(14), f"do thing {seed % 2}"
    )


def write(folder, episodes):
    folder.mkdir()
    for number, episode in enumerate(episodes):
        stage_episode(folder / f"{number}.npz", episode, OFFER)
    paths = [folder / f"{number}.npz" for number in range(len(episodes))]
    return write_dataset(folder / "dataset", OFFER, paths, robot_type="toy"), folder / "dataset"


@pytest.mark.parametrize("video_bytes", [200 * 2**20, 20_000])
def test_lerobot_reads_the_recorded_dataset(tmp_path, monkeypatch, video_bytes):
    from lerobot.datasets import LeRobotDataset

    monkeypatch.setattr(dataset_writer, "VIDEO_FILE_BYTES", video_bytes)
    monkeypatch.setattr(dataset_writer, "DATA_FILE_BYTES", 3000 if video_bytes < 2**20 else 2**20)
    episodes = [make_episode(seed, frames) for seed, frames in enumerate((40, 3, 55, 31, 2))]
    frames, root = write(tmp_path / "one", episodes)
    dataset = LeRobotDataset("local/one", root=root, video_backend="pyav", return_uint8=True)
    assert len(dataset) == frames == 131
    assert dataset.num_episodes == 5
    assert len(list(root.glob("videos/*/*/*.mp4"))) == (2 if video_bytes > 2**20 else len(list(root.rglob("*.mp4"))))
    if video_bytes < 2**20:
        assert len(list(root.rglob("*.mp4"))) > 2
        assert len(list((root / "data").rglob("*.parquet"))) > 1
    index = 0
    for number, episode in enumerate(episodes):
        for frame in range(len(episode.state)):
            item = dataset[index]
            assert (int(item["episode_index"]), int(item["frame_index"])) == (number, frame)
            assert item["task"] == episode.instruction
            np.testing.assert_array_equal(item["observation.state"], episode.state[frame])
            np.testing.assert_array_equal(item["action"], episode.action[frame])
            np.testing.assert_array_equal(item["grounding"], episode.grounding[frame])
            for camera in ("front", "wrist"):
                seen = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy().astype(int)
                assert np.abs(seen - episode.images[camera][frame]).mean() < 3
            index += 1
    assert dataset.meta.features["observation.state"]["names"] == list(NAMES)
    assert dataset.meta.stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    assert Offer.from_json((root / "meta" / "offer.json").read_text()) == OFFER


def test_same_episodes_give_the_same_bytes(tmp_path):
    trees = []
    for name in ("one", "two"):
        _, root = write(tmp_path / name, [make_episode(seed, 20) for seed in range(2)])
        trees.append({p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()})
    assert trees[0] == trees[1]


def test_video_keeps_colours():
    import io

    import av

    frames = np.full((8, 48, 64, 3), 128, dtype=np.uint8)
    frames[:, ::2] = (220, 30, 30)  # lines of one pixel: chroma subsampling would blend them
    video = encode_video(frames, 30)
    with av.open(io.BytesIO(video)) as container:
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(seen.astype(int) - frames).max() < 12


def test_camera_statistics_agree_with_numpy():
    frames = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    rows = camera_statistics(frames)
    pixels = frames.reshape(-1, 3) / 255.0
    for name, expected in (("mean", pixels.mean(0)), ("std", pixels.std(0)), ("min", pixels.min(0))):
        np.testing.assert_allclose(np.array(rows[name])[:, 0, 0], expected, atol=1e-9)
    np.testing.assert_allclose(np.array(rows["q90"])[:, 0, 0], np.quantile(pixels, 0.9, axis=0), atol=2 / 255)
    assert json.dumps(rows)


def test_non_finite_numbers_and_unequal_lengths_are_refused():
    episode = make_episode(0, 4)
    episode.action[2, 1] = np.nan
    with pytest.raises(WorldError, match="action"):
        RecordedEpisode(episode.images, episode.state, episode.action, episode.grounding, "x")
    with pytest.raises(WorldError, match="length"):
        RecordedEpisode(episode.images, episode.state[:2], episode.state, episode.grounding, "x")


def test_episode_that_does_not_match_its_offer_is_refused(tmp_path):
    episode = make_episode(0, 4)
    narrow = RecordedEpisode(episode.images, episode.state, episode.action, episode.grounding[:, :6], "x")
    blind = RecordedEpisode({"front": episode.images["front"]}, episode.state, episode.action, episode.grounding, "x")
    for other in (narrow, blind):
        with pytest.raises(WorldError, match="does not match its offer"):
            stage_episode(tmp_path / "0.npz", other, OFFER)
    assert not list(tmp_path.iterdir())


def test_fractional_control_rate_is_refused():
    with pytest.raises(InputError, match="control_hz"):
        frame_rate(replace(OFFER, control_hz=12.5))
