"""Fault injection for the virtual arm: the kinds of faults, and which faults are active."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, unknown_name
from ...ranges import require_above
from ..desk.arm import JOINTS
from ..desk.scene import CAMERAS


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        target_type: What it affects: "servo", "camera" or "arm".
        description: What it does, and what `value` means.
        value: Default of a fault's value; None if the kind has no value.
        low: Smallest value.
        high: Largest value.
        countable: Whether it affects single replies or images, so that it can be counted.
    """

    target_type: str
    description: str
    value: float | None = None
    low: float = -math.inf
    high: float = math.inf
    countable: bool = False


FAULT_KINDS = {
    "drop": FaultKind("servo", "a reply is lost", countable=True),
    "corrupt": FaultKind("servo", "a bit of a reply is flipped", countable=True),
    "truncate": FaultKind("servo", "the second half of a reply is lost", countable=True),
    "delay": FaultKind("servo", "a reply comes `value` seconds late", 0.1, 0.0, 60.0, countable=True),
    "silent": FaultKind("servo", "neither receives nor answers, and keeps its goal"),
    "missing": FaultKind("servo", "unplugged: neither receives nor answers, and has no torque"),
    "model": FaultKind("servo", "reports the model number `value`", 2825, 0, 65535),
    "status": FaultKind("servo", "every reply has the error bits `value`", 32, 1, 127),
    "temperature": FaultKind("servo", "is at `value` degrees Celsius", 85, 0, 255),
    "voltage": FaultKind("servo", "is supplied with `value` volts", 3.5, 0, 25.5),
    "stuck": FaultKind("servo", "the joint is jammed"),
    "limits": FaultKind("servo", "the position limits in its EPROM are `value` ticks tighter", 200, 1, 1000),
    "homing": FaultKind("servo", "the homing offset in its EPROM is `value` ticks higher", 100, -1000, 1000),
    "power": FaultKind("arm", "no power: no servo answers or has torque; all restart afterwards"),
    "port": FaultKind("arm", "the serial port vanishes"),
    "camera_frozen": FaultKind("camera", "delivers the same image again and again, as if it were new", countable=True),
    "camera_dropped": FaultKind("camera", "delivers nothing", countable=True),
    "camera_black": FaultKind("camera", "delivers black images", countable=True),
    "camera_delayed": FaultKind("camera", "delivers images `value` seconds late", 0.3, 0.0, 60.0, countable=True),
}


@dataclass(frozen=True)
class Fault:
    """One fault to inject. Raises InputError for a field that does not fit the kind.

    Attributes:
        kind: A key of `FAULT_KINDS`.
        joint: The joint that it affects; None for all.
        camera: The camera that it affects; None for all.
        value: What it means depends on the kind; None for the kind's default.
        after: The fault starts this many seconds after it is injected.
        seconds: It lasts this long; None until `count` is used up or it is cleared.
        count: It affects this many replies or images; None for no limit.
        probability: Probability that it affects a reply or image.
    """

    kind: str
    joint: str | None = None
    camera: str | None = None
    value: float | None = None
    after: float = 0.0
    seconds: float | None = None
    count: int | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise unknown_name("fault.kind", self.kind, FAULT_KINDS)
        kind = FAULT_KINDS[self.kind]
        self._check_target("joint", self.joint, JOINTS, "servo")
        self._check_target("camera", self.camera, CAMERAS, "camera")
        if self.value is not None and kind.value is None:
            fix = "Remove the value: this kind has none."
            raise InputError(f"fault {self.kind}.value", got=self.value, expected="none", fix=fix)
        if self.value is not None and not kind.low <= self.value <= kind.high:
            expected, fix = f"{kind.low:g} to {kind.high:g}", f"Use a value in this range: {kind.description}."
            raise InputError(f"fault {self.kind}.value", got=self.value, expected=expected, fix=fix)
        if self.value is None:
            object.__setattr__(self, "value", kind.value)
        if not (math.isfinite(self.after) and self.after >= 0):
            fix = "Leave it out: the fault then starts now."
            raise InputError("fault.after", got=self.after, expected="0 s or more", fix=fix)
        require_above(self, 0, "seconds", fix="Leave seconds out: the fault then lasts until it is cleared.")
        if self.count is not None and (not kind.countable or self.count < 1):
            countable = ", ".join(name for name, each in FAULT_KINDS.items() if each.countable)
            fix = "Use seconds instead of count."
            raise InputError("fault.count", got=self.count, expected=f"1 or more of {countable}", fix=fix)
        if not 0.0 < self.probability <= 1.0 or (self.probability < 1.0 and not kind.countable):
            expected = "above 0, up to 1; less than 1 only for replies and images"
            raise InputError("fault.probability", got=self.probability, expected=expected, fix="Use 1, the default.")

    def _check_target(self, field: str, name: str | None, names: tuple[str, ...], target_type: str) -> None:
        if name is None:
            return
        if FAULT_KINDS[self.kind].target_type != target_type:
            expected = f"none: {self.kind} affects the {FAULT_KINDS[self.kind].target_type}"
            raise InputError(f"fault.{field}", got=repr(name), expected=expected, fix=f"Remove the {field}.")
        if name not in names:
            raise unknown_name(f"fault.{field}", name, names)

    def affects(self, component: str | None) -> bool:
        """Tell whether it affects the joint or camera of this name; None asks for the arm."""
        named = self.joint or self.camera
        return named is None or named == component


class _ScheduledFault:
    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.begin = now + fault.after
        self.end = math.inf if fault.seconds is None else self.begin + fault.seconds
        self.remaining_count = fault.count


class FaultInjector:
    """The faults of one arm, shared by its threads.

    Args:
        clock: Returns monotonic seconds.
        seed: Seed of the random choices.
    """

    def __init__(self, clock: Callable[[], float], seed: int = 0) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._scheduled: list[_ScheduledFault] = []
        self._generator = np.random.default_rng(seed)

    def schedule(self, fault: Fault) -> None:
        """Start a fault after its delay."""
        with self._lock:
            self._scheduled = [*self._scheduled, _ScheduledFault(fault, self._clock())]

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._scheduled = []

    def active(self, kind: str, component: str | None = None) -> Fault | None:
        """Return the newest active fault of a kind at a joint or camera, without counting it."""
        # Called thousands of times a second: it must be fast without faults.
        if not self._scheduled:
            return None
        with self._lock:
            return next((each.fault for each in self._present(kind, component)), None)

    def trigger(self, kind: str, component: str | None = None) -> Fault | None:
        """Return the fault of a kind that affects this reply or image of a joint or camera, and count it."""
        if not self._scheduled:
            return None
        with self._lock:
            for each in self._present(kind, component):
                if each.fault.probability < 1.0 and self._generator.random() >= each.fault.probability:
                    continue
                if each.remaining_count is not None:
                    each.remaining_count -= 1
                return each.fault
        return None

    def flipped_bit(self, bits: int) -> int:
        """Return a random index below `bits`."""
        with self._lock:
            return int(self._generator.integers(bits))

    def _present(self, kind: str, component: str | None) -> list[_ScheduledFault]:
        now = self._clock()
        if any(now >= each.end or each.remaining_count == 0 for each in self._scheduled):
            self._scheduled = [each for each in self._scheduled if now < each.end and each.remaining_count != 0]
        found = (each for each in reversed(self._scheduled) if each.fault.kind == kind and each.begin <= now)
        return [each for each in found if each.fault.affects(component)]
