"""A session: check everything, then run episodes while the policy decides in its own thread.

The session reads the cameras, gets the joints from the control process, lets the policy decide, and sends chunks. It
never waits for a decision: meanwhile the governor plays the queued steps, and holds when none are left.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, SaccadeError
from ..arm import Arm, offer_from_arm
from ..chunk_policy import ChunkPolicy
from ..control.link import ControlLink
from ..governor.rules import Rules
from ..limits import JointLimits
from .cameras import CameraReader
from .decision_thread import DecisionThread
from .episode import EpisodeRunner, call_with_timeout, first_observation
from .operator_commands import OperatorCommands
from .settings import EpisodePlan, SessionSettings
from .summary import EpisodeSummary, SessionObserver, SessionSummary


def run_session(
    *,
    chunk_policy: ChunkPolicy,
    make_arm: Callable[[], Arm],
    cameras: CameraReader,
    episodes: Sequence[EpisodePlan],
    settings: SessionSettings | None = None,
    record: Path | None = None,
    observer: SessionObserver | None = None,
    prepare: Callable[[int], str | None] | None = None,
    end_condition: Callable[[], Any] | None = None,
    operator_commands: OperatorCommands | None = None,
) -> SessionSummary:
    """Check everything, run the episodes, hold the arm, and return the summary.

    Args:
        chunk_policy: The policy; it decides in one thread.
        make_arm: Builds the arm in the control process; it is pickled (a partial of a function or class).
        cameras: The cameras, not connected yet.
        episodes: At least one.
        settings: How the session runs.
        record: A new file for the flight record.
        observer: Observes the session.
        prepare: Called with the number of each episode before it begins, while the arm is held or has no torque; may
            return the instruction.
        end_condition: Called ten times a second; what it returns, if not None, ends the episode and is its outcome.
        operator_commands: Lets other threads stop, re-arm, end, and change the instruction.

    Returns:
        How the session went. The arm is held, also if an error is raised.

    Raises:
        InputError: Something does not fit; raised before the torque is on, but for a first command that is too far.
        WorldError: Arm, cameras, policy or control process fail.
    """
    settings = settings or SessionSettings()
    observer = observer or SessionObserver()
    operator_commands = operator_commands or OperatorCommands()
    if not episodes:
        raise InputError("episodes", got="none", expected="at least one", fix="Give at least one instruction or task.")
    with _raise_on_sigterm():
        link = ControlLink.start(make_arm, settings.loop)
        decisions = DecisionThread()
        try:
            cameras.connect()
            rules = _make_rules(chunk_policy, link, settings)
            link.start_governor(rules, record)
            observer.on_session_start(link.description)
            instruction = _episode_instruction(prepare, 0, episodes[0])
            decision_seconds = _warm_up(chunk_policy, link, cameras, decisions, rules, instruction, settings)
            runner = EpisodeRunner(
                chunk_policy, link, cameras, decisions, rules, settings, observer, operator_commands, decision_seconds
            )
            summaries: list[EpisodeSummary] = []
            stopped = ""
            for index, plan in enumerate(episodes):
                if index > 0:
                    instruction = _episode_instruction(prepare, index, plan)
                summary = runner.run(index, instruction, plan.seconds, end_condition)
                summaries.append(summary)
                observer.on_episode_end(summary)
                link.end_episode(release=settings.release_between_episodes and index + 1 < len(episodes))
                is_last = operator_commands.session_ending or index + 1 == len(episodes)
                if summary.ended_by.startswith("stopped"):
                    if is_last or not settings.rearm_between_episodes:
                        stopped = summary.ended_by.removeprefix("stopped: ")
                        break
                    link.rearm()
                if operator_commands.session_ending:
                    break
            metrics = link.close(release=settings.release_at_end)
        except BaseException as error:
            _stop_and_close(link, error)
            raise
        finally:
            decisions.close()
            cameras.close()
    return SessionSummary(
        episodes=tuple(summaries),
        metrics=None if metrics is None else runner.with_decision_metrics(metrics),
        record=record,
        warm_up_ms=1000.0 * decision_seconds,
        dry_run=settings.loop.dry_run,
        stopped=stopped,
    )


def _make_rules(chunk_policy: ChunkPolicy, link: ControlLink, settings: SessionSettings) -> Rules:
    """Check the contract against the arm, and return the governor's rules."""
    contract = chunk_policy.contract
    # The cameras were compared with the contract when they were connected.
    contract.check(offer_from_arm(link.description, contract.cameras, contract))
    return Rules(
        session=secrets.token_hex(8),
        limits=JointLimits.derive(contract, link.description.joints, share=settings.share),
        period=1.0 / contract.control_hz,
        tick=settings.loop.tick,
        chunk=contract.chunk,
        start=settings.start,
        aggregation=settings.aggregation,
        follows=not settings.loop.dry_run,
        ramp_share=settings.ramp_share,
        overrun_share=settings.overrun_share,
    )


def _episode_instruction(prepare: Callable[[int], str | None] | None, index: int, plan: EpisodePlan) -> str:
    prepared_instruction = None if prepare is None else prepare(index)
    return plan.instruction if prepared_instruction is None else prepared_instruction


def _warm_up(
    chunk_policy: ChunkPolicy,
    link: ControlLink,
    cameras: CameraReader,
    decisions: DecisionThread,
    rules: Rules,
    instruction: str,
    settings: SessionSettings,
) -> float:
    """Let the policy decide a few times with the torque off, and return the seconds of a typical decision.

    Raises InputError if the policy is too slow: a decision may take half of the time for which a chunk is fresh.
    """
    call_with_timeout(link, decisions, lambda: chunk_policy.reset(instruction), settings.warm_up_seconds)
    observation = first_observation(link, cameras)
    durations = [
        call_with_timeout(link, decisions, lambda: chunk_policy.decide(observation), settings.warm_up_seconds).seconds
        for _ in range(settings.warm_up_decisions)
    ]
    # The first decision compiles kernels and fills caches.
    median_seconds = statistics.median(durations[1:])
    max_decision_seconds = 0.5 * rules.max_step_age
    if median_seconds > max_decision_seconds:
        raise InputError(
            "policy",
            got=f"a decision in {1000 * median_seconds:.0f} ms",
            expected=f"at most {1000 * max_decision_seconds:.0f} ms, half of the time that its chunks are fresh",
            fix="Use a faster machine or a smaller policy: it is too slow for the rate that it was trained at.",
        )
    return median_seconds


@contextlib.contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, as SIGINT is one, so that the arm is held on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop_and_close(link: ControlLink, error: BaseException) -> None:
    try:
        link.stop(f"{type(error).__name__}: {error}")
    except SaccadeError:
        # The control process has ended; the motors hold its last goal.
        return
    finally:
        link.close()
