"""A session: everything is checked, then episodes are run with decisions made beside the control loop.

The session sees (cameras here, joints from the control process), lets the decider decide in a thread, and sends chunks.
It never waits for a decision: while there is none, the governor plays what is queued, and holds when that runs out.
"""

from __future__ import annotations

import secrets
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, SaccadeError
from ..arm import Arm, offer_from_arm
from ..chunk_policy import ChunkPolicy, supports_chunk_continuation
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
    ended: Callable[[], Any] | None = None,
    operator_commands: OperatorCommands | None = None,
) -> SessionSummary:
    """Check all, run the episodes, hold, and say how it went.

    `make_arm` builds the arm in the control process and must pass to it (a partial of a function or class). `cameras`
    are not connected yet. `record`: a new file for the flight record. `prepare(episode)` is called before each episode,
    the arm held or released, and may return the instruction. `ended()` is asked ten times a second and ends an episode
    by what is not None, its outcome. `operator_commands` lets other threads stop, re-arm, end, and change the instruction.

    Raises InputError for whatever does not fit, before torque is on; WorldError where arm, cameras, decider or control
    process fail; and whatever decider, observer and callbacks raise. The arm is held in every case.
    """
    settings, observer, operator_commands = (
        settings or SessionSettings(),
        observer or SessionObserver(),
        operator_commands or OperatorCommands(),
    )
    if not episodes:
        raise InputError("episodes", got="none", expected="at least one", fix="Say what to do.")
    if settings.real_time_chunking and not supports_chunk_continuation(chunk_policy):
        raise InputError(
            "real_time_chunking",
            got="a policy that decides each chunk anew",
            expected="one that can continue a chunk",
            fix="Leave it off: its chunks are joined by --aggregation.",
        )
    with _raise_on_sigterm():
        link = ControlLink.start(make_arm, settings.loop)
        decisions = DecisionThread()
        summaries: list[EpisodeSummary] = []
        try:
            cameras.connect()
            rules = _make_rules(chunk_policy, link, settings)
            link.start_governor(rules, record)
            observer.on_session_start(link.description)
            instruction = _episode_instruction(prepare, 0, episodes[0])
            warm_up = _warm_up(chunk_policy, link, cameras, decisions, rules, instruction, settings)
            conductor = EpisodeRunner(
                chunk_policy, link, cameras, decisions, rules, settings, observer, operator_commands, warm_up
            )
            stopped = ""
            for index, plan in enumerate(episodes):
                if index > 0:
                    instruction = _episode_instruction(prepare, index, plan)
                summary = conductor.run(index, instruction, plan.seconds, ended)
                summaries.append(summary)
                observer.on_episode_end(summary)
                link.end_episode(release=settings.release_between_episodes and index + 1 < len(episodes))
                if summary.ended_by.startswith("stopped"):
                    stopped = summary.ended_by.removeprefix("stopped: ")
                    if (
                        not settings.rearm_between_episodes
                        or operator_commands.session_ending
                        or index + 1 == len(episodes)
                    ):
                        break
                    stopped = ""
                    link.rearm()
                if operator_commands.session_ending:
                    break
            figures = link.close(release=settings.release_at_end)
        except BaseException as error:
            _stop_and_close(link, error)
            raise
        finally:
            decisions.close()
            cameras.close()
    if figures is not None:
        figures = conductor.with_decision_metrics(figures)
    return SessionSummary(
        episodes=tuple(summaries),
        figures=figures,
        record=record,
        warm_up_ms=1000.0 * warm_up,
        dry_run=settings.loop.dry_run,
        stopped=stopped,
    )


def _make_rules(chunk_policy: ChunkPolicy, link: ControlLink, settings: SessionSettings) -> Rules:
    """Check the contract against arm and cameras, and return the governor's rules."""
    contract = chunk_policy.contract
    # What the cameras give was compared with the contract, picture by picture, when they were connected.
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
    """Let the decider decide a few times from what is seen, torque off; returns the seconds of a usual decision.

    Raises InputError where it is too slow for the rate: half of the time that a chunk is fresh must be enough.
    """
    call_with_timeout(link, decisions, lambda: chunk_policy.reset(instruction), settings.warm_up_seconds)
    observation = first_observation(link, cameras)
    durations = []
    for _ in range(settings.warm_up):
        decision = call_with_timeout(
            link, decisions, lambda: chunk_policy.decide(observation), settings.warm_up_seconds
        )
        durations.append(decision.seconds)
    # The first ones compile and fill caches.
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


@contextmanager
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
        # It is gone; what it last told the motors is what they hold.
        return
    finally:
        link.close()
