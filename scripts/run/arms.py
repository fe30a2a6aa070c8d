"""The arm of a `saccade run`: its driver, its cameras, and how its episodes begin and end.

LeRobot is imported inside functions.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError, unknown_name
from ...policy.contract import CameraSpec, Contract
from ...robot.arm import Arm
from ...robot.session.settings import EpisodePlan
from .options import DEFAULT_TASK, RunConfig

CAMERA_SOURCE_FIELDS = {"opencv": "index_or_path", "intelrealsense": "serial_number_or_name", "zmq": "server_address"}
"""The field of LeRobot's camera configuration that follows the colon of --cameras, by camera type."""

DEFAULT_SECONDS = 20.0
MAX_EPISODE_SECONDS = 120.0
"""Time limit of an episode on the virtual arm, in simulated seconds: its tasks end before that."""

FRAME_RATE = 30
VIRTUAL_ID = "virtual"


class RunArm(Protocol):
    """An arm that is ready to run.

    Attributes:
        description: The arm in words.
        make_arm: Builds the arm in the control process.
        cameras: LeRobot's camera configurations, or cameras, by name.
        episodes: The plans of the episodes.
    """

    description: str
    make_arm: Callable[[], Arm]
    cameras: Mapping[str, Any]
    episodes: Sequence[EpisodePlan]

    def prepare(self, episode: int) -> str | None:
        """Prepare the world for an episode; return its instruction, None to keep the plan's."""
        ...

    def start_clock(self) -> None:
        """Start the time of an episode."""
        ...

    def end_condition(self) -> dict[str, Any] | None:
        """Return the outcome of the episode, None while it runs."""
        ...

    def label(self, episode: int) -> dict[str, Any]:
        """Return what distinguishes an episode in the summary."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what the summary says about the world."""
        ...

    def close(self) -> None:
        """End the world, if there is one."""
        ...


@dataclass(frozen=True)
class DeskStart:
    """Start of one episode on the virtual arm."""

    suite: str
    task: str
    initial_state: int
    seed: int


class VirtualRunArm:
    """The virtual SO-101, in a process that `close` ends; its episodes are those of `saccade eval`."""

    def __init__(self, config: RunConfig, contract: Contract, folder: Path) -> None:
        starts = desk_starts(config)
        size = _image_size(contract.cameras)
        from lerobot.robots.so_follower import SO101FollowerConfig

        from ...robot.drivers.lerobot_arm import LeRobotArm
        from ...sim.virtual_arm.world import VirtualArm

        first = starts[0]
        self._starts, self._instruction = starts, config.instruction
        # The frame rate in wall time is the same at any speed: the age limit of frames does not depend on it.
        self._world = VirtualArm.start(
            first.suite,
            first.task,
            initial_state=first.initial_state,
            seed=first.seed,
            instruction=config.instruction,
            image_size=size,
            speed=config.speed,
            frame_rate=FRAME_RATE / config.speed,
        )
        calibration = self._world.write_calibration(folder / "calibration", VIRTUAL_ID)
        robot = SO101FollowerConfig(port=self._world.port, id=VIRTUAL_ID, calibration_dir=calibration.parent)
        self.make_arm: Callable[[], Arm] = functools.partial(LeRobotArm, robot)
        self.cameras: Mapping[str, Any] = self._world.cameras
        seconds = config.seconds or MAX_EPISODE_SECONDS / config.speed
        plan = EpisodePlan(config.instruction or self._world.instruction, seconds)
        self.episodes: Sequence[EpisodePlan] = [plan] * len(starts)
        self.description = f"virtual SO-101 at {self._world.port}, calibration {calibration}"

    def prepare(self, episode: int) -> str:
        """Reset the desk for an episode; return its instruction."""
        start = self._starts[episode]
        self._world.reset(
            suite=start.suite,
            task=start.task,
            initial_state=start.initial_state,
            seed=start.seed,
            instruction=self._instruction,
        )
        return self._world.instruction

    def start_clock(self) -> None:
        """Start the time of the episode."""
        self._world.begin()

    def end_condition(self) -> dict[str, Any] | None:
        """Return the outcome of the episode, None while it runs."""
        outcome = self._world.outcome()
        return self._outcome_fields(outcome) if outcome["success"] or outcome["over"] else None

    def label(self, episode: int) -> dict[str, Any]:
        """Return the task, initial state and seed of an episode."""
        return vars(self._starts[episode])

    def facts(self) -> dict[str, Any]:
        """Return how many simulated seconds were lost because the machine was too slow."""
        return {"lost_seconds": round(self._world.outcome()["lost_seconds"], 3)}

    def close(self) -> None:
        """End the world."""
        self._world.close()

    @staticmethod
    def _outcome_fields(outcome: Mapping[str, Any]) -> dict[str, Any]:
        return {name: outcome[name] for name in ("success", "steps", "seconds", "picked")}


