"""The log of a `saccade run`: a line for each episode, and the summary at the end, in words and as `summary.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...disk import write_atomically
from ...robot.arm import ArmDescription
from ...robot.chunk_policy import ChunkPolicy
from ...robot.governor.chunk import ActionChunk
from ...robot.governor.outputs import Event
from ...robot.session.summary import EpisodeSummary, SessionObserver, SessionSummary, StepSnapshot

SUMMARY, FLIGHT = "summary.json", "flight.jsonl"


class ObserverList(SessionObserver):
    """Passes all calls of a session on to several observers, one after the other."""

    def __init__(self, observers: Sequence[SessionObserver]) -> None:
        self._observers = tuple(observers)

    def on_session_start(self, arm: ArmDescription) -> None:
        for each in self._observers:
            each.on_session_start(arm)

    def on_episode_start(self, episode: int, instruction: str) -> None:
        for each in self._observers:
            each.on_episode_start(episode, instruction)

    def on_step(self, view: StepSnapshot) -> None:
        for each in self._observers:
            each.on_step(view)

    def on_chunk(self, chunk: ActionChunk, seconds: float) -> None:
        for each in self._observers:
            each.on_chunk(chunk, seconds)

    def on_event(self, event: Event) -> None:
        for each in self._observers:
            each.on_event(event)

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        for each in self._observers:
            each.on_episode_end(summary)


class RunLog(SessionObserver):
    """Keeps what the summary needs, also of a run that is aborted, and prints a line for each episode.

    Args:
        chunk_policy: The policy; its `abstained` and `skill`, if it has them, are counted by chunk.
        label: Returns what distinguishes an episode, by its number.
        start_clock: Called when an episode has begun.
        dry_run: Whether the torque stays off.

    Attributes:
        episodes: The records of the episodes that ended.
        running: Whether an episode is running.
    """

    def __init__(
        self,
        chunk_policy: ChunkPolicy,
        label: Callable[[int], dict[str, Any]],
        start_clock: Callable[[], None],
        *,
        dry_run: bool,
    ) -> None:
        self._chunk_policy, self._label, self._start_clock, self._dry_run = chunk_policy, label, start_clock, dry_run
        self.episodes: list[dict[str, Any]] = []
        self.running = False
        self._abstained: Counter[str] = Counter()
        self._skills: Counter[str] = Counter()

    def on_session_start(self, arm: ArmDescription) -> None:
        torque = "stays off" if self._dry_run else "comes on with the first episode"
        print(f"{len(arm.joints)} joints, calibrated, and cameras are there; torque {torque}", flush=True)

    def on_episode_start(self, episode: int, instruction: str) -> None:
        self.running = True
        self._abstained, self._skills = Counter(), Counter()
        self._start_clock()

    def on_chunk(self, chunk: ActionChunk, seconds: float) -> None:
        reason = getattr(self._chunk_policy, "abstained", None)
        if reason is not None:
            if not self._abstained:
                print(f"the policy holds still: {reason}", flush=True)
            self._abstained[reason] += 1
            return
        skill = getattr(self._chunk_policy, "skill", None)
        if skill is not None:
            self._skills[skill] += 1

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        self.running = False
        record = asdict(summary) | self._label(summary.index)
        record["holds"], record["refused_observations"] = dict(summary.holds), dict(summary.refused_observations)
        record["abstained"], record["skills"] = dict(self._abstained), dict(self._skills)
        self.episodes.append(record)
        print(_episode_line(record), flush=True)


def _episode_line(record: Mapping[str, Any]) -> str:
    place = f"{record['suite']}/{record['task']} from state {record['initial_state']}" if "task" in record else ""
    outcome = record["outcome"]
    if outcome is None:
        how = record["ended_by"] if record["ended_by"].startswith("stopped") else f"ended by {record['ended_by']}"
        came = f"{how} after {record['seconds']:.1f} s"
    elif outcome["success"]:
        came = f"success after {outcome['seconds']:.1f} s"
    else:
        picked = f", picked {outcome['picked']}" if outcome.get("picked") else ""
        came = f"failure: not done within {outcome['seconds']:.1f} s{picked}"
    holds = ", ".join(f"{reason} {count}" for reason, count in record["holds"].items())
    parts = [
        f"episode {record['index']}",
        place or repr(record["instruction"]),
        came,
        f"{record['decisions']} decisions",
    ]
    return "; ".join(parts) + (f"; holds: {holds}" if holds else "")


def summarize(
    log: RunLog, session: SessionSummary | None, *, facts: Mapping[str, Any], ended: str, counts_success: bool
) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        log: The log of the run.
        session: The session's summary, None if the run was aborted.
        facts: What is known of the run before it begins.
        ended: How it ended: "done", "interrupted", "stopped: ..." or "broken off: ...".
        counts_success: Whether the arm reports success.
    """
    from ...sim.evaluation.statistics import wilson_interval

    summary: dict[str, Any] = {**facts, "ended": ended}
    # An episode that the governor stopped is a failure; one that the user interrupted does not count.
    judged = [each for each in log.episodes if each["outcome"] is not None or ended != "interrupted"]
    summary["success"] = None
    if counts_success and judged:
        successes = sum(bool(each["outcome"] and each["outcome"]["success"]) for each in judged)
        low, high = wilson_interval(successes, len(judged))
        summary["success"] = {
            "successes": successes,
            "episodes": len(judged),
            "rate": successes / len(judged),
            "low": low,
            "high": high,
        }
    summary["episodes"] = log.episodes
    summary["warm_up_ms"] = None if session is None else session.warm_up_ms
    figures = None if session is None or session.metrics is None else asdict(session.metrics)
    summary["figures"] = None if figures is None else json.loads(json.dumps(figures, default=dict))
    return summary


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json` and return its path."""
    path = folder / SUMMARY
    write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False))
    return path


def summary_lines(summary: Mapping[str, Any], session: SessionSummary | None) -> list[str]:
    """Return the summary as lines for people, without the episodes, which were printed before."""
    lines = []
    success = summary["success"]
    if success is not None:
        interval = f"95 % interval {100 * success['low']:.1f} to {100 * success['high']:.1f}"
        counts = f"{success['successes']} of {success['episodes']}"
        lines.append(f"success: {100 * success['rate']:.1f} % ({counts}, {interval})")
    if summary["ended"] != "done":
        lines.append(f"ended: {summary['ended']}")
    abstained: Counter[str] = Counter()
    for each in summary["episodes"]:
        abstained.update(each["abstained"])
    lines += [f"held still in {count} decisions: {reason}" for reason, count in abstained.items()]
    if session is not None and session.metrics is not None:
        lines += session.metrics.lines()
    lost = summary.get("world", {}).get("lost_seconds", 0.0)
    if lost > 0.05:
        lines.append(f"the machine was too slow for {lost:.2f} s of the virtual arm's time, which were skipped")
    return lines
