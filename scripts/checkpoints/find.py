"""Find the folder of a checkpoint by its name, and check the device that it shall run on."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, suggest


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        got = "cuda, but torch sees no such device"
        raise InputError("device", got=got, expected="a device of this machine", fix="Use --device cpu.")


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint, of a training's checkpoint, or of `starter`.

    Raises InputError, with the nearest name, when there is no such folder.
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
