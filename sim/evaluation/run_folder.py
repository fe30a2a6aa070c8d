"""The folder of an evaluation: what was run, in which environment, every episode, and the results.

run.json            checkpoint, contract, provenance, protocol and command; written before the first episode
fingerprint.json    the environment
records.jsonl       one line for each episode, see `records`
results.json        success rates with intervals; written at the end
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
    """One evaluation, as read from its folder.

    Attributes:
        folder: The run folder.
        run: Content of run.json, with the keys label, command, started, checkpoint {name, digest}, contract,
            provenance, protocol, tasks (pairs of suite and task, in order) and planned (number of episodes).
        fingerprint: Content of fingerprint.json.
        records: The episodes, in the order of `run["tasks"]`.
    """

    folder: Path
    run: dict[str, Any]
    fingerprint: dict[str, Any]
    records: tuple[EpisodeRecord, ...]


def prepare_run_folder(
    folder: Path, run: dict[str, Any], fingerprint: dict[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Prepare a folder for the episodes of a run.

    Args:
        folder: The run folder.
        run: Content of run.json.
        fingerprint: The environment's fingerprint.
        resume: Whether to continue the evaluation that the folder holds.
        overwrite: Whether to replace the evaluation that the folder holds.

    Raises:
        InputError: The folder holds an evaluation and neither `resume` nor `overwrite` is set; it holds other files; or
            `resume` is set and the checkpoint, protocol or environment differs, so that the episodes must not be
            counted together.
    """
    if resume and overwrite:
        raise InputError(
            "out", got="--resume and --overwrite", expected="one of them", fix="Use --resume or --overwrite."
        )
    if folder.exists() and not folder.is_dir():
        raise InputError("out", got=f"{folder}, a file", expected="a folder", fix="Choose another --out.")
    is_not_empty = folder.is_dir() and any(folder.iterdir())
    known = (folder / RUN_FILE).is_file()
    if is_not_empty and not known:
        raise InputError(
            "out", got=f"{folder}, which holds other files", expected="a new folder", fix="Choose another --out."
        )
    # A run that was refused before its first episode may be replaced: it has no records.
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
        # The run may have more tasks or episodes than before; existing records count.
        write_json(folder / RUN_FILE, {**run, "started": earlier.get("started", run["started"])})
        return
    if is_not_empty and not replaced:
        raise InputError(
            "out",
            got=f"{folder}, which holds an evaluation",
            expected="a new folder",
            fix="Continue it with --resume, replace it with --overwrite, or choose another --out.",
        )
    if replaced:
        shutil.rmtree(folder)
    # run.json last: it marks the folder as an evaluation.
    write_json(folder / FINGERPRINT_FILE, fingerprint)
    write_json(folder / RUN_FILE, run)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation, finished or not; raises InputError if the folder holds no episodes."""
    if not (folder / RUN_FILE).is_file():
        raise InputError(
            "run folder",
            got=str(folder),
            expected=f"a folder with {RUN_FILE} and {RECORDS_FILE}",
            fix="Give the output folder of `saccade eval`.",
        )
    records = RecordFile(folder / RECORDS_FILE).load()
    if not records:
        raise InputError(
            f"run folder {folder}",
            got="no episodes",
            expected="at least one",
            fix="Finish the evaluation with saccade eval --resume.",
        )
    run = read_json(folder / RUN_FILE)
    order = {tuple(suite_task): place for place, suite_task in enumerate(run.get("tasks", ()))}

    def place(record: EpisodeRecord) -> tuple[int, str, str, int, int]:
        suite_task = (record.suite, record.task)
        return (order.get(suite_task, len(order)), *suite_task, record.initial_state, record.seed)

    fingerprint = read_json(folder / FINGERPRINT_FILE)
    return Evaluation(folder, run, fingerprint, tuple(sorted(records.values(), key=place)))
