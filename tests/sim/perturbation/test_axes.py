"""Perturbations on the command line and in records, and their random draws."""

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.evaluation.records import EpisodeRecord, error_record
from saccade.sim.perturbation.axes import AXES, DEFAULT_LEVEL, Perturbation, parse_perturbation, parse_perturbations
from saccade.sim.perturbation.job import Job


def parsed(*texts):
    return [str(each) for each in parse_perturbations(texts)]


def test_axes_and_levels_are_parsed_in_table_order():
    assert parsed("lighting", "camera=2") == ["camera=2", f"lighting={DEFAULT_LEVEL}"]
    assert parsed("camera=5,1-2", "camera=2") == ["camera=1", "camera=2", "camera=5"]
    assert parsed("all") == [f"{axis}={DEFAULT_LEVEL}" for axis in AXES]
    assert parsed("all=1,3,5", "layout=4") == [
        f"{axis}={level}" for axis in AXES for level in ((1, 3, 4, 5) if axis == "layout" else (1, 3, 5))
    ]
    assert len(AXES) == 7 and parsed() == []
    assert parse_perturbation("sensor=4") == Perturbation("sensor", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camra", r"axis of perturbation: got 'camra', expected one of camera, .*Did you mean 'camera'\?"),
        ("fog=2", r"got 'fog', expected one of camera, lighting, .*, or all\. Write for example"),
        ("camera=0", "level of camera: got 0, expected 1 to 5.*unperturbed"),
        ("camera=6", "level of camera: got 6, expected 1 to 5"),
        ("camera=1-900000000000", "level of camera: got 900000000000"),
        ("camera=", "got 'camera='.*Use levels from 1 to 5"),
        ("camera=high", "got 'camera=high'"),
        ("camera=3-1", "Write 1-3"),
    ],
)
def test_invalid_perturbation_is_refused_with_the_choices(text, message):
    with pytest.raises(InputError, match=message):
        parse_perturbations([text])


def test_draws_depend_on_episode_and_axis_but_not_on_level():
    def draw(axis="camera", level=3, suite="desk_object", task="red_cube", state=0, seed=1):
        return Perturbation(axis, level).generator(suite, task, state, seed).random()

    assert draw() == draw() == draw(level=1)
    others = [draw(axis="layout"), draw(suite="other"), draw(task="red_can"), draw(state=1), draw(seed=2)]
    assert len({draw(), *others}) == 6
    assert isinstance(Perturbation("camera").generator("", "", 0, 0), np.random.Generator)


def test_records_identify_perturbed_episodes_and_read_old_files():
    job = Job("desk_object", "red_cube", 0, 1)
    changed = [
        Job("desk_object", "red_cube", 0, 1, perturbation=Perturbation("camera", 2)),
        Job("desk_object", "red_cube", 0, 1, perturbation=Perturbation("camera", 3)),
        Job("desk_object", "red_cube", 0, 1, swap="position"),
    ]
    assert [each.key.removeprefix(job.key) for each in changed] == ["/camera=2", "/camera=3", "/swap=position"]
    assert len({each.file_stem for each in (job, *changed)}) == 4
    for each in (job, *changed):
        record = error_record(each, "broke", 1)
        assert record.key == each.key
        assert EpisodeRecord.from_json(record.to_json()) == record
    content = error_record(job, "broke", 1).to_json()
    old = {name: value for name, value in content.items() if name not in ("perturbation", "swap", "other", "drawn")}
    assert EpisodeRecord.from_json(old).perturbation is None
    with pytest.raises(InputError, match=r"missing \['suite'\], unknown \['colour'\]"):
        EpisodeRecord.from_json({"colour": 1} | {name: value for name, value in old.items() if name != "suite"})
