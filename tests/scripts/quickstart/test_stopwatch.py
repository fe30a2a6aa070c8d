import json

import pytest

from saccade.scripts.quickstart import stopwatch as stages_module
from saccade.scripts.quickstart.stopwatch import Stage, run_stages


class FakeStages:
    """Stages that are done once they have run; `interrupt_at` stops one of them."""

    def __init__(self):
        self.finished, self.interrupt_at = [], None

    def stage(self, name, seconds):
        def run():
            if name == self.interrupt_at:
                raise KeyboardInterrupt
            self.finished.append(name)

        return Stage(name, f"Do {name}", seconds, lambda: name in self.finished, run)


def test_an_interrupted_job_continues_where_it_stopped(tmp_path, monkeypatch):
    worker, lines, clock = FakeStages(), [], iter(range(0, 100_000, 60))
    monkeypatch.setattr(stages_module.time, "perf_counter", lambda: float(next(clock)))
    stages = [worker.stage("one", 60), worker.stage("two", 120), worker.stage("three", 600)]
    worker.interrupt_at = "two"
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, tmp_path / "timings.json", lines.append)
    assert worker.finished == ["one"]
    assert lines == [
        "[1/3] Do one (about 1 min; about 13 min remaining)",
        "[2/3] Do two (about 2 min; about 12 min remaining)",
    ]
    worker.interrupt_at = None
    seconds = run_stages(stages, tmp_path / "timings.json", lines.append)
    assert worker.finished == ["one", "two", "three"]
    assert lines[2:] == [
        "[1/3] Do one: already done",
        # One of the two minutes was used before the interruption.
        "[2/3] Do two (about 1 min; about 11 min remaining)",
        # The first two stages took as long as expected.
        "[3/3] Do three (about 10 min; about 10 min remaining)",
    ]
    assert seconds == {"one": 60, "two": 120, "three": 60} == json.loads((tmp_path / "timings.json").read_text())


def test_a_damaged_file_of_timings_is_replaced(tmp_path):
    worker = FakeStages()
    (tmp_path / "timings.json").write_text('{"one": 3')
    assert set(run_stages([worker.stage("one", 60)], tmp_path / "timings.json", lambda line: None)) == {"one"}
