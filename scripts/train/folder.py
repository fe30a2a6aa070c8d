"""The folder of a training: what may be written to it, the options in it, and which of them a resume may change."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from .options import TrainConfig

OPTIONS_FILE = "train.json"
CHANGEABLE_ON_RESUME = (
    *("resume", "overwrite", "out", "data", "threads", "report_to", "log_every", "save_every"),
    "checkpointing",
)
"""Options that a resumed training may be given anew: what is learned does not depend on them.

Folders may have moved; that the demonstrations are the same is told by their fingerprint.
"""


def read_earlier_options(config: TrainConfig) -> dict[str, Any]:
    """Make sure that --out may be written to; return the options of the training that is in it, if there is one."""
    path = config.out / OPTIONS_FILE
    if config.out.exists() and not config.out.is_dir():
        raise InputError("out", got=f"{config.out}, a file", expected="a folder", fix="Choose another name.")
    if path.is_file():
        if not (config.resume or config.overwrite):
            raise InputError(
                "out",
                got=f"{config.out}, in which a training is",
                expected="a new folder",
                fix="Use --resume to go on, --overwrite to start again, or another folder.",
            )
        return _read_options(path)
    if config.resume:
        raise InputError(
            "resume",
            got=f"no training in {config.out}",
            expected="a folder that a training was started in",
            fix="Leave --resume out to start one.",
        )
    # Names with a dot may be what a kill has left of the very first file.
    if config.out.exists() and any(not entry.name.startswith(".") for entry in config.out.iterdir()):
        raise InputError(
            "out",
            got=f"{config.out}, which holds something else",
            expected="a new folder, or that of a training",
            fix="Choose another folder.",
        )
    return {}


def _read_options(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_bytes())
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise InputError(
            str(path), got="a damaged file", expected="the options of a training", fix="Train into a new folder."
        )
    return options


def check_unchanged(config: TrainConfig, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError for the first option that a resumed training may not change.

    One that is missing is younger than that training; its default is what was done before there was a choice.
    """
    defaults = {each.name: each.default for each in fields(config) if each.default is not MISSING}
    earlier, now = _flatten_options(json.loads(json.dumps(defaults)) | earlier), _flatten_options(now)
    for key in [*earlier, *(key for key in now if key not in earlier)]:
        if key not in CHANGEABLE_ON_RESUME and earlier.get(key) != now.get(key):
            raise InputError(
                f"resume: {key}",
                got=now.get(key),
                expected=earlier.get(key),
                fix="Resume with the options and the data of the first run, or train into a new folder.",
            )


def prepare_folder(config: TrainConfig, options: dict[str, Any]) -> None:
    """Throw an earlier training away if that was asked for, and write the options down."""
    from ...disk import report_disk_errors, write_atomically
    from ...training.loop import CHECKPOINT_FOLDER, LOG_FILE, STATE_FOLDER
    from ...training.state import discard_state

    with report_disk_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        discard_state(config.out / STATE_FOLDER)
        # What a kill while writing a checkpoint has left begins with a dot.
        for path in (config.out / CHECKPOINT_FOLDER, *config.out.glob(f".{CHECKPOINT_FOLDER}.*")):
            shutil.rmtree(path, ignore_errors=True)
        (config.out / LOG_FILE).unlink(missing_ok=True)
    path = config.out / OPTIONS_FILE
    with report_disk_errors(path):
        write_atomically(path, json.dumps(options, indent=2) + "\n")


def to_json_values(config: TrainConfig) -> dict[str, Any]:
    """Return the options as plain JSON values."""
    return json.loads(json.dumps(asdict(config), default=os.fspath))


def _flatten_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options by the names that the command line has for them: those of the loop have no prefix."""
    loop = options.get("loop")
    return {key: value for key, value in options.items() if key != "loop"} | (loop if isinstance(loop, dict) else {})
