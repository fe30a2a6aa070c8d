"""The protocol of policy server and client: one greeting, then a reply to every request.

    greeting   protocol, policy, session, contract (as JSON), largest message
    request    session, sequence, deadline (seconds in which a reply is of use), request: "reset" with an instruction
               or "decide" with pixels {camera: uint8 [H, W, 3]} and agent_pos [S]
    reply      session, sequence, server_timing {infer_ms, total_ms}, and for a decision actions float32 [T, A]
    error      session, sequence, error {kind, what, got, expected, fix}

openpi's client sends bare observations with a `prompt` instead of requests, and gets bare replies; errors come in text
frames. The key `request` distinguishes the two. Needs only numpy.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...policy.contract import Contract

PROTOCOL = "saccade/1"
TOKEN_VARIABLE = "SACCADE_TOKEN"
SCHEME = "Api-Key"
HEALTH_PATH = "/healthz"
MAX_INSTRUCTION_LENGTH = 2000
MAX_DEADLINE_SECONDS = 600.0

BUSY_CLOSE_CODE = 1013
"""Close code for a second client: try again later."""

ERROR_KINDS = ("input", "late", "failed")
"""Kinds of errors: the request does not fit, the deadline passed, the policy failed. Only "input" ends no session."""

_TOKEN_LETTERS = frozenset(string.ascii_letters + string.digits + "-._~+/=")


@dataclass(frozen=True)
class Request:
    """A client's request: a reset to `instruction`, a decision from `pixels` and `state`, or both.

    Attributes:
        instruction: The instruction of a reset.
        pixels: Images uint8 [H, W, 3] by camera.
        state: float32 [S].
        session: The session of the connection.
        sequence: Number of the request.
        deadline: Seconds, from when it was sent, in which a reply is of use; None for openpi, which sends none.
        is_openpi: A bare observation of openpi's client, without session and sequence, that resets and decides.
    """

    instruction: str | None
    pixels: dict[str, np.ndarray] | None
    state: np.ndarray | None
    session: str = ""
    sequence: int = -1
    deadline: float | None = None
    is_openpi: bool = False

    @property
    def observation(self) -> dict[str, Any]:
        """The observation as `ChunkPolicy.decide` takes it."""
        return {"pixels": self.pixels, "agent_pos": self.state}


def new_session() -> str:
    """Return a new random name of a session."""
    return secrets.token_hex(16)


def new_token() -> str:
    """Return a new random token."""
    return secrets.token_urlsafe(32)


def check_token(token: str, source: str) -> str:
    """Return a token without surrounding white space; InputError if it is too short or has invalid characters."""
    token = token.strip()
    if len(token) < 16 or not _TOKEN_LETTERS.issuperset(token):
        got = "nothing" if not token else f"{len(token)} characters"
        fix = 'Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        raise InputError(f"token of {source}", got=got, expected="16 or more letters, digits or -._~+/=", fix=fix)
    return token


def authorization(token: str) -> dict[str, str]:
    """Return the HTTP header with the token, in openpi's form."""
    return {"Authorization": f"{SCHEME} {token}"}


def is_authorized(header: str | None, token: str) -> bool:
    """Return whether a header has the token, compared in constant time."""
    expected = authorization(token)["Authorization"]
    return hmac.compare_digest((header or "").encode("utf-8", "replace"), expected.encode())


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def greeting(contract: Contract, policy: str, session: str, max_message_bytes: int) -> dict[str, Any]:
    """Return the server's first message, which openpi's client calls the server's metadata."""
    return {
        "protocol": PROTOCOL,
        "policy": policy,
        "session": session,
        "contract": contract.to_json(),
        "largest_message": max_message_bytes,
    }


