"""The options of `saccade run`, and which of them belong to which arm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...errors import InputError
from ...ranges import require_at_least
from ..checkpoints.worker_policies import Device, Precision

VIRTUAL = "virtual-so101"
ROBOT_TYPE_ALIASES = {"so101": "so101_follower", "so100": "so100_follower", "bi-so101": "bi_so_follower"}
"""Short names of LeRobot's robot types; any other type has its own name."""

DEFAULT_TASK = "desk_object/red_cube"
MIN_SPEED = 0.25


@dataclass(frozen=True)
class RunConfig:
    """Run a policy on an arm: the virtual SO-101, which needs no hardware, or any arm that LeRobot supports.

    The policy runs in one process. Another process, with a governor that enforces the arm's limits, controls the
    motors, and holds the arm whenever anything fails. A PHYSICAL ARM DOES NOT MOVE UNLESS --move IS GIVEN: without it
    the command does everything but the torque stays off. Ctrl-C stops the arm in place; the summary is still written.
    """

    checkpoint: Annotated[str | None, tyro.conf.Positional] = None
    """Folder of a checkpoint or of a training run, or `starter`, which ships with the package (default)."""
    policy: str | None = None
    """Address of a policy server (`saccade serve`) instead of a checkpoint: ws://127.0.0.1:PORT or wss://HOST:PORT."""
    token_file: Path | None = None
    """File with the server's token. Default: the variable SACCADE_TOKEN."""
    certificate: Path | None = None
    """PEM file of the server's certificate. Needed for a self-signed certificate."""
    robot: str = VIRTUAL
    """Robot: `virtual-so101`, `so101`, `so100`, `bi-so101`, or any robot type of LeRobot."""
    port: str | None = None
    """Serial port of a physical arm; `lerobot-find-port` finds it."""
    robot_id: str | None = None
    """Name under which LeRobot stores the arm's calibration."""
    calibration_dir: Path | None = None
    """Folder of the calibration. Default: LeRobot's folder."""
    cameras: tuple[str, ...] = ()
    """Cameras of a physical arm, named as the policy's cameras: front=opencv:0 wrist=opencv:/dev/video2,fps=60. Any
    camera type of LeRobot works. The default size is the one that the policy was trained with."""
    robot_options: tuple[str, ...] = ()
    """Other fields of LeRobot's robot configuration: left_arm_config.port=/dev/ttyACM0 use_degrees=true."""
    move: bool = False
    """Switch on the torque of a physical arm, so that it moves. Do a dry run first, and stay at the power plug."""
    dry_run: bool = False
    """Keep the torque of the virtual arm off."""
    task: tuple[str, ...] = ()
    """Tasks of the virtual arm, SUITE/TASK. Default: desk_object/red_cube."""
    initial_state: int = 0
    """Index of the virtual arm's first initial state; 0 to 49 are those of `saccade eval`."""
    seed: int = 0
    """Seed of the virtual arm's episodes, as in `saccade eval`."""
    speed: float = 1.0
    """Simulation speed of the virtual arm, 0.25 to 1. Use less than 1 if the machine is too slow for real time."""
    episodes: int = 1
    """Episodes of each task. The virtual arm resets its desk for each, to the next initial state."""
    instruction: str | None = None
    """Instruction for the arm. Default: the instruction of the task."""
    seconds: float | None = None
    """Time limit of an episode in seconds. Default: 20 on a physical arm, the limit of the task on the virtual one."""
    start: Literal["refuse", "ramp"] | None = None
    """If the first command is far from the arm's pose: refuse (stop; default on a physical arm) or ramp (move there
    slowly; default on the virtual arm, whose demonstrations begin with a rotation of the wrist)."""
    share: float = 1.0
    """Maximum speed as a fraction of the servos' speed."""
    ramp_share: float | None = None
    """Fraction of --share for a ramp to the first command. Default: 1/3 on a physical arm, 1 on the virtual arm. During
    a slow ramp the policy sees poses that are not in its demonstrations."""
    aggregation: Literal["latest", "average", "weighted", "keep"] = "latest"
    """How overlapping chunks are combined: latest, average, weighted (0.7 for the new one), or keep the running one."""
    loop_hz: float = 50.0
    """Rate of the control loop in Hz."""
    device: Device = "cpu"
    """Device of the policy."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    threads: int = 1
    """CPU threads of the policy."""
    out: Path | None = None
    """Output folder of summary.json and flight.jsonl. Default: arm_runs/ROBOT-TIME."""
    record: Path | None = None
    """Record the episodes to this new folder, as a LeRobotDataset for `saccade train`."""
    keep: Literal["all", "successes"] = "all"
    """Which episodes of the virtual arm --record keeps."""
    live: bool = False
    """Show cameras, joints and events while the arm runs. Needs the extra `rerun`."""
    live_file: Path | None = None
    """Write the live view to a .rrd file. Open it later with `rerun FILE`."""

    def __post_init__(self) -> None:
        if self.policy is not None and self.checkpoint is not None:
            raise InputError(
                "policy",
                got=f"{self.checkpoint} and {self.policy}",
                expected="a checkpoint or --policy",
                fix="Leave out the checkpoint or --policy.",
            )
        if self.policy is None and (self.token_file is not None or self.certificate is not None):
            raise InputError(
                "token file, certificate",
                got="no --policy",
                expected="a policy server",
                fix="Leave them out, or give --policy ws://HOST:PORT.",
            )
        require_at_least(self, 1, "episodes", "threads", option=True)
        require_at_least(self, 0, "seed", "initial_state", option=True)
        if not MIN_SPEED <= self.speed <= 1.0:
            raise InputError("speed", got=self.speed, expected=f"{MIN_SPEED:g} to 1", fix="Use 1 for real time.")
        for name, value in (("share", self.share), ("ramp_share", 1.0 if self.ramp_share is None else self.ramp_share)):
            if not 0.0 < value <= 1.0:
                raise InputError(
                    name, got=value, expected="above 0, at most 1", fix="Use 1 for the full speed of the servos."
                )
        if self.seconds is not None and not 0.0 < self.seconds <= 3600.0:
            raise InputError(
                "seconds", got=self.seconds, expected="above 0, at most 3600", fix="Set --seconds, for example 20."
            )
        if self.instruction is not None and not self.instruction.strip():
            raise InputError("instruction", got="no words", expected="a task", fix="Give the instruction in quotes.")
        if self.live_file is not None and self.live_file.suffix != ".rrd":
            raise InputError(
                "live_file", got=self.live_file, expected="a name that ends in .rrd", fix="Append .rrd to --live-file."
            )
        if self.keep != "all" and (self.record is None or not self.is_virtual):
            raise InputError(
                "keep",
                got=self.keep,
                expected="--record of the virtual arm",
                fix="Leave out --keep: it needs --record and the virtual arm.",
            )
        self._check_arm_options()

    @property
    def is_virtual(self) -> bool:
        """Whether this is the virtual arm."""
        return self.robot == VIRTUAL

    @property
    def has_torque(self) -> bool:
        """Whether the torque is switched on, so that the arm moves."""
        return not self.dry_run if self.is_virtual else self.move

    @property
    def robot_type(self) -> str:
        """LeRobot's name of the robot."""
        return "so101_follower" if self.is_virtual else ROBOT_TYPE_ALIASES.get(self.robot, self.robot)

    def _check_arm_options(self) -> None:
        """Raise InputError for options of the virtual arm on a physical one, or the reverse."""
        physical = ("port", "robot_id", "calibration_dir", "cameras", "robot_options", "move")
        virtual = ("task", "initial_state", "seed", "dry_run")
        given = [name for name in (physical if self.is_virtual else virtual) if getattr(self, name)]
        given += ["speed"] if not self.is_virtual and self.speed != 1.0 else []
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            if self.is_virtual:
                fix = "Leave them out, or name a physical arm: --robot so101."
            elif given == ["dry_run"]:
                fix = "Leave it out: a physical arm does not move unless --move is given."
            else:
                fix = "Leave them out: only the virtual arm has them. Give the task by --instruction."
            raise InputError(named, got=f"--robot {self.robot}", expected="options of that arm", fix=fix)
        if not self.is_virtual and self.instruction is None:
            raise InputError(
                "instruction",
                got="none",
                expected="a task",
                fix='Give --instruction "put the red cube in the bin".',
            )
        if not self.is_virtual and not self.cameras:
            raise InputError(
                "cameras", got="none", expected="the arm's cameras", fix="Give --cameras front=opencv:0 wrist=opencv:2."
            )
