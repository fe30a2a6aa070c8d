"""Injectors of the faults that reach a control process through its chunks or its arm's bus."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import numpy as np

from .....sim.virtual_arm.faults import Fault
from ..rig import LinkRig, send_signal
from ..swing_policy import CHUNK_FAULTS, SWING_AMPLITUDE, TRACKING_TOLERANCE


def corrupt_chunk(name: str) -> Callable[[LinkRig], object]:
    """Return an injector that sends one chunk with a fault of `CHUNK_FAULTS`."""
    return lambda rig: rig.feed(0.3, CHUNK_FAULTS[name], chunks=1)


def close_gripper_beyond(top: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that drives the gripper, 8 units a step, to a target beyond its range."""

    def corrupt(actions: np.ndarray) -> np.ndarray:
        changed = actions.copy()
        changed[:, 5] = np.minimum(changed[0, 5] + 8.0 * np.arange(len(changed)), top)
        return changed

    return corrupt


def speed_up(actions: np.ndarray) -> np.ndarray:
    """Move the first joint at 1.5 times its speed limit, towards the centre and beyond."""
    changed = actions.copy()
    towards = -1.0 if changed[0, 0] > 0 else 1.0
    changed[:, 0] += towards * 13.5 * np.arange(len(changed))
    return changed


def offset_start(actions: np.ndarray) -> np.ndarray:
    """Offset the first joint by 30 degrees, towards the far end of its range."""
    changed = actions.copy()
    changed[:, 0] += -30.0 if changed[0, 0] > 0 else 30.0
    return changed


def bus_fault(fault: Fault, seconds: float = 0.6) -> Callable[[LinkRig], object]:
    """Return an injector that schedules a fault of the bus while good chunks are sent."""

    def inject(rig: LinkRig) -> None:
        rig.world.inject_fault(fault)
        rig.feed(seconds)

    return inject


def jam_joint(rig: LinkRig) -> None:
    """Jam the first joint far from the centre: from there the swing leads away further than a joint may lag."""
    rig.feed(6.0, until=lambda: _is_swung_out(rig))
    rig.swing_policy.tracking_tolerance = np.inf
    try:
        rig.world.inject_fault(Fault("stuck", joint="shoulder_pan", seconds=3.0))
        rig.feed(3.0, until=lambda: _state(rig) == "stopped")
    finally:
        rig.swing_policy.tracking_tolerance = TRACKING_TOLERANCE


def _is_swung_out(rig: LinkRig) -> bool:
    found = rig.link.joints()
    return found is not None and abs(found[0][0]) > 0.8 * SWING_AMPLITUDE[0] and rig.swing_policy.is_near_path(*found)


def stop_heartbeat(rig: LinkRig) -> None:
    """Send neither heartbeats nor chunks for 0.7 s."""
    rig.sends_heartbeat = False
    rig.feed(0.7, chunks=0)
    rig.sends_heartbeat = True


def suspend_process(seconds: float, times: int = 1, pause: float = 0.0) -> Callable[[LinkRig], object]:
    """Return an injector that stops the control process (SIGSTOP) `times` times for `seconds` each."""

    def inject(rig: LinkRig) -> None:
        for _ in range(times):
            send_signal(rig.link.process_id, signal.SIGSTOP)
            time.sleep(seconds)
            send_signal(rig.link.process_id, signal.SIGCONT)
            rig.feed(pause)
        rig.feed(0.3)

    return inject


def request_far_pose(rig: LinkRig) -> None:
    """Request one pose, 30 degrees away, until it is reached."""
    found = rig.link.joints()
    if found is None:
        return
    pose = found[0] + 30.0 * np.array([-1.0 if found[0][0] > 0 else 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    rig.feed(0.8, lambda actions: np.broadcast_to(pose, actions.shape).astype(np.float32))


def request_stop(rig: LinkRig) -> None:
    """Ask the control process for a stop."""
    rig.link.stop("asked for")


def change_instruction(rig: LinkRig) -> None:
    """Drop the queue, as a new instruction does, and send one chunk that was decided before."""
    found = rig.link.joints()
    rig.link.drop()
    if found is not None:
        # A chunk decided before the change and in flight when it came must not move the arm.
        rig.send(*found, None)
    rig.feed(0.4, chunks=0)


def _state(rig: LinkRig) -> str:
    latest = rig.link.latest()
    return "" if latest is None else latest.state
