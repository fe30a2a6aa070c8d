"""An evaluation on disk: what was asked, in which environment, every episode, and the sums.

run.json            checkpoint, contract, provenance, protocol and command: written before the first episode
fingerprint.json    the environment
records.jsonl       one line an episode, see `records`
results.json        success rates with intervals, written at the end
videos/, report.html
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .. import fingerprint as fingerprints
from ..json_files import read_json, write_json
from .records import EpisodeRecord, RecordFile

RUN_FILE, FINGERPRINT_FILE, RECORDS_FILE, RESULTS_FILE, REPORT_FILE = (
    "run.json",
    "fingerprint.json",
    "records.jsonl",
    "results.json",
    "report.html",
)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as read from its folder.

    `run` has the keys label, command, started, checkpoint {name, digest}, contract, provenance, protocol, tasks (pairs
    of suite and task, in their order) and planned (how many episodes were asked for).
    """

    folder: Path
    run: dict[str, Any]
    fingerprint: dict[str, Any]
    records: tuple[EpisodeRecord, ...]


def prepare_run_folder(
    folder: Path, run: dict[str, Any], fingerprint: dict[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Make `folder` ready for the episodes of `run`.

    Raises InputError when it holds anything and neither `resume` nor `overwrite` was asked for; when it is to be
    overwritten and is no evaluation; when it is to be resumed and belongs to another checkpoint, protocol or
    environment, whose episodes must not be counted together with these.
    """
    if resume and overwrite:
        raise InputError("out", got="--resume and --overwrite", expected="one of them", fix="Leave one out.")
    if folder.exists() and not folder.is_dir():
        raise InputError("out", got=f"{folder}, a file", expected="a folder", fix="Choose another name.")
    is_not_empty = folder.is_dir() and any(folder.iterdir())
    known = (folder / RUN_FILE).is_file()
    if is_not_empty and not known:
        raise InputError(
            "out", got=f"{folder}, which holds other files", expected="a new folder", fix="Choose another name."
        )
    # A run that was refused before its first episode leaves nothing to lose.
    replaced = is_not_empty and (overwrite or not (folder / RECORDS_FILE).is_file())
    if is_not_empty and resume and not replaced:
        earlier = read_json(folder / RUN_FILE)
        conflicts = [
            f"{name}: {earlier.get(name)} and {run[name]}"
            for name in ("checkpoint", "protocol")
            if earlier.get(name) != run[name]
        ]
        conflicts += fingerprints.differences(read_json(folder / FINGERPRINT_FILE), fingerprint)
        if conflicts:
            raise InputError(
                f"resuming {folder}",
                got=f"another evaluation ({'; '.join(conflicts)})",
                expected="the same checkpoint, protocol and environment",
                fix="Evaluate into a new folder, or replace this one with --overwrite.",
            )
        # More tasks or episodes may be asked for than before; what is there counts towards them.
        write_json(folder / RUN_FILE, {**run, "started": earlier.get("started", run["started"])})
        return
    if is_not_empty and not replaced:
        raise InputError(
            "out",
            got=f"{folder}, which holds an evaluation",
            expected="a new folder",
            fix="Go on with it (--resume), replace it (--overwrite), or choose another name (--out).",
        )
    if replaced:
        shutil.rmtree(folder)
    # The environment first: run.json is what makes the folder an evaluation.
    write_json(folder / FINGERPRINT_FILE, fingerprint)
    write_json(folder / RUN_FILE, run)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation, finished or not; raises InputError when the folder holds none."""
    if not (folder / RUN_FILE).is_file():
        raise InputError(
            "run folder",
            got=str(folder),
            expected=f"a folder with {RUN_FILE} and {RECORDS_FILE}",
            fix="Give the folder that was named with `saccade eval --out`.",
        )
    records = RecordFile(folder / RECORDS_FILE).load()
    if not records:
        raise InputError(
            f"run folder {folder}",
            got="no episodes",
            expected="at least one",
            fix="Go on with it: saccade eval --resume.",
        )
    run = read_json(folder / RUN_FILE)
    order = {tuple(suite_task): place for place, suite_task in enumerate(run.get("tasks", ()))}

    def place(record: EpisodeRecord) -> tuple[int, str, str, int, int]:
        suite_task = (record.suite, record.task)
        return (order.get(suite_task, len(order)), *suite_task, record.initial_state, record.seed)

    fingerprint = read_json(folder / FINGERPRINT_FILE)
    return Evaluation(folder, run, fingerprint, tuple(sorted(records.values(), key=place)))
