"""Test the reader of the benchmark's initial states: only published files are read, and only an array is unpickled."""

import io
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade.errors import InputError, WorldError
from saccade.sim.libero.initial_states import parse_initial_states, problem_file, read_initial_states
from saccade.sim.libero.tasks import find_task, suites


class Payload:
    """What an attacker would put into a pickle."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.unlink, (self.victim,)


def test_every_task_has_50_states(installed):
    for suite in suites().values():
        for task in suite:
            states = read_initial_states(installed, task)
            assert states.shape[0] == 50 and states.dtype == np.float64
            assert len(np.unique(states, axis=0)) > 25
    assert read_initial_states(installed, find_task("libero_spatial", "0")).shape == (50, 92)


def test_unpublished_file_is_not_unpickled(installed, tmp_path):
    task = find_task("libero_spatial", "0")
    with pytest.raises(InputError, match=r"got No such file.*Install hf-libero 0.1.4 again"):
        read_initial_states(tmp_path, task)
    source = installed / "init_files" / task.suite / f"{task.name}.pruned_init"
    copy = tmp_path / "init_files" / task.suite / source.name
    copy.parent.mkdir(parents=True)
    shutil.copy(source, copy)
    assert read_initial_states(tmp_path, task).shape == (50, 92)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(InputError, match=r"got sha256 [0-9a-f]{16}…, expected [0-9a-f]{16}…, as published"):
        read_initial_states(tmp_path, task)


def test_problem_file_is_verified(installed):
    task = find_task("libero_goal", "7")
    assert problem_file(installed, task).is_file()
    with pytest.raises(InputError, match="expected 0000000000000000…, as published"):
        problem_file(installed, replace(task, problem_sha256="0" * 64))


def saved(value):
    target = io.BytesIO()
    torch.save(value, target)
    return target.getvalue()


def test_only_an_array_is_unpickled(tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    with pytest.raises(WorldError, match="cannot be read"):
        parse_initial_states(saved(Payload(str(victim))), "bad.pruned_init")
    assert victim.exists()
    with pytest.raises(WorldError, match="cannot be read"):
        parse_initial_states(b"not a file of torch", "bad.pruned_init")


@pytest.mark.parametrize(
    "value", [[1.0], torch.zeros(50, 3), torch.zeros(50, 3).double().numpy()[:49], np.full((50, 3), np.nan)]
)
def test_array_with_a_wrong_shape_or_type_is_refused(value):
    with pytest.raises(WorldError, match=r"(expected float64 \[50, D\]|cannot be read)"):
        parse_initial_states(saved(value), "odd.pruned_init")
