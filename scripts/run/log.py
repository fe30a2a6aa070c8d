"""What happened in a `saccade run`: watched while it runs, and told at the end, to people and as `summary.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...robot.arm import ArmDescription
from ...robot.decider import Decider
from ...robot.governor.chunk import Chunk
from ...robot.governor.verdict import Event
from ...robot.session.summary import EpisodeSummary, Observer, SessionSummary, StepView
from ...sim.demonstrations.staging import write_atomically

SUMMARY, FLIGHT = "summary.json", "flight.jsonl"


class Watchers(Observer):
    """Passes on what a session tells to several observers, one after the other."""

    def __init__(self, watchers: Sequence[Observer]) -> None:
        self._watchers = tuple(watchers)

    def started(self, arm: ArmDescription) -> None:
        for each in self._watchers:
            each.started(arm)

    def episode_began(self, episode: int, instruction: str) -> None:
        for each in self._watchers:
            each.episode_began(episode, instruction)

    def stepped(self, view: StepView) -> None:
        for each in self._watchers:
            each.stepped(view)

    def decided(self, chunk: Chunk, seconds: float) -> None:
        for each in self._watchers:
            each.decided(chunk, seconds)

    def happened(self, event: Event) -> None:
        for each in self._watchers:
            each.happened(event)

    def episode_ended(self, summary: EpisodeSummary) -> None:
        for each in self._watchers:
            each.episode_ended(summary)


class RunLog(Observer):
    """Keeps what the summary needs, also of a run that breaks off, and prints a line for each episode.

    `label` tells by its number what an episode is. `begun` is called when an episode has begun. `running`: whether one
    is under way.
    """

    def __init__(
        self, decider: Decider, label: Callable[[int], dict[str, Any]], begun: Callable[[], None], *, dry_run: bool
    ) -> None:
        self._decider, self._label, self._begun, self._dry_run = decider, label, begun, dry_run
        self.episodes: list[dict[str, Any]] = []
        self.running = False
        self._abstained: Counter[str] = Counter()
        self._skills: Counter[str] = Counter()

    def started(self, arm: ArmDescription) -> None:
        torque = "stays off" if self._dry_run else "comes on with the first episode"
        print(f"{len(arm.joints)} joints, calibrated, and cameras are there; torque {torque}", flush=True)

    def episode_began(self, episode: int, instruction: str) -> None:
        self.running = True
        self._abstained, self._skills = Counter(), Counter()
        self._begun()

    def decided(self, chunk: Chunk, seconds: float) -> None:
        reason = getattr(self._decider, "abstained", None)
        if reason is not None:
            if not self._abstained:
                print(f"the policy holds still: {reason}", flush=True)
            self._abstained[reason] += 1
        elif getattr(self._decider, "skill", None) is not None:
            self._skills[self._decider.skill] += 1

    def episode_ended(self, summary: EpisodeSummary) -> None:
        self.running = False
        told = asdict(summary) | self._label(summary.index)
        told["holds"], told["refused_observations"] = dict(summary.holds), dict(summary.refused_observations)
        told["abstained"], told["skills"] = dict(self._abstained), dict(self._skills)
        self.episodes.append(told)
        print(_episode_line(told), flush=True)


def _episode_line(told: Mapping[str, Any]) -> str:
    place = f"{told['suite']}/{told['task']} from state {told['initial_state']}" if "task" in told else ""
    outcome = told["outcome"]
    if outcome is None:
        how = told["ended_by"] if told["ended_by"].startswith("stopped") else f"ended by {told['ended_by']}"
        came = f"{how} after {told['seconds']:.1f} s"
    elif outcome["success"]:
        came = f"success after {outcome['seconds']:.1f} s"
    else:
        picked = f", picked {outcome['picked']}" if outcome.get("picked") else ""
        came = f"failure: not done within {outcome['seconds']:.1f} s{picked}"
    holds = ", ".join(f"{reason} {count}" for reason, count in told["holds"].items())
    parts = [f"episode {told['index']}", place or repr(told["instruction"]), came, f"{told['decisions']} decisions"]
    return "; ".join(parts) + (f"; holds: {holds}" if holds else "")


def summarize(
    log: RunLog, session: SessionSummary | None, *, facts: Mapping[str, Any], ended: str, counts_success: bool
) -> dict[str, Any]:
    """Return the content of `summary.json`; `session` is None where the run broke off, and `ended` says how."""
    from ...sim.evaluation.statistics import wilson_interval

    summary: dict[str, Any] = {**facts, "ended": ended}
    # An episode that the governor stopped is a failure; one that somebody broke off says nothing.
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
    figures = None if session is None or session.figures is None else asdict(session.figures)
    summary["figures"] = None if figures is None else json.loads(json.dumps(figures, default=dict))
    return summary


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json` and return its path."""
    path = folder / SUMMARY
    write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return path


def summary_lines(summary: Mapping[str, Any], session: SessionSummary | None) -> list[str]:
    """Return the summary as lines for people, without the episodes, which have been told."""
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
    if session is not None and session.figures is not None:
        lines += session.figures.lines()
    lost = summary.get("world", {}).get("lost_seconds", 0.0)
    if lost > 0.05:
        lines.append(f"the machine was too slow for {lost:.2f} s of the virtual arm's time, which were left out")
    return lines
