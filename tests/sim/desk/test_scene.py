"""The MJCF model of the desk: that of the published suites does not change."""

import hashlib

import mujoco
import pytest

from saccade.sim.desk.scene import scene_xml
from saccade.sim.desk.tasks.catalogue import SUITES, find_task


def model_text(task):
    cue = (task.cue,) if task.cue else ()
    arrangement = task.arrangement
    return scene_xml(arrangement.objects, (*arrangement.fixtures, *cue), has_bin=arrangement.has_bin)


@pytest.mark.parametrize(
    ("suite", "digest"), [("desk_object", "b5299f2a955379d9"), ("desk_spatial", "10621aefb2cda083")]
)
def test_models_are_as_published(suite, digest):
    """A change here changes every published number: it must be deliberate."""
    text = "".join(model_text(task) for task in SUITES[suite])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_parts_of_a_fixture_do_not_collide():
    model = mujoco.MjModel.from_xml_string(model_text(find_task("desk_goal", "open_drawer")))
    data = mujoco.MjData(model)
    for joint, position in (("drawer_slide", 0.03), ("button_slide", 0.003), ("knob_hinge", 0.8)):
        data.joint(joint).qpos[0] = position
    mujoco.mj_forward(model, data)
    parts = [
        {model.body(model.geom_bodyid[geom]).name for geom in pair}
        for pair in data.contact.geom
        if (model.geom_bodyid[pair] != 0).all()
    ]
    for pair in ({"cabinet", "drawer"}, {"button", "button_cap"}, {"knob", "knob_lever"}):
        assert pair not in parts


def test_only_the_scene_without_a_drawer_has_the_bin():
    assert "bin_floor" in model_text(find_task("desk_long", "two_in_bin"))
    assert "bin_floor" not in model_text(find_task("desk_goal", "open_drawer"))
