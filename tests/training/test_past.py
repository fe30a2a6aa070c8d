"""Past frames in batches for policies with history: of the same episode, each once, shared by runs."""

import dataclasses

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.training.configuration import LoopConfig
from saccade.training.dataset import DemonstrationDataset

HISTORY, APART = 4, 3


@pytest.fixture
def dataset(demonstrations, tmp_path):
    """Episodes of 40, 5 and 33 frames."""
    return DemonstrationDataset(demonstrations[0], 8, cache_folder=tmp_path, progress=False)


def frames_of(batch):
    return torch.cat([batch["images"], batch["past_images"]])


def test_without_history_there_are_no_past_frames(dataset):
    assert not any(key.startswith("past") for key in dataset.batch([3]))


def test_every_row_has_past_frames_of_its_episode_only(dataset):
    dataset.set_history(HISTORY, APART)
    generator = np.random.default_rng(0)
    for _ in range(20):
        indices = generator.integers(0, 78, 9)
        batch = dataset.batch(indices)
        seen = frames_of(batch)
        for row, index in enumerate(indices):
            for number, place in enumerate(batch["past_place"][row].tolist()):
                back = index - APART * (number + 1)
                if back < dataset.starts[index]:
                    assert place == -1
                else:
                    assert dataset.episode[back] == dataset.episode[index]
                    assert np.array_equal(seen[place].permute(0, 2, 3, 1), dataset.images(np.array([back]))[0])
        # Each frame once, with a row of its episode, and only remembered frames.
        used = batch["past_place"][batch["past_place"] >= len(indices)]
        assert set(used.tolist()) == set(range(len(indices), len(seen)))
        for place, member in enumerate(batch["past_member"].tolist(), len(indices)):
            rows = (batch["past_place"] == place).any(1).nonzero().flatten().tolist()
            assert dataset.episode[indices[member]] in {dataset.episode[indices[row]] for row in rows}


def test_a_frame_of_the_batch_is_not_encoded_twice(dataset):
    dataset.set_history(HISTORY, APART)
    batch = dataset.batch([12, 15, 12])
    assert batch["past_place"].tolist() == [[6, 5, 4, 3], [0, 6, 5, 4], [6, 5, 4, 3]]
    assert batch["past_place"][1, 0] == 0
    first = dataset.batch([0, 40, 45])
    assert (first["past_place"] == -1).all() and len(first["past_images"]) == 0


def test_an_item_equals_a_batch_of_one(dataset):
    dataset.set_history(HISTORY, APART)
    item, batch = dataset[20], dataset.batch([20])
    assert item["past_place"].equal(batch["past_place"][0]) and item["past_images"].equal(batch["past_images"])


def test_runs_stay_in_their_episode_with_their_interval(dataset):
    dataset.set_history(HISTORY, APART)
    runs = dataset.decision_runs(np.arange(78), 4).reshape(78, 4)
    assert (runs[:, 0] == np.arange(78)).all()
    assert (dataset.episode[runs] == dataset.episode[np.arange(78)][:, None]).all()
    step = np.diff(runs)
    assert ((step == APART) | (step <= 0)).all()
    assert (
        runs[0].tolist() == [0, 3, 6, 9]
        and runs[37].tolist() == [37, 1, 4, 7]
        and runs[41].tolist() == [41, 44, 41, 44]
    )
    # Every frame equally often, if the episode is at least as long as a run.
    assert (np.bincount(runs[:40].flatten()) == 4).all()
    assert dataset.decision_runs(np.arange(78), 1).tolist() == list(range(78))


def test_runs_share_past_frames(dataset):
    dataset.set_history(HISTORY, APART)
    alone = len(frames_of(dataset.batch([20, 23, 26, 29]))) / 4
    apart = len(frames_of(dataset.batch([20, 60, 25, 74]))) / 4
    assert alone == 2 and apart > 4


def test_values_out_of_range_are_refused(dataset):
    for history, apart in ((-1, 1), (2, 0)):
        with pytest.raises(InputError, match=f"history: got {history} frames, {apart} steps apart"):
            dataset.set_history(history, apart)
    with pytest.raises(InputError, match="run: got 5, with a batch_size of 64, expected a divisor"):
        LoopConfig(run=5)
    with pytest.raises(InputError, match="run: got 0, expected 1 or more"):
        dataclasses.replace(LoopConfig(), run=0)
