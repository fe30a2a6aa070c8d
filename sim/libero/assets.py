"""LIBERO's meshes, textures and scenes: from the hub, or from a folder; whole, or named file by file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, WorldError

REPOSITORY = "lerobot/libero-assets"
"""The data set of the hub that hf-libero itself takes its assets from."""

REVISION = "main"
"""The hub's revision that is asked for; which one it was, and what it held, stands in every result."""

ASSETS_VARIABLE = "SACCADE_LIBERO_ASSETS"

MANIFEST = "MANIFEST.json"
"""Where a folder says which of its files are stand-ins for the published ones, under the key `stand_ins`."""

NEEDED = Path(__file__).with_name("asset_files.json")
"""Every file that the 40 tasks load."""

SHOWN = 5


@dataclass(frozen=True)
class Assets:
    """A complete folder of assets: a digest over the needed files, where it came from, and what in it is not the
    published thing."""

    folder: Path
    sha256: str
    source: str
    stand_ins: tuple[str, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return what goes into a result's fingerprint."""
        return {"sha256": self.sha256, "source": self.source, "stand_ins": list(self.stand_ins)}


def needed_files() -> tuple[str, ...]:
    """Return the paths, relative to the folder, that all tasks together need."""
    return tuple(json.loads(NEEDED.read_text()))


def find_assets(folder: str | Path | None = None, needed: Iterable[str] | None = None) -> Assets:
    """Return the assets in `folder`, else in the one that SACCADE_LIBERO_ASSETS names, else those of the hub.

    The hub's are fetched once, into its own cache. Raises InputError for a folder that lacks files, with their names,
    and WorldError when the hub cannot be reached.
    """
    given = folder or os.environ.get(ASSETS_VARIABLE) or None
    needed = needed_files() if needed is None else tuple(needed)
    if given is None:
        root = download()
        # A snapshot's folder is named after the commit that it is of.
        return inspect_folder(root, needed, source=f"hub {REPOSITORY}@{root.name}")
    return inspect_folder(Path(given).expanduser(), needed, source="folder")


def inspect_folder(root: Path, needed: Iterable[str], *, source: str) -> Assets:
    """Return what a folder holds; InputError, naming the files, when some of `needed` are missing."""
    if not root.is_dir():
        raise InputError(
            "LIBERO assets",
            got=f"{root}, no folder",
            expected="the folder with scenes/, textures/ and the objects",
            fix=f"Name it with --libero-assets or {ASSETS_VARIABLE}; without either they come from the hub.",
        )
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"LIBERO assets in {root}",
            got=f"no {', '.join(missing[:SHOWN])}{more}",
            expected="every file that the 40 tasks need",
            fix="Copy the missing files, or leave the folder out to take the assets from the hub.",
        )
    return Assets(root.resolve(), _digest(root, needed), source, _stand_ins(root))


def same_assets(assets: Assets) -> Assets:
    """Return these very assets as this machine has them, which may not be the one that they were found on.

    Raises as `find_assets`, and InputError when what is here holds something else.
    """
    if assets.folder.is_dir():
        return assets
    found = find_assets()
    if found.sha256 != assets.sha256:
        raise InputError(
            f"LIBERO assets in {found.folder}",
            got=f"sha256 {found.sha256[:16]}…",
            expected=f"{assets.sha256[:16]}…, as where the evaluation was started",
            fix=f"Name a copy of the same folder with {ASSETS_VARIABLE} on every machine.",
        )
    return found


def download() -> Path:
    """Return the hub's snapshot of the assets, fetched when it is not in the hub's cache yet; WorldError if it cannot
    be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(REPOSITORY, repo_type="dataset", revision=REVISION))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorldError(
            f"LIBERO assets: the hub's {REPOSITORY} cannot be had ({reason}). "
            f"Fetch it where there is a network, and name the folder with --libero-assets or {ASSETS_VARIABLE}."
        ) from error


def _digest(root: Path, needed: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(needed):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def _stand_ins(root: Path) -> tuple[str, ...]:
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
            fix="Restore the file that came with the folder.",
        ) from error
