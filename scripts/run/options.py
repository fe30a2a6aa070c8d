"""The options of `saccade run`, and what of them belongs to which arm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...errors import InputError
from ..checkpoints.worker_policies import Device, Precision

VIRTUAL = "virtual-so101"
ROBOT_TYPE_ALIASES = {"so101": "so101_follower", "so100": "so100_follower", "bi-so101": "bi_so_follower"}
"""Names for LeRobot's robot types that are easier to remember; any other type goes by its own name."""

DEFAULT_TASK = "desk_object/red_cube"
MIN_SPEED = 0.25


@dataclass(frozen=True)
class RunConfig:
    """Let a policy drive an arm: the virtual SO-101, which needs no hardware, or one that LeRobot drives.

    The policy decides in one process; another one, with a governor that keeps to the arm's limits, moves the motors,
    and holds the arm whenever anything fails. A PHYSICAL ARM DOES NOT MOVE UNLESS --move IS GIVEN: without it
    everything happens but torque. Ctrl-C stops the arm where it is and writes the summary all the same.
    """

    checkpoint: Annotated[str | None, tyro.conf.Positional] = None
    """Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package, which is taken
    when neither this nor --policy is given."""
    policy: str | None = None
    """A policy that `saccade serve` holds, ws://127.0.0.1:PORT or wss://HOST:PORT, in place of a checkpoint."""
    token_file: Path | None = None
    """File with the server's token; else the variable SACCADE_TOKEN."""
    certificate: Path | None = None
    """PEM file of the server's certificate, where no known authority has signed it."""
    robot: str = VIRTUAL
    """`virtual-so101`, `so101`, `so100`, `bi-so101`, or any robot type of LeRobot."""
    port: str | None = None
    """Serial port of a physical arm; `lerobot-find-port` finds it."""
    robot_id: str | None = None
    """The name under which LeRobot keeps the arm's calibration."""
    calibration_dir: Path | None = None
    """Folder of the calibration, where it is not LeRobot's own."""
    cameras: tuple[str, ...] = ()
    """Cameras of a physical arm, named as the policy knows them: front=opencv:0 wrist=opencv:/dev/video2,fps=60. Any
    camera type of LeRobot; size, where not given, is the one that the policy was trained with."""
    robot_options: tuple[str, ...] = ()
    """Further fields of LeRobot's configuration of the robot: left_arm_config.port=/dev/ttyACM0 use_degrees=true."""
    move: bool = False
    """Switch the torque of a physical arm on: it moves. Do a dry run first, and stay within reach of its plug."""
    dry_run: bool = False
    """Leave the virtual arm's torque off, too."""
    task: tuple[str, ...] = ()
    """Tasks of the virtual arm's desk, SUITE/TASK; desk_object/red_cube when none is given."""
    initial_state: int = 0
    """Number of the virtual arm's first initial state; 0 to 49 are those of `saccade eval`."""
    seed: int = 0
    """Seed of the virtual arm's episodes, as of `saccade eval`."""
    speed: float = 1.0
    """How fast the virtual arm's time passes, 0.25 to 1; below 1 for a machine that is too slow for real time."""
    episodes: int = 1
    """Episodes of each task; the virtual arm's desk is set up anew for each, from the next initial state."""
    instruction: str | None = None
    """What the arm is to do; a task has words of its own."""
    seconds: float | None = None
    """An episode's longest time: 20 on a physical arm, the task's own on the virtual one."""
    start: Literal["refuse", "ramp"] | None = None
    """When the first command lies far from the arm's pose: do not begin, as a physical arm unless told otherwise, or
    go there slowly, as the virtual one, whose demonstrations begin with a turn of the wrist."""
    share: float = 1.0
    """Share of the servos' speed that may be used."""
    ramp_share: float | None = None
    """Share of that for the way to a first command that lies far: a third on a physical arm, all on the virtual one.
    Slowness has a price: on the way a policy sees poses that its demonstrations did not have."""
    aggregation: Literal["latest", "average", "weighted", "keep"] = "latest"
    """What is played where chunks overlap."""
    loop_hz: float = 50.0
    """Rate of the control loop."""
    device: Device = "cpu"
    """Where the policy decides."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    threads: int = 1
    """CPU threads for a decision."""
    out: Path | None = None
    """Folder of summary.json and flight.jsonl; named after robot and time when none is given."""
    record: Path | None = None
    """New folder for the episodes as a LeRobotDataset, which `saccade train` reads."""
    keep: Literal["all", "successes"] = "all"
    """Which of the virtual arm's episodes --record keeps."""
    live: bool = False
    """Show cameras, joints and events while the arm runs. Needs the extra `rerun`."""
    live_file: Path | None = None
    """Write what --live shows into a .rrd file, to look at later: `rerun FILE`."""

    def __post_init__(self) -> None:
        if self.policy is not None and self.checkpoint is not None:
            raise InputError(
                "policy",
                got=f"{self.checkpoint} and {self.policy}",
                expected="a checkpoint or --policy",
                fix="Leave one out.",
            )
        if self.policy is None and (self.token_file is not None or self.certificate is not None):
            raise InputError(
                "token file, certificate",
                got="no --policy",
                expected="a policy server",
                fix="Leave them out, or give --policy ws://HOST:PORT.",
            )
        at_least = {"episodes": (self.episodes, 1), "threads": (self.threads, 1), "seed": (self.seed, 0)}
        at_least["initial_state"] = self.initial_state, 0
        for name, (value, least) in at_least.items():
            if value < least:
                raise InputError(name, got=value, expected=f"{least} or more", fix=f"Raise --{name.replace('_', '-')}.")
        if not MIN_SPEED <= self.speed <= 1.0:
            raise InputError("speed", got=self.speed, expected=f"{MIN_SPEED:g} to 1", fix="1 is real time.")
        for name, value in (("share", self.share), ("ramp_share", self.ramp_share or 1.0)):
            if not 0.0 < value <= 1.0:
                raise InputError(name, got=value, expected="above 0, at most 1", fix="1 is the servos' full speed.")
        if self.seconds is not None and not 0.0 < self.seconds <= 3600.0:
            raise InputError("seconds", got=self.seconds, expected="above 0, at most 3600", fix="The default is 20.")
        if self.instruction is not None and not self.instruction.strip():
            raise InputError("instruction", got="no words", expected="what to do", fix="Say it, in quotes.")
        if self.live_file is not None and self.live_file.suffix != ".rrd":
            raise InputError("live_file", got=self.live_file, expected="a name that ends in .rrd", fix="Append .rrd.")
        if self.keep != "all" and (self.record is None or not self.is_virtual):
            raise InputError(
                "keep", got=self.keep, expected="--record of the virtual arm", fix="Only there success is known."
            )
        self._check_arm_options()

    @property
    def is_virtual(self) -> bool:
        return self.robot == VIRTUAL

    @property
    def has_torque(self) -> bool:
        """Whether the arm is to move."""
        return not self.dry_run if self.is_virtual else self.move

    @property
    def robot_type(self) -> str:
        """LeRobot's name of the robot."""
        return "so101_follower" if self.is_virtual else ROBOT_TYPE_ALIASES.get(self.robot, self.robot)

    def _check_arm_options(self) -> None:
        """Refuse options of the one kind of arm that are given for the other."""
        physical = ("port", "robot_id", "calibration_dir", "cameras", "robot_options", "move")
        virtual = ("task", "initial_state", "seed", "dry_run")
        given = [name for name in (physical if self.is_virtual else virtual) if getattr(self, name)]
        given += ["speed"] if not self.is_virtual and self.speed != 1.0 else []
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            if self.is_virtual:
                fix = "Name the physical arm: --robot so101. The virtual one brings its own."
            elif given == ["dry_run"]:
                fix = "Leave it out: a physical arm does not move unless --move is given."
            else:
                fix = "Only the virtual arm has tasks: say what to do with --instruction."
            raise InputError(named, got=f"--robot {self.robot}", expected="options of that arm", fix=fix)
        if not self.is_virtual and self.instruction is None:
            raise InputError(
                "instruction",
                got="none",
                expected="what to do",
                fix='Give --instruction "put the red cube in the bin".',
            )
        if not self.is_virtual and not self.cameras:
            raise InputError(
                "cameras", got="none", expected="the arm's cameras", fix="Give --cameras front=opencv:0 wrist=opencv:2."
            )
