"""The log: no step twice after a kill, and a clear error when the disk is full."""

import json
import os
from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.training.log import TrainingLog, read_log


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_resumed_step_are_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, 0)
    for step in (10, 20, 30, 40):
        log.write({"step": step, "loss": 0.5})
    resumed = TrainingLog(path, 20)
    assert steps(path) == [10, 20] and resumed.lines[-1] == {"step": 20, "loss": 0.5}
    resumed.write({"step": 30})
    assert steps(path) == [10, 20, 30]
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_a_line_that_a_kill_truncated_is_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10}\n[1]\n{"loss": 1}\n\xff\n{"step": 20, "lo')
    TrainingLog(path, 30).write({"step": 40})
    assert steps(path) == [10, 40]


def test_no_log_has_no_lines(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_full_disk_is_a_clear_error(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"log.jsonl: got No space left on device.*--resume"):
        log.write({"step": 1})


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        TrainingLog(Path(tmp_path / "nowhere" / "log.jsonl"), 0)
