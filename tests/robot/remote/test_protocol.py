"""The messages of the policy server: requests, greeting, errors, authorization."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.robot.remote import protocol
from saccade_testing.toy_policy import TOKEN, toy_contract, toy_observation

CONTRACT = toy_contract()
IMAGES = toy_observation()["pixels"]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["reset", "decide", "saccade/1", "input", CONTRACT.to_json(), "{}"]),
    st.sampled_from(
        [np.zeros((4, 6, 3), np.uint8), np.zeros(2, np.float32), np.full(2, np.nan), np.float32(1), np.ones(3, bool)]
    ),
    st.sampled_from([IMAGES, {"front": 3}, [], {}, {"kind": "late", "what": "", "got": "", "expected": "", "fix": ""}]),
)
KEYS = (
    *(
        "request",
        "session",
        "sequence",
        "deadline",
        "instruction",
        "pixels",
        "agent_pos",
        "prompt",
        "observation/state",
    ),
    *(
        "observation/front",
        "observation/wrist",
        "protocol",
        "policy",
        "contract",
        "kind",
        "what",
        "got",
        "expected",
        "fix",
    ),
)
MESSAGES = st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=9)


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_random_messages_are_read_or_refused(message):
    for read in (
        lambda: protocol.read_request(message, CONTRACT),
        lambda: protocol.read_greeting(message, "there"),
        lambda: protocol.read_error(message),
    ):
        try:
            result = read()
        except InputError as error:
            assert len(str(error)) < 1000
            continue
        if isinstance(result, protocol.Request):
            assert result.instruction is not None or result.observation["agent_pos"].dtype == np.float32
            assert result.is_openpi or 0 < result.deadline <= protocol.MAX_DEADLINE_SECONDS


def test_flat_and_nested_observations_give_the_same_request():
    observation = toy_observation()
    flat = {f"observation/{name}": image for name, image in observation["pixels"].items()}
    nested = protocol.read_request({**observation, "prompt": "go"}, CONTRACT)
    flat = protocol.read_request({**flat, "observation/state": observation["agent_pos"], "prompt": "go"}, CONTRACT)
    for request in (nested, flat):
        assert request.is_openpi and request.instruction == "go" and request.deadline is None
        assert set(request.pixels) == {"front", "wrist"}
        np.testing.assert_array_equal(request.pixels["wrist"], observation["pixels"]["wrist"])
        np.testing.assert_array_equal(request.state, observation["agent_pos"])


def test_greeting_carries_the_exact_contract():
    session = protocol.new_session()
    greeting = protocol.greeting(CONTRACT, "toy", session, 1000)
    assert protocol.read_greeting(greeting, "there") == (session, CONTRACT, "toy")
    assert protocol.new_session() != session


def test_error_survives_the_round_trip_with_long_texts_cut():
    error = InputError("what", got="g" * 10_000, expected="e", fix="f")
    kind, travelled = protocol.read_error(protocol.error_fields("late", error))
    assert kind == "late" and travelled.what == "what" and len(travelled.got) == 500


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        f"Bearer {TOKEN}",
        f"api-key {TOKEN}",
        f"Api-Key {TOKEN} ",
        f"Api-Key {TOKEN[:-1]}",
        "Api-Key \udcff",
    ],
)
def test_only_the_exact_token_is_authorized(header):
    assert not protocol.is_authorized(header, TOKEN)
    assert protocol.is_authorized(f"Api-Key {TOKEN}", TOKEN)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_addresses_are_recognised(host, loopback):
    assert protocol.is_loopback(host) == loopback