class PhysicalRunArm:
    """An arm that LeRobot drives; nothing is opened yet."""

    def __init__(self, config: RunConfig, contract: Contract) -> None:
        self.cameras: Mapping[str, Any] = camera_configs(config.cameras, contract.cameras)
        robot = robot_config(config)
        from ...robot.drivers.lerobot_arm import LeRobotArm

        self.make_arm: Callable[[], Arm] = functools.partial(LeRobotArm, robot)
        plan = EpisodePlan(config.instruction or "", config.seconds or DEFAULT_SECONDS)
        self.episodes: Sequence[EpisodePlan] = [plan] * config.episodes
        self.description = f"{config.robot_type} {config.robot_id or ''}".strip()
        self.description += f" at {config.port}" if config.port else ""

    def prepare(self, episode: int) -> None:
        return None

    def start_clock(self) -> None:
        return None

    def end_condition(self) -> None:
        return None

    def label(self, episode: int) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        return None


def desk_starts(config: RunConfig) -> list[DeskStart]:
    """Return the starts of the virtual arm's episodes, task by task; InputError for an unknown task."""
    from ...sim.desk.tasks.catalogue import find_task
    from ...sim.perturbation.job import episode_seed

    starts = []
    for name in config.task or (DEFAULT_TASK,):
        suite, slash, task = name.partition("/")
        if not (suite and slash and task):
            raise InputError("task", got=repr(name), expected="SUITE/TASK", fix=f"Write it like {DEFAULT_TASK}.")
        find_task(suite, task)
        starts += [
            DeskStart(suite, task, state, episode_seed(config.seed, suite, task, state))
            for state in range(config.initial_state, config.initial_state + config.episodes)
        ]
    return starts


def _image_size(cameras: tuple[CameraSpec, ...]) -> int:
    sizes = {(camera.height, camera.width) for camera in cameras}
    if len(sizes) != 1 or len(set(*sizes)) != 1:
        got = ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in cameras)
        raise InputError(
            "cameras of the policy",
            got=got,
            expected="square images of one size",
            fix="Use a policy that was trained on the desk: the virtual arm has only its cameras.",
        )
    return cameras[0].height


def check_port(config: RunConfig) -> None:
    """Raise InputError if the given port does not exist, before a policy is loaded."""
    if config.port is not None and config.port.startswith("/") and not Path(config.port).exists():
        raise InputError(
            f"port of {config.robot_type}",
            got=f"no such device: {config.port}",
            expected="a serial port",
            fix="Plug the arm in and name its port; `lerobot-find-port` finds it.",
        )


