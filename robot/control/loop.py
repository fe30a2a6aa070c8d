"""The control loop: at each deadline, read the arm, let the governor decide, write to the motors.

It runs in the control process and owns the arm. The clock is steady and deadlines are absolute, so that nothing
drifts and nothing is made up for in a burst: a tick that comes late leaves out those that it missed.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, SaccadeError
from ..arm import Arm, ArmDescription, BusError
from ..governor.chunk import ActionChunk
from ..governor.recorder import RecordedGovernor
from ..governor.verdict import GovernorVerdict
from .channel import Channel, ChannelClosed
from .loop_metrics import DurationHistogram, LoopMetrics, quantile_ms

FINAL_HOLD_SECONDS = 0.1
"""Seconds for which the pose is still held, write after write, before the control process leaves the arm."""

PROTECTION_CHECK_SECONDS = 0.2
"""How often it is looked whether a motor has let go by itself."""

MAX_SUSPEND_SECONDS = 0.1
"""Seconds by which the machine may have slept unnoticed by the steady clock; more, and what is queued is old."""


@dataclass(frozen=True)
class LoopSettings:
    """How a control loop runs: its rate, how long it does without a sign of life, whether the torque stays off.

    `raise_priority`: ask the system for a higher one, where it may be had.
    """

    loop_hz: float = 50.0
    heartbeat_seconds: float = 0.3
    dry_run: bool = False
    raise_priority: bool = True

    def __post_init__(self) -> None:
        if not 1.0 <= self.loop_hz <= 1000.0:
            raise InputError("loop_hz", got=self.loop_hz, expected="1 to 1000 Hz", fix="The default is 50.")
        if not self.heartbeat_seconds > self.tick:
            expected = f"more than a tick, {self.tick:g} s"
            raise InputError(
                "heartbeat_seconds", got=self.heartbeat_seconds, expected=expected, fix="The default is 0.3."
            )

    @property
    def tick(self) -> float:
        return 1.0 / self.loop_hz


class Signals:
    """Note SIGINT and SIGTERM instead of dying by them: the arm is held first."""

    def __init__(self) -> None:
        self.received: list[str] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received.append(signal.Signals(number).name)


class ControlLoop:
    """Drive one arm under one governor until the session ends, goes away, or the process is told to end.

    `order` tells for each of the governor's joints its place in the arm's.
    """

    def __init__(
        self,
        arm: Arm,
        description: ArmDescription,
        governor: RecordedGovernor,
        channel: Channel,
        settings: LoopSettings,
        signals: Signals | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        recorder_failure: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._arm, self._governor, self._channel, self._settings = arm, governor, channel, settings
        self._signals, self._clock, self._sleep = signals, clock, sleep
        self._recorder_failure = recorder_failure
        names = governor.governor.rules.limits.names
        self._order = np.array([description.names.index(name) for name in names])
        self._torque_on, self._exit_requested, self._episode_running = False, False, False
        self._last_message_time = clock()
        self._periods, self._work, self._round_trips = DurationHistogram(), DurationHistogram(), DurationHistogram()
        self._observation_times: dict[int, float] = {}
        self._bus_failures, self._read_failed, self._next_protection_check = 0, False, 0.0
        self._last_suspended_seconds = self._suspended_seconds()
        self._signals_seen = 0

    def run(self) -> None:
        """Tick until the session says `close`, is gone, or SIGTERM comes; the pose is held whatever ends it."""
        tick = self._settings.tick
        deadline = last = self._clock()
        overran = False
        try:
            while not self._exit_requested:
                wait = deadline - self._clock()
                if wait > 0:
                    self._sleep(wait)
                started = self._clock()
                self._periods.add(started - last)
                last = started
                if self._handle_messages():
                    # An episode began or ended: torque takes its time, and that is no overrun.
                    deadline = self._clock()
                self._tick(overran)
                ended = self._clock()
                self._work.add(ended - started)
                overran = ended > deadline + tick
                deadline += tick
                if overran:
                    deadline += tick * np.ceil((ended - deadline) / tick)
        except BaseException as error:
            self._governor.stop(f"{type(error).__name__}: {error}", self._clock())
            raise
        finally:
            self._hold_before_exit()

    # What the session says.

    def _handle_messages(self) -> bool:
        """Do what the session asked for since the last tick; returns whether that took its time."""
        paused = False
        self._handle_signals()
        messages = self._channel.receive()
        if self._channel.close_reason is not None and all(message["kind"] != "close" for message, _ in messages):
            self._exit_requested = True
            self._governor.stop("the session process is gone", self._clock())
            return False
        if messages:
            self._last_message_time = self._clock()
        for message, array in messages:
            paused |= self._handle_message(message, array)
        if self._episode_running and self._clock() - self._last_message_time > self._settings.heartbeat_seconds:
            self._governor.hold("heartbeat", "the session process gives no sign of life", self._clock())
        return paused

    def _handle_message(self, message: dict[str, Any], array: np.ndarray | None) -> bool:
        """Do what one message asks for; returns whether torque was switched, which takes its time."""
        kind, now = message["kind"], self._clock()
        if kind == "chunk":
            fields = ("session", "episode", "sequence", "observed", "period")
            chunk = ActionChunk(**{field: message[field] for field in fields}, actions=array)
            verdict = self._governor.submit(chunk, now)
            if verdict.accepted:
                self._observation_times[chunk.sequence] = chunk.observed
                while len(self._observation_times) > 64:
                    del self._observation_times[min(self._observation_times)]
            answer = {"sequence": chunk.sequence, "accepted": verdict.accepted}
            self._send_message({"kind": "verdict", **answer, "reason": verdict.reason, "detail": verdict.detail})
        elif kind == "begin":
            return self._begin(message["episode"])
        elif kind == "end":
            self._governor.end(now)
            self._episode_running = False
            if message["release"]:
                self._disable_torque()
            self._send_message({"kind": "ended"})
            return True
        elif kind in ("fault", "hold"):
            getattr(self._governor, kind)(message["reason"], message["detail"], now)
        elif kind == "stop":
            self._governor.stop(message["reason"], now)
        elif kind == "drop":
            self._governor.drop(now)
        elif kind == "rearm":
            self._rearm(now)
            return True
        elif kind == "close":
            self._governor.end(now)
            self._episode_running, self._exit_requested = False, True
            if message["release"]:
                self._disable_torque()
        return False

    def _begin(self, episode: int) -> bool:
        """Begin an episode: measure, ask the governor, make the present pose the goal, only then switch torque on."""
        try:
            pose = self._arm.measure()
            verdict = self._governor.begin(episode, pose[self._order], self._clock())
            if verdict.accepted:
                self._enable_torque()
        except BusError as error:
            self._bus_failures += 1
            self._governor.end(self._clock())
            self._send_message({"kind": "begun", "accepted": False, "reason": "bus", "detail": str(error)})
            return True
        self._episode_running = verdict.accepted
        self._last_message_time = self._clock()
        answer = {"accepted": verdict.accepted, "reason": verdict.reason, "detail": verdict.detail}
        self._send_message({"kind": "begun", **answer})
        return True

    def _enable_torque(self) -> None:
        # Also where it should be on: a servo may have lost it since, and the goal is the present pose in any case.
        if not self._settings.dry_run:
            self._arm.hold()
            self._arm.set_torque(True)
            self._torque_on = True

    def _rearm(self, now: float) -> None:
        verdict = self._governor.rearm(now)
        try:
            if verdict.accepted and self._episode_running:
                self._enable_torque()
        except BusError as error:
            self._bus_failures += 1
            self._governor.fault("bus", str(error), self._clock())
            verdict = GovernorVerdict(False, "bus", str(error))
        self._send_message({"kind": "rearmed", "accepted": verdict.accepted, "detail": verdict.detail})

    def _disable_torque(self) -> None:
        if self._torque_on:
            try:
                self._arm.set_torque(False)
                self._torque_on = False
            except BusError as error:
                self._bus_failures += 1
                self._send_message({"kind": "event", "events": [["bus", f"torque stays on: {error}", self._clock()]]})

    def _handle_signals(self) -> None:
        if self._signals is None:
            return
        for name in self._signals.received[self._signals_seen :]:
            self._signals_seen += 1
            self._governor.stop(name, self._clock())
            # Ctrl-C reaches the whole group, and the session will say what is to come; SIGTERM means this process.
            self._exit_requested |= name == "SIGTERM"

    # One tick.

    def _tick(self, overran: bool) -> None:
        self._check_machine()
        measured = self._measure()
        now = self._clock()
        command = self._governor.tick(now, measured, measured_at=now, overran=overran)
        if command.target is not None and self._torque_on:
            self._write(command.target, now)
        observed = self._observation_times.pop(command.sequence, None)
        if observed is not None:
            self._round_trips.add(self._clock() - observed)
        governor = self._governor.governor
        status_message = {"kind": "measurement", "time": now, "state": command.state, "reason": governor.reason}
        status_message |= {"remaining": governor.remaining(now), "sequence": governor.sequence}
        status_message["joints"] = None if measured is None else measured.tolist()
        status_message["target"] = None if command.target is None else command.target.tolist()
        if command.events:
            status_message["events"] = [[event.kind, event.detail, event.time] for event in command.events]
        self._send_message(status_message, may_drop=not command.events)

    def _measure(self) -> np.ndarray | None:
        """Return the joints in the governor's order, None where the bus gives none; notices servos that were reset."""
        try:
            measured = self._arm.measure()[self._order]
            if self._read_failed and self._torque_on and not self._arm.has_torque():
                # Not to be switched on again unasked: nobody knows what the arm did meanwhile.
                self._torque_on = False
                self._governor.fault("torque", "a servo has lost its torque", self._clock())
            self._check_motor_protection()
            self._read_failed = False
        except BusError:
            self._bus_failures += 1
            self._read_failed = True
            return None
        return measured

    def _check_motor_protection(self) -> None:
        """Stop where a motor lets go to protect itself; goals are still written, so that it never snaps back."""
        if not self._torque_on or self._clock() < self._next_protection_check:
            return
        self._next_protection_check = self._clock() + PROTECTION_CHECK_SECONDS
        names = self._arm.motors_in_protection()
        if names:
            self._governor.fault("limp", f"{names} let go, too hot or with too much current", self._clock())

    def _write(self, target: np.ndarray, now: float) -> None:
        pose = np.empty_like(target)
        pose[self._order] = target
        try:
            self._arm.command(pose)
        except BusError as error:
            self._bus_failures += 1
            self._governor.hold("bus", f"the goal could not be written: {error}", now)

    def _check_machine(self) -> None:
        suspended_seconds = self._suspended_seconds()
        if suspended_seconds - self._last_suspended_seconds > MAX_SUSPEND_SECONDS:
            # The steady clock stands still while a machine sleeps, and chunks would look fresh after it.
            self._governor.stop(
                f"the machine slept for {suspended_seconds - self._last_suspended_seconds:.1f} s", self._clock()
            )
        self._last_suspended_seconds = suspended_seconds
        failure = self._recorder_failure()
        if failure is not None and self._governor.governor.state != "stopped":
            self._governor.stop(f"the flight recorder failed: {failure}", self._clock())

    @staticmethod
    def _suspended_seconds() -> float:
        if not hasattr(time, "CLOCK_BOOTTIME"):
            return 0.0
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()

    def _hold_before_exit(self) -> None:
        """Hold the pose for a moment, write after write, then leave; the servos keep their goal and their torque."""
        ends = self._clock() + FINAL_HOLD_SECONDS
        while self._torque_on and self._clock() < ends:
            try:
                self._hold_once()
            except Exception:
                # Whatever is broken in here, the arm is still to be held, and by the shortest way.
                with contextlib.suppress(SaccadeError, OSError):
                    self._arm.hold()
            self._sleep(self._settings.tick)

    def _hold_once(self) -> None:
        measured = None
        with contextlib.suppress(BusError):
            measured = self._arm.measure()[self._order]
        now = self._clock()
        command = self._governor.tick(now, measured, measured_at=now)
        if command.target is not None:
            self._write(command.target, now)

    def _send_message(self, message: dict[str, Any], *, may_drop: bool = False) -> None:
        # Whether the other end is gone is noticed where its messages are read.
        with contextlib.suppress(ChannelClosed):
            self._channel.send(message, may_drop=may_drop)

    def figures(self) -> LoopMetrics:
        """Return what the loop has to say of itself; decisions are timed elsewhere."""
        governor = self._governor.governor
        counts, ticks = governor.counts, max(governor.counts["ticks"], 1)
        return LoopMetrics(
            loop_hz=self._settings.loop_hz,
            ticks=counts["ticks"],
            overruns=counts["overruns"],
            overrun_fraction=counts["overruns"] / ticks,
            period_p50_ms=quantile_ms(self._periods, 0.5),
            period_p99_ms=quantile_ms(self._periods, 0.99),
            period_max_ms=1000.0 * self._periods.longest if self._periods.count else None,
            work_p99_ms=quantile_ms(self._work, 0.99),
            round_trip_p50_ms=quantile_ms(self._round_trips, 0.5),
            round_trip_p99_ms=quantile_ms(self._round_trips, 0.99),
            chunks=counts["accepted"],
            position_clamps=counts["position_clamps"],
            speed_clamps=counts["speed_clamps"],
            smoothed=counts["smoothed"],
            stops=counts["stops"],
            bus_retries=self._arm.retries,
            bus_failures=self._bus_failures,
            holds=dict(governor.holds),
            rejected=dict(governor.rejected),
        )
