"""The control process: it owns the arm from the first byte on the bus to the last.

It gets its requests over a channel, and holds the arm when the channel closes or falls silent; `loop` describes a tick.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Callable

from ...errors import InputError, SaccadeError
from ..arm import Arm
from ..governor.governor import Governor
from ..governor.recorder import FlightRecorder, RecordedGovernor
from .channel import Channel, ChannelClosed
from .loop import ControlLoop, LoopSettings
from .messages import ArmConnected, ControlFailed, GovernorStarted, InputRefused, LoopEnded, StartGovernor
from .system_events import SignalRecorder

NICENESS = -10
REALTIME_PRIORITY = 10


def control_process(end: socket.socket, make_arm: Callable[[], Arm], settings: LoopSettings) -> None:
    """Run the control process: connect, describe the arm, wait for the rules, run the loop, close the arm.

    Args:
        end: The control process's end of `Channel.pair`.
        make_arm: Builds the arm.
        settings: How the loop runs.
    """
    signals = SignalRecorder()
    channel = Channel(end)
    arm: Arm | None = None
    recorder: FlightRecorder | None = None
    try:
        arm = make_arm()
        description = arm.connect()
        channel.send(ArmConnected(description))
        start = _wait_for_rules(channel, signals)
        if start is None:
            return
        if settings.raise_priority:
            # Before the recorder's thread starts, which inherits it.
            with contextlib.suppress(OSError):
                os.nice(NICENESS)
        if start.record is not None:
            recorder = FlightRecorder(start.record, start.rules)
        governor = RecordedGovernor(Governor(start.rules), recorder)
        failure = (lambda: recorder.failure) if recorder is not None else (lambda: None)
        loop = ControlLoop(arm, description, governor, channel, settings, signals, recorder_failure=failure)
        if settings.raise_priority:
            _raise_priority()
        # The objects built so far stay: the garbage collector need not walk through them between two ticks.
        gc.collect()
        gc.freeze()
        channel.send(GovernorStarted())
        loop.run()
        channel.send(LoopEnded(loop.metrics()))
    except ChannelClosed:
        return
    except SaccadeError as error:
        _send_error(channel, error)
    finally:
        channel.drain(1.0)
        if recorder is not None:
            recorder.close()
        if arm is not None:
            arm.close()


def _wait_for_rules(channel: Channel, signals: SignalRecorder) -> StartGovernor | None:
    """Wait for the rules; None if the session leaves, or a signal comes, before it sends them."""
    while not signals.received:
        channel.wait(0.1)
        for message in channel.receive():
            return message if isinstance(message, StartGovernor) else None
        if channel.close_reason is not None:
            return None
    return None


def _raise_priority() -> None:
    """Ask for a real-time priority for the loop's thread; without the right to it everything stays as it is.

    The loop sleeps while it waits for the bus, so it cannot starve the process that answers there.
    """
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))


def _send_error(channel: Channel, error: SaccadeError) -> None:
    with contextlib.suppress(ChannelClosed):
        if isinstance(error, InputError):
            channel.send(InputRefused(error.what, str(error.got), str(error.expected), error.fix))
        else:
            channel.send(ControlFailed(str(error)))