def robot_config(config: RunConfig) -> Any:
    """Return LeRobot's configuration of the robot that the options name.

    Args:
        config: The options of the run.

    Raises:
        InputError: The type is unknown, an option is missing, or LeRobot refuses a field.
    """
    from lerobot import robots
    from lerobot.robots import RobotConfig

    _register_lerobot_types(robots)
    known = RobotConfig.get_known_choices()
    if config.robot_type not in known:
        raise unknown_name("robot", config.robot, ["virtual-so101", "so101", *sorted(known)])
    fields: dict[str, Any] = {"type": config.robot_type, "id": config.robot_id}
    fields |= {"port": config.port} if config.port else {}
    fields |= {"calibration_dir": str(config.calibration_dir)} if config.calibration_dir else {}
    for option in config.robot_options:
        name, value = _parse_assignment(option, "robot option", "use_degrees=true")
        *folders, last = name.split(".")
        place = fields
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    if config.robot_id is None:
        raise InputError(
            "robot_id",
            got="none",
            expected="the name under which the arm was calibrated",
            fix="Give --robot-id; `lerobot-calibrate --robot.id=NAME` makes one.",
        )
    needs_port = any(
        field.name == "port" and field.default is dataclasses.MISSING
        for field in dataclasses.fields(known[config.robot_type])
    )
    if needs_port and "port" not in fields:
        fix = "Plug the arm in and give --port; `lerobot-find-port` finds it."
        raise InputError(f"port of {config.robot_type}", got="none", expected="a serial port", fix=fix)
    return _decode_config(
        RobotConfig, fields, f"configuration of {config.robot_type}", "See --port and --robot-options."
    )


def camera_configs(given: Sequence[str], specs: tuple[CameraSpec, ...]) -> dict[str, Any]:
    """Return LeRobot's configurations of the cameras, by name.

    Args:
        given: The options of --cameras, NAME=TYPE:SOURCE[,FIELD=VALUE...].
        specs: The cameras of the contract; their size is the default.

    Raises:
        InputError: An option cannot be read, or a camera of the contract is missing.
    """
    from lerobot import cameras
    from lerobot.cameras import CameraConfig

    _register_lerobot_types(cameras)
    known, wanted = CameraConfig.get_known_choices(), {spec.name: spec for spec in specs}
    configs: dict[str, Any] = {}
    for option in given:
        name, described = _parse_assignment(option, "camera", "front=opencv:0", as_text=True)
        first, *others = str(described).split(",")
        kind, _, where = first.partition(":")
        if kind not in known:
            raise unknown_name(f"type of camera {name}", kind, sorted(known))
        if name in configs:
            raise InputError(
                f"camera {name}",
                got="two of that name",
                expected="every name once",
                fix="Rename one of the two cameras.",
            )
        spec = wanted.get(name)
        fields = {"type": kind, "fps": FRAME_RATE}
        fields |= {"width": spec.width, "height": spec.height} if spec is not None else {}
        if where:
            field = CAMERA_SOURCE_FIELDS.get(kind, "source")
            fields[field] = int(where) if where.isdecimal() and kind == "opencv" else where
        for other in others:
            field, value = _parse_assignment(other, f"option of camera {name}", "fps=60")
            fields[field] = value
        configs[name] = _decode_config(CameraConfig, fields, f"camera {name}", "Write it like front=opencv:0,fps=30.")
    missing = [name for name in wanted if name not in configs]
    if missing:
        raise InputError(
            f"camera {', '.join(missing)}",
            got=f"only {', '.join(configs)}",
            expected="the cameras of the policy's contract",
            fix="Name the arm's cameras as the policy knows them, in --cameras.",
        )
    return configs


def _parse_assignment(option: str, what: str, example: str, *, as_text: bool = False) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; the value is parsed as YAML, or kept as text."""
    import yaml

    name, sign, value = option.partition("=")
    if not (name and sign and value):
        raise InputError(what, got=repr(option), expected="NAME=VALUE", fix=f"Write it like {example}.")
    if as_text:
        return name, value
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def _decode_config(kind: type, fields: dict[str, Any], what: str, fix: str) -> Any:
    """Build a configuration with LeRobot's parser; InputError for everything that it refuses."""
    import draccus

    try:
        return draccus.decode(kind, fields)
    except (draccus.utils.DraccusException, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(what, got=said, expected="fields of LeRobot's configuration", fix=fix) from None


def _register_lerobot_types(package: Any) -> None:
    """Import LeRobot's types and plugins, which register themselves; those whose libraries are missing are left out."""
    from lerobot.utils.import_utils import register_third_party_plugins

    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"{package.__name__}.{module.name}")
            except ImportError:
                continue
    register_third_party_plugins()
