"""The contract: construction, strict JSON, and the check that names every difference."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import (
    ActionSpec,
    CameraSpec,
    Contract,
    ContractMismatch,
    GripperSpec,
    Normalization,
    Offer,
    StateSpec,
)

NAMES = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
UNITS = ("degrees", "degrees", "percent")


@pytest.fixture
def contract() -> Contract:
    return Contract(
        cameras=(CameraSpec("front", 128, 96), CameraSpec("wrist", 128, 128)),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
        normalization=Normalization(
            state_low=(-90, -60, 0),
            state_high=(90, 60, 100),
            action_low=((-5.5, -4, 0),) * 4,
            action_high=((5.5, 4, 1e2 / 3),) * 4,
            relative=(True, True, False),
        ),
        chunk=4,
        execute=2,
    )


def offer_of(contract: Contract, **changes: object) -> Offer:
    fields = {name: getattr(contract, name) for name in ("cameras", "state", "action", "control_hz")}
    return Offer(**{**fields, **changes})


def changed(contract: Contract, path: list, value: object) -> str:
    """Return the contract's JSON with the value at `path` set, or removed where `value` is `...`."""
    document = json.loads(contract.to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document)


def test_json_round_trip_is_exact_and_readable(contract):
    text = contract.to_json()
    assert Contract.from_json(text) == contract
    assert Contract.from_json(text.encode()) == contract
    assert '"names": ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]' in text
    assert max(map(len, text.splitlines())) < 120
    offer = offer_of(contract)
    assert Offer.from_json(offer.to_json()) == offer


def test_arrays_and_lists_become_tuples_and_the_contract_hashes(contract):
    statistics = dataclasses.replace(contract.normalization, action_low=np.full((4, 3), -1.0, np.float32))
    assert statistics.action_low == ((-1.0,) * 3,) * 4
    assert type(statistics.action_low[0][0]) is float
    assert hash(contract) == hash(Contract.from_json(contract.to_json()))


@pytest.mark.parametrize(
    ("path", "value", "where", "word"),
    [
        (["cameras", 0, "height"], "128", "contract.cameras[0].height", "whole number"),
        (["cameras", 0, "height"], 128.0, "contract.cameras[0].height", "whole number"),
        (["cameras", 0, "height"], True, "contract.cameras[0].height", "whole number"),
        (["cameras", 1, "width"], 0, "contract.cameras[1].width", "at least 1 pixel"),
        (["cameras", 1, "rotation_degrees"], 45, "contract.cameras[1].rotation_degrees", "180"),
        (["cameras", 1, "crop"], 1.5, "contract.cameras[1].crop", "at most 1"),
        (["cameras", 1, "crop"], ..., "contract.cameras[1].crop", "nothing"),
        (["cameras", 1, "name"], "front", "contract.cameras", "every name once"),
        (["cameras"], [], "contract.cameras", "at least one"),
        (["cameras"], {}, "contract.cameras", "a list"),
        (["state", "unit"], [], "contract.state.unit", "Did you mean 'units'?"),
        (["state", "names", 0], "", "contract.state.names[0]", "a name"),
        (["state", "names", 1], "shoulder_pan.pos", "contract.state.names", "more than once"),
        (["state", "units"], ["degrees"], "contract.state.units", "1 units"),
        (["state", "units", 0], "degree", "contract.state.units[0]", "Did you mean 'degrees'?"),
        (["state", "rotation"], "quaternion", "contract.state.rotation", "Did you mean"),
        (["state"], None, "contract.state", "names, units, rotation"),
        (["action", "kind"], "absolut", "contract.action.kind", "Did you mean 'absolute'?"),
        (["action", "frame"], "joints", "contract.action.frame", "Did you mean 'joint'?"),
        (["action", "gripper", "name"], "griper.pos", "contract.action.gripper.name", "'gripper.pos'"),
        (["action", "gripper", "open"], 0, "contract.action.gripper.open", "other than closed"),
        (["action", "gripper"], ..., "contract.action.gripper", "nothing"),
        (["control_hz"], float("nan"), "contract.control_hz", "finite"),
        (["control_hz"], float("inf"), "contract.control_hz", "finite"),
        (["control_hz"], 10**400, "contract.control_hz", "finite"),
        (["control_hz"], 0, "contract.control_hz", "above 0"),
        (["execute"], 5, "contract.execute", "between 1 and chunk (4)"),
        (["execute"], 0, "contract.execute", "between 1 and chunk (4)"),
        (["chunk"], 0, "contract.chunk", "at least 1 step"),
        (["chunk"], 8, "contract.normalization.action_low", "another layout"),
        (["normalization"], ..., "contract.normalization", "must not act without its statistics"),
        (["normalization"], None, "contract.normalization", "must not act without its statistics"),
        (["normalization", "state_low"], ..., "contract.normalization.state_low", "must not act without"),
        (["normalization", "state_low", 1], float("nan"), "contract.normalization.state_low[1]", "finite"),
        (["normalization", "state_high", 1], -60, "contract.normalization.state_high[1]", "never moved"),
        (["normalization", "action_high", 2, 0], -6, "contract.normalization.action_high[2][0]", "above action_low"),
        (["normalization", "action_high", 2], [1, 2], "contract.normalization.action_high[2]", "2 numbers"),
        (["normalization", "action_high"], [], "contract.normalization.action_high", "length 0"),
        (["normalization", "relative", 0], 1, "contract.normalization.relative[0]", "true or false"),
        (["normalization", "method"], "mean", "contract.normalization.method", "quantile_relative"),
        (["state", "units", 0], "radians", "contract.normalization.relative[0]", "shoulder_pan.pos in degrees"),
        (["action", "kind"], "relative", "contract.normalization.relative[0]", "absolute target"),
    ],
)
def test_strict_json_names_the_field(contract, path, value, where, word):
    with pytest.raises(InputError) as caught:
        Contract.from_json(changed(contract, path, value))
    assert caught.value.what.split(":")[0] == where
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "set()", "null", "[" * 100_000, "1" * 5000, b"\xff\xfe", '{"chunk": 1, "chunk": 2}']
)
def test_invalid_contract_raises_input_error(text):
    with pytest.raises(InputError, match=r"^contract\.json"):
        Contract.from_json(text, "contract.json")


