"""The control loop: at each deadline, read the arm, let the governor decide, write to the motors.

It runs in the control process and owns the arm. The clock is monotonic and deadlines are absolute, so that nothing
drifts and no ticks run in a burst to catch up: a late tick skips those that it missed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, SaccadeError
from ..arm import Arm, ArmDescription, BusError
from ..governor.chunk import ActionChunk
from ..governor.outputs import Event, GovernorVerdict
from ..governor.recorder import RecordedGovernor
from .channel import Channel, ChannelClosed
from .loop_metrics import DurationHistogram, LoopMetrics, quantile_ms
from .messages import (
    ArmRearmed,
    BeginEpisode,
    ChunkChecked,
    CloseSession,
    ControlMessage,
    DropQueue,
    EndEpisode,
    EpisodeBegun,
    EpisodeEnded,
    EventsReported,
    HoldArm,
    Measurement,
    Message,
    RearmArm,
    ReportFault,
    StopArm,
    SubmitChunk,
)
from .system_events import SignalRecorder, SuspendDetector

FINAL_HOLD_SECONDS = 0.1
"""Seconds for which the loop keeps writing the held pose before the control process leaves the arm."""

PROTECTION_CHECK_SECONDS = 0.2
"""Seconds between two checks whether a motor protects itself by giving no torque."""

MAX_SUSPEND_SECONDS = 0.1
"""Seconds that the machine may be suspended, during which the monotonic clock stops; after more the queue is old."""

MAX_KEPT_OBSERVATION_TIMES = 64
"""Accepted chunks whose observation time is kept until their first command is written."""


@dataclass(frozen=True)
class LoopSettings:
    """How a control loop runs.

    Attributes:
        loop_hz: Ticks per second, 1 to 1000.
        heartbeat_seconds: After this long without a message from the session the arm is held.
        dry_run: Keep the torque off and write nothing to the motors.
        raise_priority: Ask the system for a higher priority, if it grants one.
    """

    loop_hz: float = 50.0
    heartbeat_seconds: float = 0.3
    dry_run: bool = False
    raise_priority: bool = True

    def __post_init__(self) -> None:
        if not 1.0 <= self.loop_hz <= 1000.0:
            raise InputError("loop_hz", got=self.loop_hz, expected="1 to 1000 Hz", fix="Set loop_hz to 50.")
        if not self.heartbeat_seconds > self.tick:
            expected = f"more than a tick, {self.tick:g} s"
            fix = "Set heartbeat_seconds to 0.3."
            raise InputError("heartbeat_seconds", got=self.heartbeat_seconds, expected=expected, fix=fix)

    @property
    def tick(self) -> float:
        """Seconds between two ticks."""
        return 1.0 / self.loop_hz


class ControlLoop:
    """Drives one arm under one governor until the session closes, the session process ends, or SIGTERM comes.

    Args:
        arm: The connected arm.
        description: The arm as it was when it was connected.
        governor: Decides the command of each tick.
        channel: The control process's end.
        settings: How the loop runs.
        signals: The signals of the process; None handles none.
        clock: Returns steady seconds.
        sleep: Waits for seconds.
        recorder_failure: Returns why the flight record cannot be written, None while it can.
    """

    def __init__(
        self,
        arm: Arm,
        description: ArmDescription,
        governor: RecordedGovernor,
        channel: Channel,
        settings: LoopSettings,
        signals: SignalRecorder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        recorder_failure: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._arm, self._governor, self._channel, self._settings = arm, governor, channel, settings
        self._signals, self._clock, self._sleep = signals, clock, sleep
        self._recorder_failure = recorder_failure
        names = governor.governor.rules.limits.names
        # For each of the governor's joints its index in the arm's order.
        self._order = np.array([description.names.index(name) for name in names])
        self._torque_on, self._exit_requested, self._episode_running = False, False, False
        self._last_message_time = clock()
        self._periods, self._work, self._round_trips = DurationHistogram(), DurationHistogram(), DurationHistogram()
        self._observation_times: dict[int, float] = {}
        self._bus_failures, self._read_failed, self._next_protection_check = 0, False, 0.0
        self._suspend_detector = SuspendDetector()

    def run(self) -> None:
        """Tick until the session closes, the session process ends, or SIGTERM comes; hold the pose in any case."""
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
                    # An episode began or ended: switching torque takes time, and that is no overrun.
                    deadline = self._clock()
                self._tick(overran=overran)
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

    # Requests of the session.

    def _handle_messages(self) -> bool:
        """Do what the session asked for since the last tick; return whether that took time, as torque does."""
        paused = False
        self._handle_signals()
        messages = self._channel.receive()
        if self._channel.close_reason is not None and not any(isinstance(each, CloseSession) for each in messages):
            self._exit_requested = True
            self._governor.stop("the session process is gone", self._clock())
            return False
        if messages:
            self._last_message_time = self._clock()
        for message in messages:
            paused |= self._handle_message(message)
        if self._episode_running and self._clock() - self._last_message_time > self._settings.heartbeat_seconds:
            self._governor.hold("heartbeat", "the session process gives no sign of life", self._clock())
        return paused

    def _handle_message(self, message: Message) -> bool:
        """Do what one message asks for; return whether torque was switched, which takes time."""
        now = self._clock()
        match message:
            case SubmitChunk(chunk):
                self._submit(chunk, now)
            case BeginEpisode(episode):
                self._begin(episode)
                return True
            case EndEpisode(release):
                self._end(now, release=release)
                self._send(EpisodeEnded())
                return True
            case ReportFault(reason, detail):
                self._governor.fault(reason, detail, now)
            case HoldArm(reason, detail):
                self._governor.hold(reason, detail, now)
            case StopArm(reason):
                self._governor.stop(reason, now)
            case DropQueue():
                self._governor.drop(now)
            case RearmArm():
                self._rearm(now)
                return True
            case CloseSession(release):
                self._exit_requested = True
                self._end(now, release=release)
        return False

    def _submit(self, chunk: ActionChunk, now: float) -> None:
        verdict = self._governor.submit(chunk, now)
        if verdict.accepted:
            self._observation_times[chunk.sequence] = chunk.observed
            while len(self._observation_times) > MAX_KEPT_OBSERVATION_TIMES:
                del self._observation_times[min(self._observation_times)]
        self._send(ChunkChecked(chunk.sequence, verdict))

    def _begin(self, episode: int) -> None:
        """Begin an episode: measure, ask the governor, make the present pose the goal, only then switch torque on."""
        try:
            pose = self._arm.measure()
            verdict = self._governor.begin(episode, pose[self._order], self._clock())
            if verdict.accepted:
                self._enable_torque()
        except BusError as error:
            self._bus_failures += 1
            self._governor.end(self._clock())
            self._send(EpisodeBegun(GovernorVerdict(False, "bus", str(error))))
            return
        self._episode_running = verdict.accepted
        self._last_message_time = self._clock()
        self._send(EpisodeBegun(verdict))

    def _end(self, now: float, *, release: bool) -> None:
        self._governor.end(now)
        self._episode_running = False
        if release:
            self._disable_torque()

    def _enable_torque(self) -> None:
        # Also if it should be on: a servo may have lost it since, and the goal is the present pose in any case.
        if not self._settings.dry_run:
            self._arm.hold()
            self._arm.set_torque(on=True)
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
        self._send(ArmRearmed(verdict))

    def _disable_torque(self) -> None:
        if self._torque_on:
            try:
                self._arm.set_torque(on=False)
                self._torque_on = False
            except BusError as error:
                self._bus_failures += 1
                self._send(EventsReported((Event("bus", f"torque stays on: {error}", self._clock()),)))

    def _handle_signals(self) -> None:
        if self._signals is None:
            return
        for name in self._signals.take():
            self._governor.stop(name, self._clock())
            # Ctrl-C reaches the whole process group, and the session decides what follows; SIGTERM is for this process.
            self._exit_requested |= name == "SIGTERM"

    # One tick.

    def _tick(self, *, overran: bool) -> None:
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
        message = Measurement(
            time=now,
            joints=measured,
            target=command.target,
            state=command.state,
            reason=governor.reason,
            remaining=governor.remaining(now),
            sequence=governor.sequence,
            events=command.events,
        )
        self._send(message, may_drop=not command.events)

    def _measure(self) -> np.ndarray | None:
        """Return the joints [A] in the governor's order, None if the bus does not answer; stop if a servo was reset."""
        try:
            measured = self._arm.measure()[self._order]
            if self._read_failed and self._torque_on and not self._arm.has_torque():
                # Only a re-arm switches torque on again: it is unknown how the arm moved meanwhile.
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
        """Stop if a motor gives no torque to protect itself; goals are still written, so that it never jumps back."""
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
        suspended_seconds = self._suspend_detector.take()
        if suspended_seconds > MAX_SUSPEND_SECONDS:
            # The monotonic clock stops while a machine is suspended, and old chunks would look fresh after it.
            self._governor.stop(f"the machine was suspended for {suspended_seconds:.1f} s", self._clock())
        failure = self._recorder_failure()
        if failure is not None and self._governor.governor.state != "stopped":
            self._governor.stop(f"the flight recorder failed: {failure}", self._clock())

    def _hold_before_exit(self) -> None:
        """Write the held pose for FINAL_HOLD_SECONDS; the servos keep their goal and their torque afterwards."""
        ends = self._clock() + FINAL_HOLD_SECONDS
        while self._torque_on and self._clock() < ends:
            try:
                self._hold_once()
            except Exception:
                # Any fault of the governor: hold the arm without it.
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

    def _send(self, message: ControlMessage, *, may_drop: bool = False) -> None:
        # If the other end is closed, `_handle_messages` notices it.
        with contextlib.suppress(ChannelClosed):
            self._channel.send(message, may_drop=may_drop)

    def metrics(self) -> LoopMetrics:
        """Return the metrics of the loop; the session adds those of the decisions."""
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