def read_greeting(message: Mapping[str, Any], source: str) -> tuple[str, Contract, str]:
    """Return session, contract and name of the policy from a greeting; InputError if it is of another protocol."""
    version = message.get("protocol")
    # A value that is no text may be an array, which compares element by element.
    if not isinstance(version, str) or version != PROTOCOL:
        got = (
            version
            if isinstance(version, str)
            else f"a greeting with the keys {', '.join(map(str, message)) or 'none'}"
        )
        fix = "Give the address of a `saccade serve` of this version."
        raise InputError(f"protocol of {source}", got=str(got)[:80], expected=PROTOCOL, fix=fix)
    session, policy, contract = (_text(message, key, source) for key in ("session", "policy", "contract"))
    return session, Contract.from_json(contract, f"contract of {source}"), policy


def read_request(message: Mapping[str, Any], contract: Contract) -> Request:
    """Check a client's request against the contract; states become float32.

    Keys and cameras that the policy does not need are ignored. All that it needs must be there, so a misspelt name
    cannot pass.

    Args:
        message: The decoded message.
        contract: The policy's contract.

    Raises:
        InputError: A part is missing or does not fit; the error names the first.
    """
    if "request" not in message:
        pixels, state = _observation(message, contract)
        return Request(_instruction(message, "prompt"), pixels, state, is_openpi=True)
    kind = _text(message, "request", "message")
    if kind not in ("reset", "decide"):
        raise InputError(
            "request", got=repr(kind[:40]), expected="reset or decide", fix=suggest(kind, ["reset", "decide"])
        )
    deadline = message.get("deadline")
    if type(deadline) is not float or not 0.0 < deadline <= MAX_DEADLINE_SECONDS:
        expected = f"seconds above 0 and at most {MAX_DEADLINE_SECONDS:g}"
        raise InputError(
            "deadline", got=_describe_number(deadline), expected=expected, fix="Send the deadline in seconds."
        )
    sequence = message.get("sequence")
    if type(sequence) is not int or sequence < 0:
        raise InputError(
            "sequence",
            got=_describe_number(sequence),
            expected="a whole number from 0",
            fix="Send the request number as a whole number.",
        )
    session = _text(message, "session", "message")
    if kind == "reset":
        return Request(_instruction(message, "instruction"), None, None, session, sequence, deadline)
    return Request(None, *_observation(message, contract), session, sequence, deadline)


def check_observation(observation: Mapping[str, Any], contract: Contract) -> dict[str, Any]:
    """Return the part of an observation that the contract names.

    Args:
        observation: `pixels` and `agent_pos`.
        contract: The policy's contract.

    Raises:
        InputError: A part is missing or does not fit; the error names the first.
    """
    pixels, state = _observation(observation, contract)
    return {"pixels": pixels, "agent_pos": state}


def check_instruction(instruction: object) -> str:
    """Return an instruction; InputError if it is no text, empty or too long."""
    return _instruction({"instruction": instruction}, "instruction")


def check_actions(actions: object, contract: Contract, source: str) -> np.ndarray:
    """Check a chunk of actions.

    Args:
        actions: What a policy or server returned.
        contract: The policy's contract.
        source: Who returned it, for the error.

    Returns:
        The actions, float32 [T, A].

    Raises:
        InputError: They are of another type or shape, or not finite.
    """
    shape = (contract.chunk, len(contract.action.names))
    expected = f"float32 {list(shape)}, all finite"
    fix = "Stop the arm and check the policy."
    if not isinstance(actions, np.ndarray) or actions.dtype != np.float32 or actions.shape != shape:
        raise InputError(f"actions of {source}", got=_describe_type(actions), expected=expected, fix=fix)
    if not np.isfinite(actions).all():
        raise InputError(f"actions of {source}", got="numbers that are not finite", expected=expected, fix=fix)
    return actions


def error_fields(kind: str, error: InputError) -> dict[str, str]:
    """Return an error as a message; texts are cut, because they may repeat what a client sent."""
    texts = {name: str(getattr(error, name))[:500] for name in ("what", "got", "expected", "fix")}
    return {"kind": kind, **texts}


