import json
import shutil

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.datasets.columns import dataset_fingerprint, read_columns
from saccade.training.dataset import DemonstrationDataset


def opened(roots, folder, chunk=8):
    return DemonstrationDataset(roots, chunk, cache_folder=folder, progress=False)


def test_items_equal_those_of_lerobot(demonstrations, tmp_path):
    from lerobot.datasets import LeRobotDataset

    root, _ = demonstrations
    times = {"action": [step / 30 for step in range(8)]}
    theirs = LeRobotDataset("local/x", root=root, delta_timestamps=times, video_backend="pyav", return_uint8=True)
    ours = opened(root, tmp_path)
    assert len(ours) == len(theirs) == 78
    for index in range(78):
        item, expected = ours[index], theirs[index]
        assert torch.equal(item["images"], torch.stack([expected[key] for key in ours.camera_keys]))
        assert torch.equal(item["state"], expected["observation.state"])
        assert torch.equal(item["action"], expected["action"])
        assert torch.equal(item["action_is_pad"], expected["action_is_pad"])
        assert torch.equal(item["grounding"], expected["grounding"])
        assert item["task"] == expected["task"] == ours.instructions[item["instruction"]]
        assert ours.episode[index] == expected["episode_index"]


def test_a_batch_equals_its_items_and_a_loader_returns_batches(demonstrations, tmp_path):
    dataset = opened(demonstrations[0], tmp_path)
    indices = [77, 0, 39, 40, 3]
    batch = dataset.batch(indices)
    for place, index in enumerate(indices):
        for key, value in batch.items():
            assert torch.equal(value[place], dataset[index][key]), key
    assert batch["images"].shape == (5, 2, 3, 32, 32) and batch["images"].dtype == torch.uint8
    assert batch["images"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, sampler=indices, collate_fn=dataset.collate)
    (loaded,) = loader
    assert all(torch.equal(loaded[key], batch[key]) for key in batch)
    assert torch.equal(dataset[-1]["index"], torch.tensor(77))
    with pytest.raises(IndexError):
        dataset[78]


def test_several_datasets_are_concatenated(make_dataset, demonstrations, tmp_path):
    second, _episodes = make_dataset((4, 6), seed=1)
    both = opened([demonstrations[0], second], tmp_path)
    one, two = opened(demonstrations[0], tmp_path), opened(second, tmp_path)
    assert len(both) == 88
    assert both.instructions == ("task 0 of 0", "task 1 of 0", "task 0 of 1", "task 1 of 1")
    batch = both.batch([77, 78, 87, 5])
    for place, (source, index) in enumerate(((one, 77), (two, 0), (two, 9), (one, 5))):
        item = source[index]
        for key in ("images", "state", "action", "action_is_pad", "grounding"):
            assert torch.equal(batch[key][place], item[key])
        assert both.instructions[batch["instruction"][place]] == item["task"]
    assert not batch["action_is_pad"][0, 0] and batch["action_is_pad"][0, 1:].all()
    np.testing.assert_array_equal(both.episode_ends, [40, 45, 78, 82, 88])
    chunks, valid = both.chunks()
    np.testing.assert_array_equal(chunks[87], batch["action"][2])
    assert valid.sum() == (~both.batch(range(88))["action_is_pad"]).sum()
    assert both.fingerprint == f"{one.fingerprint}+{two.fingerprint}"


def test_datasets_that_do_not_fit_together_are_refused(make_dataset, demonstrations, tmp_path):
    for options, problem in (({"rate": 15.0}, "fps 15"), ({"cameras": ("front",)}, "cameras"), ({"size": 16}, "shape")):
        other, _ = make_dataset((3,), **options)
        with pytest.raises(InputError, match=problem):
            opened([demonstrations[0], other], tmp_path)


def _remove(name):
    return lambda root: (root / name).unlink()


def _cut_data(root):
    path = root / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-300])


def _change_info(**changes):
    def change(root):
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (shutil.rmtree, "no such folder"),
        (_remove("meta/info.json"), "no meta/info.json"),
        (_remove("meta/tasks.parquet"), "tasks.parquet"),
        (_remove("meta/episodes/chunk-000/file-000.parquet"), "meta/episodes"),
        (_remove("data/chunk-000/file-000.parquet"), "data/"),
        (lambda root: (root / "meta/info.json").write_text("{"), "unreadable"),
        (lambda root: (root / "meta/info.json").write_text("[]"), "unreadable"),
        (_cut_data, "damaged data/chunk-000/file-000.parquet"),
        (_change_info(codebase_version="v2.1"), "v2.1"),
        (_change_info(total_frames=79), "78 frames"),
        (_change_info(total_episodes=4), "3 episodes"),
        (_change_info(features={"lidar": {"dtype": "float32", "shape": [4]}}), "lidar"),
    ],
)
def test_missing_truncated_and_foreign_datasets_are_refused(demonstrations, tmp_path, damage, problem):
    root = tmp_path / "copy"
    shutil.copytree(demonstrations[0], root)
    damage(root)
    with pytest.raises(InputError) as caught:
        opened(root, tmp_path)
    assert problem in str(caught.value) and str(root) in str(caught.value) and "\n" not in str(caught.value)


def test_the_fingerprint_changes_with_the_content(demonstrations, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(demonstrations[0], root)
    fingerprint = dataset_fingerprint(root)
    assert fingerprint == dataset_fingerprint(demonstrations[0]) == read_columns(root).fingerprint
    video = next(root.rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    assert dataset_fingerprint(root) != fingerprint


def test_a_chunk_below_one_is_refused(demonstrations, tmp_path):
    with pytest.raises(InputError, match="chunk"):
        opened(demonstrations[0], tmp_path, chunk=0)
