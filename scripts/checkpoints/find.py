"""Find the folder of a checkpoint by its name."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, suggest


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint.

    Args:
        name: Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package.

    Raises:
        InputError: There is no such folder; the error suggests the nearest name.
    """
    from ...policy.checkpoint.folder import find_checkpoint

    folder = find_checkpoint(name)
    if name == "starter" or folder.is_dir():
        return folder
    parent = folder.parent if folder.parent.is_dir() else Path()
    sibling_folders = [
        str(path) for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]
    suggestion = suggest(name, ["starter", *sibling_folders])
    raise InputError(
        "checkpoint",
        got=repr(name),
        expected="the folder of a checkpoint, or 'starter'",
        fix=suggestion if suggestion.startswith("Did") else "Give the folder that holds model.safetensors.",
    )
