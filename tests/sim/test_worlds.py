"""Suites, their worlds, and a world built for the contract of a policy."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.policy.contract import Contract, ContractMismatch, Normalization, Offer
from saccade.sim import worlds
from saccade.sim.desk.environment import desk_offer
from saccade.sim.libero.assets import ASSETS_VARIABLE, Assets
from saccade.sim.libero.conventions import Conventions
from saccade.sim.libero.physics_check import SettlingResult
from saccade.sim.libero.protocols import OPENVLA
from saccade.sim.libero.world import LiberoWorld


def contract_for(offer: Offer) -> Contract:
    states, actions = len(offer.state.names), len(offer.action.names)
    return Contract(
        cameras=offer.cameras,
        state=offer.state,
        action=offer.action,
        control_hz=offer.control_hz,
        normalization=Normalization(
            (-1,) * states, (1,) * states, ((-1,) * actions,), ((1,) * actions,), (False,) * actions
        ),
        chunk=1,
        execute=1,
    )


def test_suites_determine_their_world():
    assert worlds.find_family(["desk_object", "desk_spatial"]) is worlds.DESK
    assert worlds.find_family(["libero_10", "libero_goal"]) is worlds.LIBERO is worlds.find_family(["libero_long"])
    assert (worlds.DESK.episodes, worlds.LIBERO.episodes) == (5, 50)


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (["desk_object", "libero_goal"], "got some of desk and some of libero, expected suites of one world"),
        (["libero_gaol"], "Did you mean 'libero_goal'"),
        ([], "suites: got none"),
    ],
)
def test_mixed_unknown_and_missing_suites_are_refused(suites, message):
    with pytest.raises(InputError, match=message):
        worlds.find_family(suites)


def test_libero_tasks_are_found_by_number_or_name():
    chosen = worlds.choose_tasks(["libero_spatial", "libero_goal"], ["0", "turn_on_the_stove"], "without")
    assert [(task.suite, task.name[:9]) for task in chosen] == [
        ("libero_spatial", "pick_up_t"),
        ("libero_goal", "open_the_"),
        ("libero_goal", "turn_on_t"),
    ]
    assert len(worlds.choose_tasks(["libero_10"], [], "without")) == 10
    with pytest.raises(InputError, match="Did you mean 'turn_on_the_stove'"):
        worlds.choose_tasks(["libero_goal"], ["turn_on_stove"], "without")


def test_evaluation_and_demonstration_states_do_not_overlap():
    worlds.LIBERO.check_evaluation_states(0, 50)
    worlds.LIBERO.check_first_demonstration_state(1000)
    with pytest.raises(InputError, match="got initial states 1 to 50, expected states below 50"):
        worlds.LIBERO.check_evaluation_states(1, 50)
    with pytest.raises(InputError, match="first_initial_state: got 50, expected 1000 or more"):
        worlds.LIBERO.check_first_demonstration_state(50)
    worlds.DESK.check_evaluation_states(50, 100)


def test_libero_options_are_refused_for_the_desk():
    with pytest.raises(InputError, match="options of LIBERO: got suites of the desk"):
        worlds.check_options(worlds.DESK, worlds.LiberoOptions(visuals="fast"))
    worlds.check_options(worlds.DESK, worlds.LiberoOptions())


def test_desk_is_built_with_the_image_size_of_the_contract():
    contract = contract_for(desk_offer(96))
    world = worlds.make_evaluation_world(worlds.DESK, contract, worlds.LiberoOptions())
    assert world.offer().cameras[0].height == 96 and pickle.loads(pickle.dumps(world)) == world


def test_contract_of_another_world_is_refused_before_assets_are_read(monkeypatch):
    monkeypatch.setenv(ASSETS_VARIABLE, "/nowhere")
    with pytest.raises(ContractMismatch, match="control_hz"):
        worlds.make_evaluation_world(worlds.LIBERO, contract_for(desk_offer(96)), worlds.LiberoOptions())
    with pytest.raises(ContractMismatch, match="state.names"):
        worlds.make_evaluation_world(worlds.DESK, contract_for(Conventions().offer()), worlds.LiberoOptions())


def test_libero_assets_are_read_from_the_option(tmp_path):
    pytest.importorskip("libero")
    options = worlds.LiberoOptions(libero_assets=tmp_path)
    with pytest.raises(InputError, match=f"LIBERO assets in {tmp_path}: got no "):
        worlds.make_evaluation_world(worlds.LIBERO, contract_for(Conventions().offer()), options)


def test_world_describes_what_its_results_depend_on(tmp_path):
    assets = Assets(tmp_path, "a" * 64, "folder", ("textures/b.png",))
    settling_result = SettlingResult(37.2, "3.8.1", "1.4.0")
    world = LiberoWorld(Conventions(image_size=224, crop=0.9), assets, OPENVLA, "fast", settling_result)
    described = world.describe()
    assert described["benchmark"]["name"] == "openvla" and described["benchmark"]["limits"]["libero_spatial"] == 220
    assert (described["visuals"], described["render_size"], described["physics_as_published"]) == ("fast", 256, False)
    fingerprint = world.fingerprint()
    assert fingerprint["libero"]["assets"] == {
        "sha256": "a" * 64,
        "source": "folder",
        "stand_ins": ["textures/b.png"],
    }
    assert fingerprint["libero"]["settle_task5_mm"] == 37.2
    assert {"mujoco", "robosuite", "hf-libero"} <= set(fingerprint["packages"]) and fingerprint["renderer"]["backend"]
    assert pickle.loads(pickle.dumps(world)) == world
    assert world.offer() == replace(world.offer(), control_hz=20.0)


def test_new_world_is_one_entry_in_the_table():
    pick = replace(worlds.DESK.tasks("desk_object")[0], suite="toy_pick", name="pick")
    toy = replace(worlds.DESK, name="toy", title="the toy", suites=("toy_pick",), find_suite=lambda suite: (pick,))
    families = (*worlds.FAMILIES, toy)
    assert worlds.find_family(["toy_pick"], families) is toy
    assert worlds.choose_tasks(["toy_pick"], ["pick"], "with", families) == (pick,)
    with pytest.raises(InputError, match="got some of toy and some of libero"):
        worlds.find_family(["toy_pick", "libero_goal"], families)
    with pytest.raises(InputError, match="options of LIBERO: got suites of the toy"):
        worlds.check_options(toy, worlds.LiberoOptions(visuals="fast"), families)


def test_choosing_tasks_imports_no_simulator():
    code = (
        "import sys; from saccade.sim import worlds; worlds.choose_tasks(['libero_goal'], ['3'], 'with'); "
        "print({'torch', 'mujoco', 'libero', 'robosuite'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert done.stdout.strip() == "set()"
