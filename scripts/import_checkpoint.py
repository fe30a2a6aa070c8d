"""`saccade import`: import a released checkpoint of CogVLA, OpenVLA-OFT, VLA-Adapter or MergeVLA."""

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
    """Convert a released checkpoint of CogVLA, OpenVLA-OFT, VLA-Adapter or MergeVLA to a checkpoint folder of Saccade.

    The new policy computes the same actions as the released one. Nothing is downloaded. From pickle files only tensors
    are read. Memory and disk: each about the size of the released weights.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the released checkpoint."""
    out: Path
    """Folder of the new checkpoint."""
    platform: str
    """Platform that the policy was trained for: libero, aloha or bridge. The released files do not name it."""
    layout: Literal["auto", "cogvla", "openvla-oft", "vla-adapter", "mergevla"] = "auto"
    """Format of the checkpoint. auto: detect it from the files."""
    statistics: str | None = None
    """Dataset whose statistics are used, if the checkpoint has several."""
    text_length: int = 64
    """Maximum prompt length in tokens."""
    trunk_base: Path | None = None
    """Folder of the base model, such as openvla-7b. Needed if the LoRA adapter was not merged."""

    def __post_init__(self) -> None:
        find_platform(self.platform)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            fix = "Choose another --out."
            raise InputError("out", got=f"{self.out}, which exists already", expected="a new folder", fix=fix)


def run(config: ImportConfig) -> int:
    """Run the command, print a summary and return the exit code."""
    print(summary(import_checkpoint(config), config.out))
    return 0


def import_checkpoint(config: ImportConfig, *, progress: bool = True) -> ImportedPolicy:
    """Import a released checkpoint, write it to `config.out` and return it.

    Args:
        config: Options of the command.
        progress: Show progress bars.

    Raises:
        InputError: A file is missing, damaged or not supported, or does not fit the options.
    """
    from ..policy.checkpoint.contents import MODEL_PREFIX
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
    make_tokenizer(imported.architecture, imported.tokenizer_text)  # checks that it fits
    config_json, text_files = lerobot_files(imported.architecture, imported.contract)
    # Paths are not recorded: the fingerprints identify the files.
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
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in imported.tensors.items()}
    text_files |= {TOKENIZER_FILE: imported.tokenizer_text}
    write_checkpoint(config.out, tensors, config_json, imported.contract, provenance, text_files)
    return imported


def summary(imported: ImportedPolicy, out: Path) -> str:
    """Return a summary of an imported policy for the terminal."""
    contract, statistics = imported.contract, imported.contract.normalization
    parameters = sum(tensor.numel() for tensor in imported.tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in imported.tensors.values())
    cameras = (f"{camera}, rotated by {camera.rotation_degrees}, crop {camera.crop:g}" for camera in contract.cameras)
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
        f"Next: saccade train --init {out} --data FOLDER --out runs/tuned    # fine-tune on demonstrations",
    ]
    return "\n".join(lines)


def _find_importer(layout: str) -> Callable[[ReleasedCheckpoint, ImportOptions], ImportedPolicy]:
    if layout in ("cogvla", "openvla-oft"):
        from ..policy.importing.cogvla import import_cogvla

        return import_cogvla
    from ..policy.importing.vla_adapter import import_vla_adapter

    return import_vla_adapter
