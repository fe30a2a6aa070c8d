"""`saccade run`: run a policy on an arm, virtual or physical, through the governor in the control process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from .options import RunConfig

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from ...robot.chunk_policy import ChunkPolicy
    from ...robot.remote.client import RemotePolicy
    from ...robot.session.operator_commands import OperatorCommands
    from ...robot.session.summary import SessionObserver, SessionSummary
    from .arms import RunArm
    from .log import RunLog

__all__ = ["RunConfig", "run", "run_arm"]

EXIT_INTERRUPTED = 130
NICENESS = -10
"""Niceness of this process: lower values have priority, 0 is usual."""

OVERRUN_SHARE, VIRTUAL_OVERRUNS = 0.05, 0.25
"""Fraction of late ticks within a second that stops the arm; larger on the virtual arm, whose simulation runs on the
same machine. Late ticks are counted and reported in any case."""

REMOTE_TIMEOUT_SECONDS = 2.0
"""Timeout of a remote decision, both ways; the session refuses slow policies long before."""


class TimeScaledPolicy:
    """A policy for an arm whose simulation runs at `speed`: its steps take longer by that factor.

    In wall time no step may be older than `MAX_STEP_AGE` at any speed. Chunks are cut to the steps that may be played,
    and at most half of these are played before the next decision.
    """

    def __init__(self, chunk_policy: ChunkPolicy, speed: float) -> None:
        from ...robot.governor.rules import MAX_STEP_AGE

        given = chunk_policy.contract
        rate = given.control_hz * speed
        steps = max(2, min(given.chunk, int(MAX_STEP_AGE * rate)))
        statistics = given.normalization
        self._chunk_policy, self._steps = chunk_policy, steps
        self.contract = dataclasses.replace(
            given,
            control_hz=rate,
            chunk=steps,
            execute=given.execute if steps == given.chunk else min(given.execute, max(1, steps // 2)),
            normalization=dataclasses.replace(
                statistics, action_low=statistics.action_low[:steps], action_high=statistics.action_high[:steps]
            ),
        )

    @property
    def abstained(self) -> str | None:
        return getattr(self._chunk_policy, "abstained", None)

    @property
    def skill(self) -> str | None:
        return getattr(self._chunk_policy, "skill", None)

    def reset(self, instruction: str) -> None:
        self._chunk_policy.reset(instruction)

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        return self._chunk_policy.decide(observation)[: self._steps]


def run(config: RunConfig) -> int:
    """Run the policy on the arm, print the summary and the paths, and return the exit code.

    Args:
        config: The options of the run.

    Returns:
        0 if all episodes were run, 130 after Ctrl-C.

    Raises:
        InputError: Something does not fit; raised before the torque is on.
        WorldError: Arm, policy or control process failed, or the governor stopped the arm.
    """
    summary = run_arm(config)
    ended = summary["ended"]
    if ended == "interrupted":
        return EXIT_INTERRUPTED
    if ended != "done":
        raise WorldError(f"the arm was {ended}; see {Path(summary['folder']) / 'flight.jsonl'}")
    return 0


def run_arm(config: RunConfig) -> dict[str, Any]:
    """Do the whole run and return the content of `summary.json`, which is also written if the run is aborted.

    Args:
        config: The options of the run.

    Raises:
        InputError: Something does not fit; raised before the torque is on.
        WorldError: Arm, policy or control process failed.
    """
    from .arms import check_port
    from .log import SUMMARY

    check_port(config)
    _raise_priority()
    with contextlib.ExitStack() as exit_stack:
        # Cheap checks come first; a checkpoint's policy takes many seconds to load, and comes last.
        remote = _remote(config, exit_stack)
        contract = remote.contract if remote is not None else _contract(config)
        observers = [_recorder(config, contract, exit_stack), _live_view(config, contract, exit_stack)]
        out = _new_folder(config)
        try:
            arm = _arm(config, contract, out, exit_stack)
            chunk_policy = remote if remote is not None else _checkpoint(config)
            return _session(config, chunk_policy, arm, out, [each for each in observers if each is not None])
        except InputError:
            if not (out / SUMMARY).exists():
                # Nothing moved, and the user will repeat the same command.
                shutil.rmtree(out, ignore_errors=True)
                with contextlib.suppress(OSError):
                    # Remove the folder of all runs if this was the first; with other runs in it, it stays.
                    out.parent.rmdir()
            raise


def _session(
    config: RunConfig, chunk_policy: ChunkPolicy, arm: RunArm, out: Path, observers: list[SessionObserver]
) -> dict[str, Any]:
    """Run the session, write the summary in any case, and return it.

    If the arm, its cameras or the policy are refused before the torque is on, there is no summary, only an InputError.
    """
    from ...robot.control.loop import LoopSettings
    from ...robot.governor.rules import RAMP_SPEED_FRACTION
    from ...robot.session.cameras import CameraReader
    from ...robot.session.operator_commands import OperatorCommands
    from ...robot.session.session import run_session
    from ...robot.session.settings import SessionSettings
    from .log import FLIGHT, ObserverList, RunLog, summarize, summary_lines, write_summary
    from .recording import RunRecorder

    dry_run = not config.has_torque
    if dry_run:
        print(_dry_run_notice(config), flush=True)
    print(f"{arm.description}\n{len(arm.episodes)} episodes: {arm.episodes[0].instruction!r}", flush=True)
    time_scaled = chunk_policy if config.speed == 1.0 else TimeScaledPolicy(chunk_policy, config.speed)
    log, operator_commands = RunLog(chunk_policy, arm.label, arm.start_clock, dry_run=dry_run), OperatorCommands()
    ramp_share = config.ramp_share
    if ramp_share is None:
        ramp_share = 1.0 if config.is_virtual else RAMP_SPEED_FRACTION
    settings = SessionSettings(
        loop=LoopSettings(loop_hz=config.loop_hz, dry_run=dry_run),
        start=config.start or ("ramp" if config.is_virtual else "refuse"),
        aggregation=config.aggregation,
        share=config.share * config.speed,
        ramp_share=ramp_share,
        overrun_share=VIRTUAL_OVERRUNS if config.is_virtual else OVERRUN_SHARE,
        # A stop of the virtual arm ends only its episode. The arm is reset without torque.
        rearm_between_episodes=config.is_virtual,
        release_between_episodes=config.is_virtual,
    )
    recorder = next((each for each in observers if isinstance(each, RunRecorder)), None)
    session: SessionSummary | None = None
    ended, facts = "done", _facts(config, chunk_policy, arm, out)
    try:
        with _stop_on_interrupt(log, operator_commands) as interrupt:
            session = run_session(
                chunk_policy=time_scaled,
                make_arm=arm.make_arm,
                cameras=CameraReader.from_configs(arm.cameras, chunk_policy.contract.cameras),
                episodes=arm.episodes,
                settings=settings,
                record=out / FLIGHT,
                observer=ObserverList([log, *observers]),
                prepare=arm.prepare,
                end_condition=arm.end_condition,
                operator_commands=operator_commands,
            )
        ended = f"stopped: {session.stopped}" if session.stopped else "done"
        ended = "interrupted" if interrupt.requested else ended
    except KeyboardInterrupt:
        ended = "interrupted"
    except BaseException as error:
        ended = f"broken off: {type(error).__name__}: {error}"
        if isinstance(error, InputError) and not (log.running or log.episodes):
            ended = ""
        raise
    finally:
        if ended:
            if recorder is not None:
                facts["dataset"] = _dataset(recorder, log, facts, broken=ended.startswith("broken off"))
            with contextlib.suppress(SaccadeError):
                facts["world"] = arm.facts()
            summary = summarize(log, session, facts=facts, ended=ended, counts_success=config.is_virtual)
            path = write_summary(out, summary)
            print("\n".join(summary_lines(summary, session)))
            print(f"summary: {path}\nflight record: {out / FLIGHT}", flush=True)
    if dry_run and not config.is_virtual and ended == "done":
        print("That was a dry run. To let the arm move, repeat the command with --move.")
    return summary


class _Interrupt:
    """Whether the user pressed Ctrl-C."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def _stop_on_interrupt(log: RunLog, operator_commands: OperatorCommands) -> Iterator[_Interrupt]:
    """Let the first Ctrl-C in an episode stop and hold the arm, and end the session in order."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def stop(number: int, frame: object) -> None:
        if interrupt.requested or not log.running:
            raise KeyboardInterrupt
        interrupt.requested = True
        print("\nstopping: the arm holds its pose", file=sys.stderr, flush=True)
        operator_commands.end_session("Ctrl-C")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _dataset(recorder: Any, log: RunLog, facts: Mapping[str, Any], *, broken: bool) -> dict[str, Any] | None:
    """Build the dataset of the recorded episodes; return its folder and size, None if there are none."""
    try:
        count, frames = recorder.finish({**facts, "episodes": log.episodes})
    except SaccadeError as error:
        if not broken:
            raise
        print(f"the recording could not be finished: {error}", file=sys.stderr)
        return None
    if count == 0:
        print("nothing was recorded: no episode ended that --keep keeps")
        return None
    print(f"recorded: {count} episodes, {frames} frames in {recorder.folder}")
    return {"folder": str(recorder.folder), "episodes": count, "frames": frames}


def _raise_priority() -> None:
    """Raise the priority of this process, if that is allowed: the arm waits for its decisions."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def _contract(config: RunConfig) -> Contract:
    from ...policy.checkpoint.folder import read_contract
    from ..checkpoints.find import checkpoint_folder

    return read_contract(checkpoint_folder(config.checkpoint or "starter"))


