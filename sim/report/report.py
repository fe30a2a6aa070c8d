"""Write the report of an evaluation: one HTML file with metrics, tables, every episode and videos."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .. import fingerprint as fingerprints
from ..evaluation.comparison import compare
from ..evaluation.records import EpisodeRecord
from ..evaluation.robustness import (
    acted_from_memorisation,
    followed_instruction,
    headline_records,
    memorisation_rows,
    robustness_summary,
)
from ..evaluation.run_folder import Evaluation
from ..evaluation.statistics import summarize
from ..json_files import write_text
from ..video import MEDIA_TYPES, poster
from .robustness_chart import radar

EMBEDDED_BYTES = 24_000_000
"""How many bytes of videos are embedded in the page; further videos are linked."""

GALLERY = 6
"""How many failures, and how many successes, of each run the gallery shows."""

POSTER_WIDTH = 384


@dataclass(frozen=True)
class EpisodeEnding:
    """A way for an episode to end.

    Attributes:
        name: Short name.
        tone: Colour: good, half, bad, none or error.
        label: Text in the report.
    """

    name: str
    tone: str
    label: str


ENDINGS = tuple(
    EpisodeEnding(*row)
    for row in (
        ("done", "good", "success"),
        ("unfinished", "half", "right object picked, not finished"),
        ("other", "bad", "another object picked"),
        ("nothing", "none", "nothing picked"),
        ("failed", "bad", "failure"),
        ("error", "error", "could not be run, not counted"),
    )
)
SWAPPED_ENDINGS = tuple(
    EpisodeEnding(*row)
    for row in (
        ("own", "bad", "the task's own object picked instead"),
        ("asked", "good", "the requested object picked"),
        ("other", "half", "another object picked"),
        ("nothing", "none", "nothing picked"),
        ("error", "error", "could not be run, not counted"),
    )
)


def write_report(evaluations: Sequence[Evaluation], path: Path) -> Path:
    """Write the report of one evaluation, or of several side by side, as one HTML file.

    Args:
        evaluations: The evaluations; later ones are compared with the first.
        path: The HTML file; videos are linked relative to its folder.

    Returns:
        `path`.

    Raises:
        InputError: The disk refused to write.
    """
    embedded_videos = _EmbeddedVideos(path.parent, EMBEDDED_BYTES)
    runs = [_run_section(evaluation, index, embedded_videos) for index, evaluation in enumerate(evaluations)]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    page = templates.get_template("report.html.jinja").render(
        runs=runs,
        radar=radar([{**run, "tone": f"run{run['index'] % 4}"} for run in runs if run["robustness"]]),
        suites=_suites(runs),
        comparisons=_compare_runs(runs, evaluations),
        episodes=embedded_videos.episodes,
        differences=[
            {"label": run["label"], "lines": lines}
            for run, evaluation in zip(runs, evaluations, strict=True)
            if (lines := fingerprints.differences(evaluations[0].fingerprint, evaluation.fingerprint))
        ],
    )
    write_text(path, page)
    return path


def ending(record: EpisodeRecord, *, swapped: bool) -> str:
    """Return how an episode ended: a name from ENDINGS, or from SWAPPED_ENDINGS if `swapped`."""
    if record.outcome == "error":
        return "error"
    if record.swap == "object" and record.picked is not None:
        return "own" if acted_from_memorisation(record) else "asked" if followed_instruction(record) else "other"
    if record.outcome == "success":
        return "own" if swapped else "done"
    if record.picked is None:
        return "nothing" if record.target is not None else "failed"
    return "unfinished" if record.picked == record.target else "other"


class _EmbeddedVideos:
    """Facts and videos of the episodes, by number, for the page's script; videos are embedded up to a size limit."""

    def __init__(self, folder: Path, remaining_bytes: int) -> None:
        self.folder, self.remaining_bytes = folder, remaining_bytes
        self.episodes: list[dict[str, Any]] = []

    def add(self, evaluation: Evaluation, record: EpisodeRecord, facts: dict[str, Any]) -> int:
        video_path = evaluation.folder / record.video if record.video else None
        source, link = "", ""
        if video_path is not None and video_path.is_file():
            link = Path(os.path.relpath(video_path, self.folder)).as_posix()
            size = video_path.stat().st_size * 4 // 3
            if size <= self.remaining_bytes:
                self.remaining_bytes -= size
                source = _data_address(MEDIA_TYPES[video_path.suffix], video_path.read_bytes())
        self.episodes.append({**facts, "video": source or link, "link": link})
        return len(self.episodes) - 1


