"""The folder of a training: whether it may be written to, the options in it, and what --resume may change."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

from ...disk import report_disk_errors, write_atomically
from ...errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from .options import TrainConfig

OPTIONS_FILE = "train.json"
CHANGEABLE_ON_RESUME = (
    *("resume", "overwrite", "out", "data", "threads", "report_to", "log_every", "save_every"),
    "checkpointing",
)
"""Options that may change when a training is resumed, because the result does not depend on them.

Datasets may have moved to other folders; their fingerprint shows that the demonstrations are the same.
"""


def read_earlier_options(config: TrainConfig) -> dict[str, Any]:
    """Check that --out may be written to, and read the options of the training in it.

    Returns:
        The content of its `train.json`; empty for a new folder.

    Raises:
        InputError: The folder holds a training and neither --resume nor --overwrite is given, or it holds other
            files, or there is nothing to resume.
    """
    path = config.out / OPTIONS_FILE
    if config.out.exists() and not config.out.is_dir():
        raise InputError("--out", got=f"{config.out}, a file", expected="a folder", fix="Choose another --out.")
    if path.is_file():
        if not (config.resume or config.overwrite):
            raise InputError(
                "--out",
                got=f"{config.out}, which holds a training",
                expected="a new folder",
                fix="Use --resume to continue, --overwrite to start again, or another --out.",
            )
        return _read_options(path)
    if config.resume:
        raise InputError(
            "--resume",
            got=f"no training in {config.out}",
            expected="the folder of an interrupted training",
            fix="Leave out --resume to start a training.",
        )
    # A kill during the first write may leave a temporary file, whose name begins with a dot.
    if config.out.exists() and any(not entry.name.startswith(".") for entry in config.out.iterdir()):
        raise InputError(
            "--out",
            got=f"{config.out}, which holds other files",
            expected="a new folder, or the folder of a training",
            fix="Choose another --out.",
        )
    return {}


def _read_options(path: Path) -> dict[str, Any]:
    """Read a `train.json`; raises InputError for a damaged one."""
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
    """Check that a resumed training has the options of its first run.

    An option that `earlier` lacks was added to Saccade later; its default describes what the first run did.

    Args:
        config: The options of this run; gives the defaults.
        earlier: The content of the training's `train.json`.
        now: The same of this run.

    Raises:
        InputError: An option differs that is not in `CHANGEABLE_ON_RESUME`.
    """
    defaults = {each.name: each.default for each in fields(config) if each.default is not MISSING}
    earlier, now = _flatten_options(json.loads(json.dumps(defaults)) | earlier), _flatten_options(now)
    for key in [*earlier, *(key for key in now if key not in earlier)]:
        if key not in CHANGEABLE_ON_RESUME and earlier.get(key) != now.get(key):
            raise InputError(
                f"--resume: {key}",
                got=now.get(key),
                expected=earlier.get(key),
                fix="Resume with the options and the data of the first run, or train into a new folder.",
            )


def prepare_folder(config: TrainConfig, options: dict[str, Any]) -> None:
    """Create --out, delete an earlier training in it with --overwrite, and write `train.json`.

    Raises:
        InputError: The disk refuses.
    """
    from ...training.loop import CHECKPOINT_FOLDER, LOG_FILE, STATE_FOLDER
    from ...training.state import discard_state

    with report_disk_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        discard_state(config.out / STATE_FOLDER)
        # Folders that a kill during the writing of a checkpoint left have names that begin with a dot.
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
    """Return the options with those of the loop at the top level, as the command line names them."""
    loop = options.get("loop")
    return {key: value for key, value in options.items() if key != "loop"} | (loop if isinstance(loop, dict) else {})