def _checkpoint(config: RunConfig) -> ChunkPolicy:
    from ..checkpoints.checkpoint_policy import CheckpointPolicy
    from ..checkpoints.find import checkpoint_folder

    folder = checkpoint_folder(config.checkpoint or "starter")
    return CheckpointPolicy(folder, device=config.device, precision=config.precision, threads=config.threads)


def _remote(config: RunConfig, exit_stack: contextlib.ExitStack) -> RemotePolicy | None:
    if config.policy is None:
        return None
    from ...robot.remote.client import RemotePolicy

    policy = RemotePolicy(config.policy, _token(config), REMOTE_TIMEOUT_SECONDS, certificate=config.certificate)
    exit_stack.callback(policy.close)
    return policy


def _token(config: RunConfig) -> str:
    """Return the token of --token-file or of the environment; InputError if there is none."""
    from ...robot.remote.protocol import TOKEN_VARIABLE
    from ..serve import ServeConfig, find_token

    token, generated = find_token(ServeConfig(token_file=config.token_file))
    if generated:
        raise InputError(
            "token",
            got="none",
            expected="the token that the server was started with or printed",
            fix=f"Give --token-file, or set {TOKEN_VARIABLE}.",
        )
    return token


def _arm(config: RunConfig, contract: Contract, out: Path, exit_stack: contextlib.ExitStack) -> RunArm:
    from .arms import PhysicalRunArm, VirtualRunArm

    arm: RunArm = VirtualRunArm(config, contract, out) if config.is_virtual else PhysicalRunArm(config, contract)
    exit_stack.callback(arm.close)
    return arm