def read_error(fields: object) -> tuple[str, InputError]:
    """Return kind and error from a message; InputError if it is malformed."""
    if not isinstance(fields, Mapping):
        raise InputError("error", got=_describe_number(fields), expected="a map", fix="Connect to a `saccade serve`.")
    kind, what, got, expected, fix = (_text(fields, key, "error") for key in ("kind", "what", "got", "expected", "fix"))
    if kind not in ERROR_KINDS:
        raise InputError(
            "error.kind",
            got=kind[:40],
            expected=", ".join(ERROR_KINDS),
            fix="Use the same version of Saccade on both sides.",
        )
    return kind, InputError(what, got=got, expected=expected, fix=fix)


def _observation(message: Mapping[str, Any], contract: Contract) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return images and state of an observation, nested (pixels, agent_pos) or flat as openpi's (observation/...)."""
    flat = "pixels" not in message
    images = message.get("pixels")
    if flat:
        sent = (key for key in message if key.startswith("observation/"))
        images = {key.removeprefix("observation/"): message[key] for key in sent}
    place = "observation/" if flat else "pixels."
    if not isinstance(images, Mapping):
        fix = "Send a map of camera names to images."
        raise InputError("pixels", got=_describe_type(images), expected="a map", fix=fix)
    pixels = {}
    for camera in contract.cameras:
        expected = f"uint8 [{camera.height}, {camera.width}, 3]"
        if camera.name not in images:
            names = ", ".join(each.name for each in contract.cameras)
            fix = f"Send images of {names}, as pixels {{name: image}} or as observation/NAME."
            raise InputError(f"camera {camera.name}", got="nothing", expected=expected, fix=fix)
        image = images[camera.name]
        right = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not right or image.shape != (camera.height, camera.width, 3):
            fix = "Resize the image, height x width x RGB, bytes from 0 to 255, before you send it."
            raise InputError(f"{place}{camera.name}", got=_describe_type(image), expected=expected, fix=fix)
        pixels[camera.name] = image
    return pixels, _state(message, "observation/state" if flat else "agent_pos", contract)


def _state(message: Mapping[str, Any], key: str, contract: Contract) -> np.ndarray:
    names = contract.state.names
    expected = f"float32 [{len(names)}]: {', '.join(names)}"
    if key not in message:
        raise InputError(key, got="nothing", expected=expected, fix="Send the measured state with the images.")
    state = message[key]
    # openpi's users send numpy's default, float64.
    if not isinstance(state, np.ndarray) or state.dtype not in (np.float32, np.float64) or state.shape != (len(names),):
        raise InputError(
            key, got=_describe_type(state), expected=expected, fix="Send the state in the contract's order and units."
        )
    with np.errstate(over="ignore"):
        state = state.astype(np.float32)
    if not np.isfinite(state).all():
        fix = "Stop the arm and send no observation while a joint cannot be measured."
        raise InputError(key, got="numbers that are not finite", expected=expected, fix=fix)
    return state


def _instruction(message: Mapping[str, Any], key: str) -> str:
    text = message.get(key)
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_INSTRUCTION_LENGTH:
        got = f"{len(text)} characters" if isinstance(text, str) else _describe_type(text)
        expected = f"text of 1 to {MAX_INSTRUCTION_LENGTH} characters"
        raise InputError(key, got=got, expected=expected, fix="Send the instruction as text.")
    return str(text)


def _text(message: Mapping[str, Any], key: str, source: str) -> str:
    text = message.get(key)
    if not isinstance(text, str):
        raise InputError(
            f"{key} of {source}",
            got=_describe_type(text),
            expected="text",
            fix="Connect a Saccade or openpi client and server.",
        )
    return text


def _describe_type(value: object) -> str:
    """Return the type of a value, never its content."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _describe_number(value: object) -> str:
    if isinstance(value, int | float) and type(value) in (int, float, bool) and math.isfinite(value):
        return repr(value)
    return _describe_type(value)