def _data_address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _run_section(evaluation: Evaluation, index: int, embedded_videos: _EmbeddedVideos) -> dict[str, Any]:
    run, records = evaluation.run, headline_records(evaluation.records)
    # Evaluations of earlier versions count how often the instruction was ignored.
    inverted = run.get("protocol", {}).get("instruction_from") == "other-object"
    swapped = inverted or all(record.swap == "object" for record in records)
    endings = SWAPPED_ENDINGS if swapped else ENDINGS
    by_name = {each.name: each for each in endings}
    contract = run.get("contract") or {}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    gallery: dict[str, list[dict[str, Any]]] = {"good": [], "bad": []}
    # Embed the videos of the gallery first, failures before successes.
    shown = _gallery_order(records)
    numbers: dict[str, int] = {}
    for record in [*shown, *(record for record in records if record not in shown)]:
        episode_ending = by_name[ending(record, swapped=swapped)]
        facts = _facts(record, episode_ending, run["label"])
        numbers[record.key] = embedded_videos.add(evaluation, record, facts)
        if record in shown and facts["outcome"] and record.video:
            video_path = evaluation.folder / record.video
            if video_path.is_file():
                card = {**facts, "number": numbers[record.key], "poster": _poster(video_path)}
                gallery["good" if episode_ending.tone == "good" else "bad"].append(card)
    for record in records:
        episode_ending = by_name[ending(record, swapped=swapped)]
        episode = embedded_videos.episodes[numbers[record.key]]
        cell = {
            "number": numbers[record.key],
            "tone": episode_ending.tone,
            "label": episode_ending.label,
            "state": record.initial_state,
        }
        cell["success"] = record.outcome == "success"
        cells.setdefault((record.suite, record.task), []).append({**cell, "link": episode["link"]})
    counts = {
        suite_task: Counter(
            ending(record, swapped=swapped) for record in records if (record.suite, record.task) == suite_task
        )
        for suite_task in cells
    }
    seen = [record for record in records if record.visual_tokens]
    return {
        "index": index,
        "label": run["label"],
        "numbers": numbers,
        "swapped": swapped,
        "inverted": inverted,
        "measure": _success_definition(swapped=swapped, inverted=inverted),
        "robustness": robustness_summary(evaluation.records),
        "swaps": memorisation_rows(evaluation.records),
        "summary": summarize(records),
        "missing": max(0, run.get("planned", 0) - len(evaluation.records)),
        "endings": [each for each in endings if any(count[each.name] for count in counts.values())],
        "counts": counts,
        "cells": cells,
        "gallery": gallery,
        "tokens": (seen[0].visual_tokens_kept, seen[0].visual_tokens) if seen else None,
        "control_hz": contract.get("control_hz"),
        "started": run.get("started", "").replace("T", " ").replace("+00:00", " UTC"),
        "command": run.get("command", ""),
        "checkpoint": run.get("checkpoint", {}),
        "environment": fingerprints.flatten(evaluation.fingerprint),
        "environment_digest": fingerprints.fingerprint_digest(evaluation.fingerprint)[:12],
        "renderer": evaluation.fingerprint.get("renderer", {}).get("renderer", "unknown"),
        "simulator": evaluation.fingerprint.get("packages", {}).get("mujoco", "unknown"),
        "protocol": fingerprints.flatten(run.get("protocol", {})),
        "contract": contract_lines(contract),
        "provenance": [
            (name, value)
            for name, value in fingerprints.flatten(run.get("provenance") or {})
            if not name.startswith("files.")
        ],
    }


def _success_definition(*, swapped: bool, inverted: bool) -> str:
    """Return what counts as a success in a run."""
    if inverted:
        return "picked the task's own object although another was requested"
    return "picked the other, requested object" if swapped else "succeeded"


