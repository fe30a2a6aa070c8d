import shutil

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.datasets.columns import read_columns
from saccade.training import frames
from saccade.training.frames import default_cache_folder, open_frames


@pytest.fixture
def columns(demonstrations):
    return read_columns(demonstrations[0])


def opened(columns, folder, **options):
    return open_frames(columns, cache_folder=folder, progress=False, **options)


def test_frames_equal_those_that_lerobot_decodes(columns, tmp_path, monkeypatch):
    from lerobot.datasets import LeRobotDataset

    monkeypatch.setattr(frames, "EPISODES_PER_TASK", 1)
    cache = opened(columns, tmp_path)
    assert cache.shape == (78, 2, 32, 32, 3) and cache.dtype == np.uint8
    dataset = LeRobotDataset("local/x", root=columns.root, video_backend="pyav", return_uint8=True)
    for index in range(78):
        item = dataset[index]
        expected = np.stack([item[key].permute(1, 2, 0).numpy() for key in columns.camera_keys])
        np.testing.assert_array_equal(cache[index], expected)


def test_the_second_opening_decodes_nothing(columns, tmp_path, monkeypatch):
    first = np.array(opened(columns, tmp_path))
    monkeypatch.setattr(frames, "_decode", None)
    second = opened(columns, tmp_path)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


@pytest.mark.parametrize("kept", [0, 60, 5000])
def test_a_truncated_cache_is_decoded_again(columns, tmp_path, kept):
    first = np.array(opened(columns, tmp_path))
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:kept])
    path.with_suffix(".tmp").write_bytes(b"left by a kill")
    np.testing.assert_array_equal(opened(columns, tmp_path), first)
    assert not list(tmp_path.glob("*.tmp"))


def test_another_size_has_another_cache_file(columns, tmp_path):
    whole, half = opened(columns, tmp_path), opened(columns, tmp_path, image_size=16)
    assert half.shape == (78, 2, 16, 16, 3)
    average = np.array(whole, dtype=float).reshape(78, 2, 16, 2, 16, 2, 3).mean((3, 5))
    assert np.abs(average - half).max() < 2
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_damaged_and_missing_videos_are_refused(columns, tmp_path):
    (tmp_path / "cache").mkdir()
    for number, damage in enumerate((lambda path: path.unlink(), lambda path: path.write_bytes(b"none"), _truncate)):
        copy = tmp_path / str(number)
        shutil.copytree(columns.root, copy)
        damage(next((copy / "videos/observation.images.wrist").rglob("*.mp4")))
        with pytest.raises(InputError, match="observation.images.wrist|of 78 frames"):
            opened(read_columns(copy), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.tmp"))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def test_a_full_disk_is_reported_before_decoding(columns, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="free"):
        opened(columns, tmp_path)


def test_images_in_the_data_files_are_read(columns, tmp_path):
    """A dataset whose frames are PNG images instead of video, written by LeRobot."""
    from lerobot.datasets import LeRobotDataset

    features = {
        key: {**{name: feature[name] for name in ("shape", "names")}, "dtype": "image"}
        if key in columns.camera_keys
        else feature
        for key, feature in columns.features.items()
        if key in (*columns.camera_keys, "observation.state", "action")
    }
    dataset = LeRobotDataset.create("local/i", 30, features, root=tmp_path / "images", use_videos=False)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 2, 32, 32, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        vector = np.zeros(3, dtype=np.float32)
        cameras = dict(zip(columns.camera_keys, picture, strict=True))
        dataset.add_frame({**cameras, "observation.state": vector, "action": vector, "task": "look"})
        if number in (2, 6):
            dataset.save_episode()
    dataset.finalize()
    np.testing.assert_array_equal(opened(read_columns(tmp_path / "images"), tmp_path), pictures)


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path / "frames"
