"""A damaged byte anywhere in a released pickle file ends in a clear error."""

import random

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.importing.released import ReleasedCheckpoint

PART = "action_head--1_checkpoint.pt"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False])
def test_damaged_pickles_are_refused(tmp_path, archive):
    path, chance = tmp_path / PART, random.Random(0)
    torch.save({"weight": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    damaged = [bytes([value]) for value in range(256)] + [whole[:size] for size in range(0, len(whole), 29)]
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        # A new file each time: the last one may still be mapped.
        path.unlink()
        path.write_bytes(content)
        try:
            ReleasedCheckpoint(tmp_path).read_part("action_head")
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 256