def test_construction_in_code_is_checked_like_a_file(contract):
    with pytest.raises(InputError, match=r"^CameraSpec\.height: got 0"):
        CameraSpec("front", 0, 8)
    with pytest.raises(InputError, match=r"^Contract\.execute: got 9"):
        dataclasses.replace(contract, execute=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        contract.execute = 1


def test_matching_robot_passes_even_with_an_extra_camera(contract):
    contract.check(offer_of(contract))
    contract.check(offer_of(contract, cameras=(CameraSpec("top", 8, 8), *reversed(contract.cameras))))


def test_every_difference_is_listed_with_its_fix(contract):
    offer = Offer(
        cameras=(CameraSpec("front", 64, 96, rotation_degrees=180, crop=0.9), CameraSpec("wrst", 128, 128)),
        state=StateSpec(("elbow_flex.pos", "shoulder_pan.pos", "gripper.pos"), UNITS, rotation="axis_angle"),
        action=ActionSpec(
            (*NAMES[:2], "jaw.pos"),
            ("radians", "radians", "percent"),
            kind="relative",
            frame="base",
            gripper=GripperSpec("jaw.pos", closed=1, open=-1),
        ),
        control_hz=20,
    )
    with pytest.raises(InputError) as caught:
        contract.check(offer)
    assert isinstance(caught.value, ContractMismatch)
    found = {each.field: each for each in caught.value.differences}
    assert list(found) == [
        "cameras.front.size",
        "cameras.front.rotation_degrees",
        "cameras.front.crop",
        "cameras.wrist",
        "state.names",
        "state.rotation",
        "action.names",
        "action.units of shoulder_pan.pos, elbow_flex.pos",
        "action.kind",
        "action.frame",
        "action.gripper",
        "control_hz",
    ]
    assert found["cameras.front.size"].expected == "128x96"
    assert found["cameras.front.rotation_degrees"].fix.startswith("Rotate its images by 180 degrees")
    assert found["cameras.wrist"].fix == "Rename camera 'wrst' to 'wrist'."
    assert found["state.names"].fix == "Put them in the expected order."
    assert found["action.names"].fix == "Add gripper.pos and leave out jaw.pos and keep the expected order."
    units = found["action.units of shoulder_pan.pos, elbow_flex.pos"]
    assert units.fix == "Convert from degrees to radians before the environment executes them."
    assert found["action.gripper"].fix == "Send -0.02 * g + 1 to jaw.pos where the policy outputs g."
    message = str(caught.value)
    assert "12 places" in message and len(message.splitlines()) == 13
    assert all(str(each) in message for each in found.values())


def test_one_difference_is_one_line(contract):
    with pytest.raises(InputError) as caught:
        contract.check(offer_of(contract, control_hz=20))
    assert str(caught.value).startswith("control_hz: got 20 Hz, expected 30 Hz. Run the control loop at 30 Hz")


def test_rotation_difference_names_the_remaining_rotation(contract):
    cameras = (CameraSpec("front", 128, 96, rotation_degrees=90), contract.cameras[1])
    (difference,) = contract.differences(offer_of(contract, cameras=cameras))
    assert "by 270 degrees counter-clockwise" in difference.fix


def test_no_camera_at_all_and_no_gripper(contract):
    action = dataclasses.replace(contract.action, gripper=None)
    found = contract.differences(offer_of(contract, cameras=(), action=action))
    assert [each.field for each in found] == ["cameras.front", "cameras.wrist", "action.gripper"]
    assert found[0].got == "no cameras" and found[2].got == "no gripper"


def test_errors_can_be_pickled(contract):
    mismatch = ContractMismatch(contract.differences(offer_of(contract, control_hz=20, cameras=())))
    copy = pickle.loads(pickle.dumps(mismatch))
    assert str(copy) == str(mismatch) and copy.differences == mismatch.differences
    plain = InputError("chunk", got=0, expected="more", fix="Raise it.")
    assert str(pickle.loads(pickle.dumps(plain))) == str(plain)


def test_contract_needs_neither_torch_nor_safetensors():
    code = "import sys, saccade.policy.contract; print({'torch', 'safetensors', 'lerobot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_policy_package_is_lazy_and_complete():
    from saccade import policy

    assert policy.Contract is Contract
    assert all(getattr(policy, name).__name__ == name for name in policy.__all__)
    assert set(policy.__all__) <= set(dir(policy))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = policy.nonsense
