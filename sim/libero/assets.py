"""LIBERO's assets (meshes, textures, scenes), from the Hugging Face hub or from a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, WorldError

REPOSITORY = "lerobot/libero-assets"
"""The dataset on the hub from which hf-libero takes its assets."""

REVISION = "main"
"""Requested revision of the dataset; every result records the commit and the digest of the files."""

ASSETS_VARIABLE = "SACCADE_LIBERO_ASSETS"
"""Environment variable that names a folder of assets."""

MANIFEST = "MANIFEST.json"
"""File of a folder that lists, under `stand_ins`, the files that replace published ones."""

NEEDED = Path(__file__).with_name("asset_files.json")
"""JSON list of every file that the 40 tasks load."""

SHOWN = 5
"""Missing files that an error names."""


@dataclass(frozen=True)
class Assets:
    """A complete folder of assets.

    Attributes:
        folder: The folder.
        sha256: Digest of the needed files, in hexadecimal.
        source: Where the folder is from: `folder`, or the hub's dataset and commit.
        stand_ins: Files that replace published ones.
    """

    folder: Path
    sha256: str
    source: str
    stand_ins: tuple[str, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return the assets' part of a result's fingerprint."""
        return {"sha256": self.sha256, "source": self.source, "stand_ins": list(self.stand_ins)}


def needed_files() -> tuple[str, ...]:
    """Return the files that the 40 tasks load, relative to the folder of assets."""
    return tuple(json.loads(NEEDED.read_text()))


def find_assets(folder: str | Path | None = None, needed: Iterable[str] | None = None) -> Assets:
    """Return the assets in `folder`, else in the folder that SACCADE_LIBERO_ASSETS names, else from the hub.

    Assets from the hub are downloaded once into the hub's cache.

    Args:
        folder: Folder of the assets.
        needed: Files that must be there; None for those of the 40 tasks.

    Raises:
        InputError: The folder does not exist or lacks files; the error names them.
        WorldError: The assets cannot be downloaded.
    """
    given = folder or os.environ.get(ASSETS_VARIABLE) or None
    needed = needed_files() if needed is None else tuple(needed)
    if given is None:
        root = download()
        # The name of a snapshot's folder is its commit.
        return inspect_folder(root, needed, source=f"hub {REPOSITORY}@{root.name}")
    return inspect_folder(Path(given).expanduser(), needed, source="folder")


def inspect_folder(root: Path, needed: Iterable[str], *, source: str) -> Assets:
    """Check a folder and return it as assets.

    Args:
        root: The folder.
        needed: Files that must be there, relative to the folder.
        source: Where the folder is from.

    Raises:
        InputError: The folder does not exist or lacks files; the error names them.
    """
    if not root.is_dir():
        raise InputError(
            "LIBERO assets",
            got=f"{root}, which is no folder",
            expected="the folder with scenes/, textures/ and the objects",
            fix=f"Pass the folder with --libero-assets or {ASSETS_VARIABLE}, or leave both out to use the hub.",
        )
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"LIBERO assets in {root}",
            got=f"no {', '.join(missing[:SHOWN])}{more}",
            expected="every file that the 40 tasks need",
            fix="Copy the missing files into the folder, or leave the folder out to use the hub.",
        )
    return Assets(root.resolve(), _digest(root, needed), source, _stand_ins(root))


def same_assets(assets: Assets) -> Assets:
    """Return the same assets on this machine: a worker may run on another machine than the evaluation's start.

    Raises:
        InputError: The assets of this machine differ or lack files.
        WorldError: The assets cannot be downloaded.
    """
    if assets.folder.is_dir():
        return assets
    found = find_assets()
    if found.sha256 != assets.sha256:
        raise InputError(
            f"LIBERO assets in {found.folder}",
            got=f"sha256 {found.sha256[:16]}…",
            expected=f"{assets.sha256[:16]}…, as on the machine that started the evaluation",
            fix=f"Set {ASSETS_VARIABLE} to a copy of the same folder on every machine.",
        )
    return found


def download() -> Path:
    """Return the folder of the hub's snapshot of the assets; download it unless it is in the hub's cache.

    Raises:
        WorldError: The assets cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(REPOSITORY, repo_type="dataset", revision=REVISION))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorldError(
            f"LIBERO assets: {REPOSITORY} cannot be downloaded from the hub ({reason}). "
            f"Download it on a machine with network access; pass the folder with --libero-assets or {ASSETS_VARIABLE}."
        ) from error


def _digest(root: Path, needed: Iterable[str]) -> str:
    """Return a sha256 over the names and contents of the needed files."""
    digest = hashlib.sha256()
    for name in sorted(needed):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def _stand_ins(root: Path) -> tuple[str, ...]:
    """Return the stand-ins that the folder's manifest lists; raises InputError for a damaged manifest."""
    path = root / MANIFEST
    if not path.is_file():
        return ()
    try:
        return tuple(sorted(str(entry["file"]) for entry in json.loads(path.read_bytes()).get("stand_ins", ())))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            str(path),
            got=f"no list of stand-ins ({type(error).__name__})",
            expected='JSON with "stand_ins": [{"file": ...}]',
            fix=f"Restore the folder's original {MANIFEST}.",
        ) from error