def _recorder(config: RunConfig, contract: Contract, exit_stack: contextlib.ExitStack) -> SessionObserver | None:
    if config.record is None:
        return None
    from .recording import RunRecorder

    recorder = RunRecorder(config.record, contract, config.robot_type, only_successes=config.keep == "successes")
    exit_stack.callback(recorder.discard)
    return recorder


def _live_view(config: RunConfig, contract: Contract, exit_stack: contextlib.ExitStack) -> SessionObserver | None:
    if not (config.live or config.live_file):
        return None
    from .live_view import LiveView

    view = LiveView(contract.action.names, viewer=config.live, file=config.live_file)
    exit_stack.callback(view.close)
    return view


def _new_folder(config: RunConfig) -> Path:
    """Create the run's folder; InputError if it has files."""
    out = config.out or Path("arm_runs") / f"{config.robot}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"out {out}", got="a folder with files", expected="a new one", fix="Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "Choose a folder that you may write to."
        raise InputError(f"out {out}", got=error.strerror, expected="a new folder", fix=fix) from None
    return out


def _facts(config: RunConfig, chunk_policy: ChunkPolicy, arm: RunArm, out: Path) -> dict[str, Any]:
    return {
        "command": shlex.join(["saccade", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(out),
        "policy": config.policy or config.checkpoint or "starter",
        "robot": config.robot,
        "arm": arm.description,
        "dry_run": not config.has_torque,
        "speed": config.speed,
        "dataset": None,
        "world": {},
    }


def _dry_run_notice(config: RunConfig) -> str:
    if config.is_virtual:
        return "dry run: the virtual arm gets no torque"
    return (
        "dry run: the arm gets no torque and does not move; the command does everything else.\n"
        "If all is well, repeat the command with --move."
    )
