"""What may go wrong with the virtual arm, on demand: which faults there are, and which of them are present now."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, unknown_name
from ..desk.arm import JOINTS
from ..desk.scene import CAMERAS


@dataclass(frozen=True)
class FaultKind:
    """What a fault is: what it strikes ("servo", "camera" or "arm"), and what its `value` means, if it has one."""

    strikes: str
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
    "silent": FaultKind("servo", "neither hears nor answers, and holds the goal it had"),
    "missing": FaultKind("servo", "unplugged: neither hears nor answers, and is limp"),
    "model": FaultKind("servo", "says that it is of the model with number `value`", 2825, 0, 65535),
    "status": FaultKind("servo", "every reply has the error bits `value`", 32, 1, 127),
    "temperature": FaultKind("servo", "is at `value` degrees Celsius", 85, 0, 255),
    "voltage": FaultKind("servo", "is supplied with `value` volts", 3.5, 0, 25.5),
    "stuck": FaultKind("servo", "the joint is jammed"),
    "limits": FaultKind("servo", "the position limits in its EPROM are `value` ticks tighter", 200, 1, 1000),
    "homing": FaultKind("servo", "the homing offset in its EPROM is `value` ticks higher", 100, -1000, 1000),
    "power": FaultKind("arm", "no power: all servos are dumb and limp, and start anew afterwards"),
    "port": FaultKind("arm", "the serial port vanishes"),
    "camera_frozen": FaultKind("camera", "delivers the same picture again and again, as if new", countable=True),
    "camera_dropped": FaultKind("camera", "delivers nothing", countable=True),
    "camera_black": FaultKind("camera", "delivers black pictures", countable=True),
    "camera_delayed": FaultKind("camera", "delivers pictures `value` seconds late", 0.3, 0.0, 60.0, countable=True),
}


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, a key of `FAULT_KINDS`, and what it strikes.

    `joint` or `camera` name what is struck; all of them when left out. It begins `after` seconds from when it is
    ordered and lasts `seconds`, or strikes `count` replies or pictures, each with a chance of `probability`; without
    both it lasts until it is cleared. Raises InputError for what does not fit the kind.
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
        self._check_place("joint", self.joint, JOINTS, "servo")
        self._check_place("camera", self.camera, CAMERAS, "camera")
        if self.value is not None and kind.value is None:
            raise InputError(f"fault {self.kind}.value", got=self.value, expected="none", fix="Leave it out.")
        if self.value is not None and not kind.low <= self.value <= kind.high:
            expected = f"{kind.low:g} to {kind.high:g}"
            raise InputError(f"fault {self.kind}.value", got=self.value, expected=expected, fix=kind.description)
        if self.value is None:
            object.__setattr__(self, "value", kind.value)
        if not (math.isfinite(self.after) and self.after >= 0):
            raise InputError("fault.after", got=self.after, expected="0 s or more", fix="Leave it out for now.")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError("fault.seconds", got=self.seconds, expected="more than 0", fix="Leave it out to clear it.")
        if self.count is not None and (not kind.countable or self.count < 1):
            countable = ", ".join(name for name, each in FAULT_KINDS.items() if each.countable)
            raise InputError("fault.count", got=self.count, expected=f"1 or more of {countable}", fix="Use seconds.")
        if not 0.0 < self.probability <= 1.0 or (self.probability < 1.0 and not kind.countable):
            expected = "above 0, up to 1; less than 1 only for replies and pictures"
            raise InputError("fault.probability", got=self.probability, expected=expected, fix="Leave it out.")

    def _check_place(self, field: str, name: str | None, names: tuple[str, ...], target_type: str) -> None:
        if name is None:
            return
        if FAULT_KINDS[self.kind].strikes != target_type:
            expected = f"none, as {self.kind} strikes a {FAULT_KINDS[self.kind].strikes}"
            raise InputError(f"fault.{field}", got=repr(name), expected=expected, fix="Leave it out.")
        if name not in names:
            raise unknown_name(f"fault.{field}", name, names)

    def strikes(self, component: str | None) -> bool:
        """Tell whether it strikes the joint or camera of this name."""
        named = self.joint or self.camera
        return named is None or named == component


class _ScheduledFault:
    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.begin = now + fault.after
        self.end = math.inf if fault.seconds is None else self.begin + fault.seconds
        self.remaining_count = fault.count


class FaultInjector:
    """The faults of one arm, shared by its threads; `clock` gives steady seconds."""

    def __init__(self, clock: Callable[[], float], seed: int = 0) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._scheduled: list[_ScheduledFault] = []
        self._generator = np.random.default_rng(seed)

    def schedule(self, fault: Fault) -> None:
        """Let a fault begin after its delay."""
        with self._lock:
            self._scheduled = [*self._scheduled, _ScheduledFault(fault, self._clock())]

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._scheduled = []

    def active(self, kind: str, component: str | None = None) -> Fault | None:
        """Return the newest fault of a kind that is present at a joint or camera now, without counting it."""
        # Asked for thousands of times a second: without faults it must cost nothing.
        if not self._scheduled:
            return None
        with self._lock:
            return next((each.fault for each in self._present(kind, component)), None)

    def trigger(self, kind: str, component: str | None = None) -> Fault | None:
        """Return the fault of a kind that strikes one reply or picture of a joint or camera, and count it."""
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
        """Draw which of so many bits is to be flipped."""
        with self._lock:
            return int(self._generator.integers(bits))

    def _present(self, kind: str, component: str | None) -> list[_ScheduledFault]:
        now = self._clock()
        if any(now >= each.end or each.remaining_count == 0 for each in self._scheduled):
            self._scheduled = [each for each in self._scheduled if now < each.end and each.remaining_count != 0]
        found = (each for each in reversed(self._scheduled) if each.fault.kind == kind and each.begin <= now)
        return [each for each in found if each.fault.strikes(component)]
