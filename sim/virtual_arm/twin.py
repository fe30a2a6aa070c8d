"""The twin: the simulated desk that the servos move, stepped in real time.

It does the same as `DeskEnv.step` when the same goals are held for the same time: it makes single physics steps, and
after as many as make a control step it updates the task's progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SaccadeError
from ..desk import arm
from ..desk.environment import DeskEnv
from ..desk.scene import PHYSICS_STEPS
from .bus import Bus
from .faults import FaultInjector
from .joint_trajectory import JointTrajectoryBuffer
from .servo import JointDrive, Servo

STALL_TORQUE = 2.94
"""Stall torque of the servo, in newton metres."""

MAX_LAG_SECONDS = 0.25
"""How far the physics may fall behind the clock, in seconds of its time; then the lag is skipped."""


@dataclass(frozen=True)
class EpisodeSetup:
    """One episode on the desk.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        initial_state: Number of the initial state.
        seed: Seed of the episode.
        instruction: Replaces the task's instruction; None keeps it.
    """

    suite: str
    task: str
    initial_state: int
    seed: int
    instruction: str | None = None


class Twin:
    """A simulated desk whose arm follows the servos, stepped by its own thread.

    `lock` is held while the desk moves or is changed; `failure` is the error that stopped it; `env` is the desk.

    Args:
        episode: The first episode.
        image_size: Height and width of the cameras' images in pixels.
        faults: Faults to apply.
        speed: Speed relative to real time.

    Raises:
        InputError: Unknown suite or task.
    """

    def __init__(self, episode: EpisodeSetup, image_size: int, faults: FaultInjector, speed: float) -> None:
        self.lock = threading.Lock()
        self.speed = speed
        self.failure = ""
        self.lost_seconds = 0.0
        self._faults = faults
        self._image_size = image_size
        self._servos: Sequence[Servo] = ()
        self._bus: Bus | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._motion = JointTrajectoryBuffer()
        self._suite_task: tuple[str, str] | None = None
        self.prepare(episode)

    def attach(self, bus: Bus) -> None:
        """Connect the joints to the servos of a bus."""
        self._bus, self._servos = bus, bus.servos

    def run(self) -> None:
        """Start the thread."""
        self._restart_clock()
        self._thread = threading.Thread(target=self._run, name="twin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the desk."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        self.env.close()

    def prepare(self, episode: EpisodeSetup) -> None:
        """Set up the desk for an episode, with the arm held at its start pose until its servos have torque.

        Servos lose torque and keep their goals, as if the arm had been moved back by hand. The episode's steps count
        from the first goal that is written to a servo with torque, or from `begin`.
        """
        with self.lock:
            if self._suite_task != (episode.suite, episode.task):
                if self._suite_task is not None:
                    self.env.close()
                self.env = DeskEnv(episode.suite, episode.task, image_size=self._image_size)
                # The camera renderer makes the images: the desk itself does not need to.
                self.env.rendering_enabled = False
                self._suite_task = episode.suite, episode.task
                self._read_model_indices()
            self._reset_actuators()
            options = {"initial_state": episode.initial_state, "instruction": episode.instruction}
            self.env.reset(seed=episode.seed, options=options)
            self.start_pose = self.env.joints()
            self._start_controls = self.env.data.ctrl.copy()
            self._held_at_start = [True] * len(arm.JOINTS)
            self._counting_steps, self._physics_step_count, self._success = False, 0, False
            self._disable_servo_torque()
            self._update_servo_states()
            self._motion.clear()
            self._restart_clock()

    def begin(self) -> None:
        """Count the episode's steps from now; lamps that are lit in the first steps are lit again."""
        with self.lock:
            self.env.start_episode()
            self._counting_steps, self._physics_step_count, self._success = True, 0, False

    def advance(self, now: float) -> None:
        """Make one physics step that ends at the time `now` (time.monotonic); the caller holds the lock."""
        bus = self._bus
        if bus is None:
            return
        with bus.lock:
            drives = [servo.drive(self._timestep_seconds) for servo in self._servos]
            self._held_at_start = [not servo.had_torque for servo in self._servos]
            goal_written = bus.goal_written
            bus.goal_written = False
        if goal_written and not self._counting_steps:
            self._counting_steps, self._physics_step_count = True, 0
        goals = np.full(len(drives), np.nan)
        for number, drive in enumerate(drives):
            self._apply_drive(number, drive)
            if drive.goal is not None:
                goals[number] = drive.goal
        before = self.env.joints()
        self.env.advance(1)
        for number, joint in enumerate(arm.JOINTS):
            if self._faults.active("stuck", joint):
                # High friction would still creep in MuJoCo; a jammed joint does not.
                self.env.data.qpos[self._addresses[number]] = before[number]
                self.env.data.qvel[self._dofs[number]] = 0.0
        self._update_servo_states()
        self._motion.add(now, self.env.joints(), goals, time.monotonic() - now)
        if self._counting_steps:
            self._physics_step_count += 1
            if self._physics_step_count % PHYSICS_STEPS == 0 and not self._is_over():
                self.env.update_progress()
                self._success = self.env.success()

    def joints(self) -> np.ndarray:
        """Return the true joint positions [6] in the contract's units."""
        with self.lock:
            return arm.to_units(self.env.joints())

    def joint_trajectory(self, since: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return times [n], joint positions [n, 6], followed goals [n, 6] and lateness [n] recorded after `since`."""
        with self.lock:
            return self._motion.after(since)

    def outcome(self) -> dict[str, Any]:
        """Return the state of the episode, see `VirtualArm.outcome`."""
        with self.lock:
            return {
                "success": self._success,
                "over": self._is_over(),
                "steps": self.env.steps if self._counting_steps else 0,
                "seconds": self.env.steps / arm.CONTROL_HZ if self._counting_steps else 0.0,
                "max_steps": self.env._max_episode_steps,
                "picked": self.env.picked,
                "target": self.env.task_spec.target,
                "instruction": self.env.instruction,
                "initial_state": self.env.initial_state,
                "lost_seconds": self.lost_seconds,
            }

    def _is_over(self) -> bool:
        return self._success or self.env.steps >= self.env._max_episode_steps

    def _read_model_indices(self) -> None:
        model = self.env.model
        self._actuators = np.array([model.actuator(joint).id for joint in arm.JOINTS])
        self._dofs = np.array([model.joint(joint).dofadr[0] for joint in arm.JOINTS])
        self._gains = model.actuator_gainprm.copy(), model.actuator_biasprm.copy()
        self._force_range = model.actuator_forcerange.copy()
        self._addresses = np.array([model.joint(joint).qposadr[0] for joint in arm.JOINTS])
        self._timestep_seconds = float(model.opt.timestep)

    def _reset_actuators(self) -> None:
        model = self.env.model
        model.actuator_gainprm[:], model.actuator_biasprm[:] = self._gains
        model.actuator_forcerange[:] = self._force_range
        # Last drive of each actuator; None for the desk's own servo.
        self._last_drives: list[JointDrive | None] = [None] * len(arm.JOINTS)

    def _disable_servo_torque(self) -> None:
        if self._bus is None:
            return
        with self._bus.lock:
            for servo in self._servos:
                servo.disable_torque()
            self._bus.goal_written = False

    def _restart_clock(self) -> None:
        """Make the next physics step due now."""
        self._next_step_at = time.monotonic() + self._timestep_seconds / self.speed

    def _run(self) -> None:
        try:
            while not self._stopping:
                wait = self._next_step_at - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                with self.lock:
                    self._catch_up()
        except SaccadeError as error:
            self.failure = str(error)
        except Exception as error:  # Reported to the parent by the next request.
            self.failure = f"{type(error).__name__}: {error}"

    def _catch_up(self) -> None:
        """Make the physics steps that are due; skip them if they are too late."""
        behind = (time.monotonic() - self._next_step_at) * self.speed
        if behind > MAX_LAG_SECONDS:
            self.lost_seconds += behind
            self._restart_clock()
            return
        # At most one control step at once: other threads wait for the lock.
        for _ in range(PHYSICS_STEPS):
            if time.monotonic() < self._next_step_at:
                return
            self.advance(self._next_step_at)
            self._next_step_at += self._timestep_seconds / self.speed

    def _apply_drive(self, number: int, drive: JointDrive) -> None:
        """Drive a joint's actuator like its servo; hold it at its start if the servo never had torque."""
        model, data, actuator = self.env.model, self.env.data, self._actuators[number]
        if self._held_at_start[number]:
            data.ctrl[actuator] = self._start_controls[actuator]
            return
        if drive.goal is not None:
            data.ctrl[actuator] = drive.goal
        last_drive = self._last_drives[number]
        if last_drive is None or (last_drive.stiffness, last_drive.torque) != (drive.stiffness, drive.torque):
            gain, bias = (array[actuator] * drive.stiffness for array in self._gains)
            # The servo's damping does not depend on its gain, but is 0 without torque.
            bias[2] = self._gains[1][actuator][2] * (drive.stiffness > 0)
            model.actuator_gainprm[actuator], model.actuator_biasprm[actuator] = gain, bias
            model.actuator_forcerange[actuator] = -drive.torque * STALL_TORQUE, drive.torque * STALL_TORQUE
        self._last_drives[number] = drive

    def _update_servo_states(self) -> None:
        data = self.env.data
        positions, velocities = self.env.joints().tolist(), data.qvel[self._dofs].tolist()
        efforts = (data.actuator_force[self._actuators] / STALL_TORQUE).tolist()
        if self._bus is None:
            return
        with self._bus.lock:
            states = zip(self._servos, positions, velocities, efforts, strict=True)
            for servo, position, velocity, effort in states:
                servo.update_joint_state(position, velocity, effort, self._timestep_seconds)
