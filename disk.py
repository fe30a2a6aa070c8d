"""Write files and folders that are whole or not there at all, whenever the process stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

RESUME = "Free some space and run again with --resume: what was saved before is untouched."


@contextmanager
def report_disk_errors(path: Path, *, fix: str = RESUME) -> Iterator[None]:
    """Turn a disk's refusal (full, read-only, gone) into an InputError that names `path`.

    Args:
        path: The file or folder that is written; the error names it.
        fix: The next step that the error suggests.

    Raises:
        InputError: The operating system refused to write.
    """
    try:
        yield
    except OSError as error:
        got = error.strerror or error
        raise InputError(str(path), got=got, expected="a disk that takes it", fix=fix) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that holds either the old content or the new one, whenever the process stops.

    Several processes may write the same file at once: the last one to finish wins.

    Args:
        path: The file; its folder must exist.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: The disk refused; the old file is untouched. Use `report_disk_errors` to turn it into one clear line.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_folder(staging: Path, folder: Path) -> None:
    """Rename `staging` to `folder`; the old folder is removed only after the new one is in place.

    A kill between the two renames leaves the old folder under `previous_folder(folder)`: see `restore_previous`.

    Args:
        staging: The finished new folder, on the same file system.
        folder: The name that it gets.

    Raises:
        OSError: A rename was refused; the old folder is unchanged.
    """
    previous = previous_folder(folder)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    try:
        staging.rename(folder)
    except OSError:
        if previous.exists():
            previous.rename(folder)
        raise
    flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def previous_folder(folder: Path) -> Path:
    """Return where `replace_folder` keeps the old folder until the new one is in place."""
    return folder.with_name(f".{folder.name}.previous")


def restore_previous(folder: Path) -> None:
    """Put the old folder back where a kill came between the two renames of `replace_folder`."""
    if not folder.exists() and previous_folder(folder).is_dir():
        previous_folder(folder).rename(folder)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
