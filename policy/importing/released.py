"""Read released checkpoint folders in OpenVLA's format: JSON files, weights in safetensors, parts in pickle files.

Weights are read one by one, on request. From pickle files only tensors are read: torch's loader refuses anything else
and never runs it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import InputError
from ...ranges import require_at_least
from ..contract import Contract
from ..network.architecture import Architecture
from .platforms import Platform
from .weights import WeightSource, tensor_mismatch

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json"
STATE_PROJECTION = "proprio_projector"
COPY_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class ImportOptions:
    """What a released folder does not tell.

    Attributes:
        platform: Platform that the policy was trained for.
        statistics: Dataset whose statistics are used; may be None if there is only one.
        text_length: Maximum prompt length in tokens, L.
        base: The base model, for a folder whose adapter is not merged.
        progress: Show a progress bar.
    """

    platform: Platform
    statistics: str | None = None
    text_length: int = 64
    base: ReleasedCheckpoint | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, 2, "text_length", fix="Use 64.")


@dataclass(frozen=True)
class ImportedPolicy:
    """A policy that was converted from a released folder.

    Attributes:
        description: What the folder holds, in words.
        architecture: Architecture of the network.
        contract: Contract of the policy.
        tensors: The converted weights by their names in the network.
        tokenizer_text: Text of tokenizer.json.
        files: The released weights that were read.
    """

    description: str
    architecture: Architecture
    contract: Contract
    tensors: dict[str, torch.Tensor]
    tokenizer_text: str
    files: tuple[WeightSource, ...]

    @property
    def used(self) -> int:
        """Number of released tensors that were used."""
        return sum(len(weights.claimed) for weights in self.files)

    @property
    def ignored(self) -> dict[str, int]:
        """Number of released tensors that were ignored, by reason."""
        return dict(Counter(reason for weights in self.files for reason in weights.ignored.values()))


class ReleasedCheckpoint:
    """A released folder; it records which files were opened.

    All methods raise InputError for files that are missing, damaged, or hold anything but tensors. The importer of a
    layout is a function of a ReleasedCheckpoint and ImportOptions that returns an ImportedPolicy.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            got = "a file" if self.folder.exists() else "no such folder"
            raise InputError(
                str(folder), got=got, expected="the folder of a released checkpoint", fix="Check the path."
            )
        self._opened: set[str] = set()

    @property
    def merged(self) -> bool:
        """Whether the folder holds the full model, with the adapter merged into it."""
        return (self.folder / INDEX).is_file() or (self.folder / MODEL).is_file()

    def has(self, name: str) -> bool:
        """Tell whether a file exists."""
        return (self.folder / name).is_file()

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file."""
        text = self.read_text_file(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = f"text that is no JSON ({error})"
            raise InputError(str(self.folder / name), got=what, expected="JSON", fix=COPY_AGAIN) from None
        if not isinstance(value, dict):
            got = type(value).__name__
            raise InputError(str(self.folder / name), got=got, expected="a JSON object", fix=COPY_AGAIN)
        return value

    def read_text_file(self, name: str) -> str:
        """Return the content of a text file."""
        try:
            return self._path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(str(self.folder / name), got=error, expected="text", fix=COPY_AGAIN) from None

    def model(self) -> WeightSource:
        """Open the weights of the model, in one file or in several shards."""
        if not self.merged:
            pickled = sorted(path.name for path in self.folder.glob("pytorch_model*.bin"))
            raise InputError(
                str(self.folder / MODEL),
                got=f"{pickled[0]}, a pickle" if pickled else "no such file, and no index of several",
                expected="the merged model as safetensors",
                fix="Convert it to safetensors first." if pickled else COPY_AGAIN,
            )
        if not self.has(INDEX):
            return self._safetensors([MODEL], "the model")
        shards = self.read_json(INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise InputError(str(self.folder / INDEX), got="no weight_map", expected="one", fix=COPY_AGAIN)
        weights = self._safetensors(sorted(set(shards.values())), "the model")
        if missing := sorted(set(shards) - set(weights)):
            raise tensor_mismatch("the model", missing=missing)
        return weights

    def adapter(self) -> WeightSource:
        """Open the factors of the LoRA adapter."""
        return self._safetensors([ADAPTER], ADAPTER)

    def lora_scaling(self) -> float:
        """Return the scaling of the adapter's product: lora_alpha / r.

        Without adapter_config.json it is 16 / 32, as in OpenVLA-OFT's loader.

        Raises:
            InputError: The adapter is not plain LoRA (DoRA, rsLoRA, ranks by layer).
        """
        if not self.has(ADAPTER_CONFIG):
            return 16 / 32
        config = self.read_json(ADAPTER_CONFIG)
        rank, alpha = config.get("r"), config.get("lora_alpha")
        for field in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
            if config.get(field):
                what, fix = f"{ADAPTER_CONFIG}: {field}", "Merge the adapter with the code that trained it."
                raise InputError(what, got=config[field], expected="a plain LoRA adapter", fix=fix)
        if not (isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0):
            got = f"r {rank}, lora_alpha {alpha}"
            raise InputError(ADAPTER_CONFIG, got=got, expected="two numbers above 0", fix=COPY_AGAIN)
        return alpha / rank

    def has_part(self, name: str) -> bool:
        """Tell whether a part of the policy, such as `action_head`, has a separate file."""
        return bool(self._parts(name))

    def read_part(self, name: str) -> WeightSource:
        """Open the tensors of `NAME--STEP_checkpoint.pt`, without the prefix `module.` of distributed training.

        Raises:
            InputError: The folder holds no such file, or those of several steps.
        """
        found = self._parts(name)
        if len(found) != 1:
            raise InputError(
                str(self.folder / f"{name}--STEP_checkpoint.pt"),
                got=", ".join(path.name for path in found) or "no such file",
                expected="one of a single step",
                fix="Keep only the files of one step in the folder." if found else COPY_AGAIN,
            )
        tensors = _load_pickle(self._path(found[0].name))
        prefix = "module." if tensors and all(each.startswith("module.") for each in tensors) else ""
        tensors = {each.removeprefix(prefix): tensor for each, tensor in tensors.items()}
        shapes = {each: tuple(tensor.shape) for each, tensor in tensors.items()}
        return WeightSource(found[0].name, shapes, lambda each: _copy(tensors[each]))

    def fingerprints(self, *, progress: bool = False) -> dict[str, dict[str, Any]]:
        """Return the size in bytes and the sha256 of every file that was opened."""
        from tqdm import tqdm

        sizes = {name: (self.folder / name).stat().st_size for name in sorted(self._opened)}
        described = {}
        with tqdm(total=sum(sizes.values()), desc="hashing", unit="B", unit_scale=True, disable=not progress) as bar:
            for name, size in sizes.items():
                with (self.folder / name).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                described[name] = {"bytes": size, "sha256": digest}
                bar.update(size)
        return described

    def _parts(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}--*checkpoint.pt"))

    def _path(self, name: str) -> Path:
        path = self.folder / name
        # File names in an index must not point outside the folder.
        if not path.is_file() or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(str(path), got="no such file", expected="a complete released folder", fix=COPY_AGAIN)
        self._opened.add(name)
        return path

    def _safetensors(self, files: Iterable[str], source: str) -> WeightSource:
        places, shapes = {}, {}
        for file in files:
            path = self._path(file)
            try:
                with safe_open(path, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - no mapping
                        places[name], shapes[name] = path, tuple(opened.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise InputError(str(path), got=error, expected="complete safetensors", fix=COPY_AGAIN) from None

        def read(name: str) -> torch.Tensor:
            # Opened again each time: a file that stays mapped would count as used memory.
            with safe_open(places[name], "pt") as opened:
                return _copy(opened.get_tensor(name))

        return WeightSource(source, shapes, read)


def read_state_projection(released: ReleasedCheckpoint) -> WeightSource:
    """Open the weights that project the robot's state; raises InputError for a policy without them."""
    if not released.has_part(STATE_PROJECTION):
        raise InputError(
            f"{STATE_PROJECTION}--STEP_checkpoint.pt",
            got="no such file",
            expected="a policy that takes the robot's state as input",
            fix="Copy it from the release; policies that were trained without it cannot be imported.",
        )
    return released.read_part(STATE_PROJECTION)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that does not keep the file mapped."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickle file; anything else in it is refused and never run."""
    fix = "Take the file from the release; files that hold code are never opened."
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise InputError(str(path), got=_first_line(error), expected="tensors and nothing else", fix=fix) from None
    except Exception as error:  # the loader trusts its input: a damaged file raises all kinds of errors
        got = f"a damaged file ({_first_line(error)})"
        raise InputError(str(path), got=got, expected="a file of torch.save", fix=COPY_AGAIN) from None
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    ):
        raise InputError(str(path), got=type(value).__name__, expected="tensors by name", fix=fix)
    return dict(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_zip(path: Path) -> bool:
    """Tell whether a file has the zip format, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
