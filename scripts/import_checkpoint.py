"""`saccade import`: a checkpoint that another project has released becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import InputError
from ..policy.importing.platforms import find_platform

if TYPE_CHECKING:
    from ..policy.importing.released import ImportedPolicy, ImportOptions, ReleasedCheckpoint


@dataclass(frozen=True)
class ImportConfig:
    """Turn a released checkpoint of CogVLA, OpenVLA-OFT, VLA-Adapter or MergeVLA into a checkpoint folder of ours.

    The new policy decides what the released one does, number for number. Nothing is downloaded, and what is pickled is
    read as tensors alone. Memory and disk: about the size of the released weights each.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the released checkpoint."""
    out: Path
    """Folder of the new checkpoint."""
    platform: str
    """What the policy was trained for: libero, aloha or bridge. The released files do not say it."""
    layout: Literal["auto", "cogvla", "openvla-oft", "vla-adapter", "mergevla"] = "auto"
    """Method of the checkpoint; found out from its files when left out."""
    statistics: str | None = None
    """Data set whose statistics to take, where the checkpoint has several."""
    text_length: int = 64
    """Tokens of the longest prompt."""
    trunk_base: Path | None = None
    """Folder of the model that was adapted, such as openvla-7b, where the adapter has not been merged."""

    def __post_init__(self) -> None:
        find_platform(self.platform)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            fix = "Choose another folder."
            raise InputError("out", got=f"{self.out}, which is there already", expected="a new folder", fix=fix)


def run(config: ImportConfig) -> int:
    """Import as configured, print what was found, and return the exit code."""
    print(summary(import_checkpoint(config), config.out))
    return 0


def import_checkpoint(config: ImportConfig, *, progress: bool = True) -> ImportedPolicy:
    """Import as configured and return what was written; raises InputError for whatever does not fit."""
    from ..policy.checkpoint.contents import PREFIX
    from ..policy.checkpoint.folder import collect_provenance, write_checkpoint
    from ..policy.importing.layouts import find_layout
    from ..policy.importing.released import ImportOptions, ReleasedCheckpoint
    from ..policy.lerobot_files import lerobot_files
    from ..policy.network.tokenizer import TOKENIZER_FILE, make_tokenizer

    released = ReleasedCheckpoint(config.folder)
    base = None if config.trunk_base is None else ReleasedCheckpoint(config.trunk_base)
    layout = find_layout(released, base, None if config.layout == "auto" else config.layout)
    options = ImportOptions(find_platform(config.platform), config.statistics, config.text_length, base, progress)
    imported = _find_importer(layout)(released, options)
    make_tokenizer(imported.architecture, imported.tokenizer_text)  # refuses one that does not fit
    config_json, text_files = lerobot_files(imported.architecture, imported.contract)
    # Paths are left out: the files' fingerprints say what it was, wherever it lay.
    recorded_options = {
        name: value for name, value in asdict(config).items() if name not in ("folder", "out", "trunk_base")
    }
    provenance = collect_provenance(["saccade", "import"], {}, None) | {
        "imported": {
            "layout": layout,
            "recognised": imported.description,
            "options": recorded_options,
            "files": released.fingerprints(progress=progress),
            "base_files": {} if base is None else base.fingerprints(progress=progress),
        }
    }
    tensors = {PREFIX + name: tensor for name, tensor in imported.tensors.items()}
    text_files |= {TOKENIZER_FILE: imported.tokenizer_text}
    write_checkpoint(config.out, tensors, config_json, imported.contract, provenance, text_files)
    return imported


def summary(imported: ImportedPolicy, out: Path) -> str:
    """Return what was imported as lines for people."""
    contract, statistics = imported.contract, imported.contract.normalization
    parameters = sum(tensor.numel() for tensor in imported.tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in imported.tensors.values())
    cameras = (f"{camera}, turned {camera.rotation_degrees}, crop {camera.crop:g}" for camera in contract.cameras)
    lines = [
        f"recognised  {imported.description}",
        f"tensors     {imported.used} used, {sum(imported.ignored.values())} ignored",
        *(f"            {count:6d}  {reason}" for reason, count in sorted(imported.ignored.items())),
        f"policy      {parameters / 1e6:.1f} M parameters, {size / 2**30:.2f} GiB",
        f"cameras     {'; '.join(cameras)}",
        f"state       {', '.join(contract.state.names)}",
        f"action      {', '.join(contract.action.names)}; {contract.action.kind}, {contract.action.frame} frame",
        f"chunk       {contract.chunk} steps at {contract.control_hz:g} Hz; {statistics.method} statistics",
        f"Checkpoint: {out}",
        f"Next: saccade train --init {out} --data FOLDER --out runs/tuned    # go on learning from demonstrations",
    ]
    return "\n".join(lines)


def _find_importer(layout: str) -> Callable[[ReleasedCheckpoint, ImportOptions], ImportedPolicy]:
    if layout in ("cogvla", "openvla-oft"):
        from ..policy.importing.cogvla import import_cogvla

        return import_cogvla
    from ..policy.importing.vla_adapter import import_vla_adapter

    return import_vla_adapter