def _gallery_order(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the recorded episodes for the gallery: failures, then successes, of as many tasks as possible."""
    chosen = []
    for outcome in ("failure", "success"):
        turn: Counter[tuple[str, str]] = Counter()
        ranked = []
        for record in records:
            if record.outcome == outcome and record.video:
                turn[record.suite, record.task] += 1
                ranked.append((turn[record.suite, record.task], record))
        # A stable sort: the first video of every task comes before the second of any task.
        chosen += [record for _, record in sorted(ranked, key=lambda pair: pair[0])][:GALLERY]
    return chosen


def _facts(record: EpisodeRecord, episode_ending: EpisodeEnding, label: str) -> dict[str, Any]:
    return {
        "run": label,
        "task": f"{record.suite} / {record.task}",
        "instruction": record.instruction,
        "outcome": episode_ending.label,
        "tone": episode_ending.tone,
        "facts": [
            ("initial state", str(record.initial_state)),
            ("seed", str(record.seed)),
            ("steps", str(record.steps)),
            ("picked", _display_name(record.picked)),
            ("target", _display_name(record.target)),
            ("decisions", f"{record.decisions}, median {record.decision_milliseconds:.1f} ms"),
            ("episode", f"{record.seconds:.1f} s"),
            *([("note", record.error.splitlines()[-1])] if record.error else []),
        ],
        "short": f"initial state {record.initial_state} · {record.steps} steps"
        + (f" · picked {_display_name(record.picked)}" if record.picked not in (None, record.target) else ""),
    }


def _display_name(body: str | None) -> str:
    return body.removesuffix("_0").replace("_", " ") if body else "nothing"


def _poster(video_path: Path) -> str:
    image = poster(video_path, at=0.55)
    image.thumbnail((POSTER_WIDTH, POSTER_WIDTH))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=72)
    return _data_address("image/jpeg", content.getvalue())


def _suites(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return suites, their tasks, and the metrics of every run for each (None if a run has no such task)."""
    suites: dict[str, dict[str, list[Any]]] = {}
    for run in runs:
        for metrics in run["summary"]["tasks"]:
            rows = suites.setdefault(metrics["suite"], {})
            rows.setdefault(metrics["task"], [None] * len(runs))[run["index"]] = metrics
    totals = [{metrics["suite"]: metrics for metrics in run["summary"]["suites"]} for run in runs]
    return [
        {
            "name": suite,
            "totals": [total.get(suite) for total in totals],
            "tasks": [{"name": task, "metrics": metrics} for task, metrics in tasks.items()],
        }
        for suite, tasks in suites.items()
    ]


def _compare_runs(runs: Sequence[dict[str, Any]], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Compare every later run with the first on their shared episodes, by suite and in total."""
    comparisons = []
    for run, evaluation in zip(runs[1:], evaluations[1:], strict=True):
        before, after = (headline_records(each.records) for each in (evaluations[0], evaluation))
        whole = compare(before, after)
        if not whole.episodes or run["measure"] != runs[0]["measure"]:
            continue  # No shared episodes, or success is defined differently.
        suites = dict.fromkeys(record.suite for record in after)
        parts = [
            (suite, compare(before, [record for record in after if record.suite == suite]))
            for suite in (suites if len(suites) > 1 else ())
        ]
        earlier = {record.key: record.outcome for record in before}
        discordant: dict[str, list[EpisodeRecord]] = {"success": [], "failure": []}
        for record in after:
            if {record.outcome, earlier.get(record.key)} == {"success", "failure"}:
                discordant[record.outcome].append(record)
        comparisons.append(
            {
                "run": run,
                "rows": [*((suite, found) for suite, found in parts if found.episodes), ("all", whole)],
                "whole": whole,
                # Show the video of the run that failed.
                "won": [(runs[0]["numbers"][record.key], record) for record in discordant["success"]],
                "lost": [(run["numbers"][record.key], record) for record in discordant["failure"]],
            }
        )
    return comparisons


def contract_lines(contract: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a contract as lines (name, text) for the report."""

    def layout(part: dict[str, Any]) -> str:
        pairs = zip(part.get("names", ()), part.get("units", ()), strict=False)
        return ", ".join(f"{name} ({unit})" for name, unit in pairs)

    if not contract:
        return []
    action = contract.get("action") or {}
    gripper = action.get("gripper")
    cameras = "; ".join(
        f"{camera.get('name')} {camera.get('height')}×{camera.get('width')}, "
        f"rotation {camera.get('rotation_degrees', 0)}°, crop {camera.get('crop', 1)}"
        for camera in contract.get("cameras", ())
    )
    lines = [
        ("cameras", cameras),
        ("state", layout(contract.get("state") or {})),
        ("action", f"{action.get('kind')}, {action.get('frame')} frame: {layout(action)}"),
        ("control rate", f"{contract.get('control_hz')} Hz"),
        ("chunk", f"{contract.get('chunk')} steps, {contract.get('execute')} of them executed"),
        ("normalisation", str((contract.get("normalization") or {}).get("method"))),
    ]
    if gripper:
        lines.insert(
            3, ("gripper", f"{gripper.get('name')}: closed {gripper.get('closed')}, open {gripper.get('open')}")
        )
    return lines
