"""A checkpoint folder as OpenVLA's descendants release it: documents, weights in safetensors, parts in pickles.

Weights are read one by one when they are asked for. What is pickled is read as bare tensors: torch's loader refuses,
and never runs, anything else that stands in such a file.
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
from ..contract import Contract
from ..network.architecture import Architecture
from .platforms import Platform
from .weights import WeightSource, tensor_mismatch

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json"
COPY_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class ImportOptions:
    """What a released folder does not say itself.

    `statistics`: the data set whose statistics are taken, None where there is one alone; `text_length`: the longest
    prompt in tokens, L; `base`: the model that was adapted, for a folder whose adapter is not merged.
    """

    platform: Platform
    statistics: str | None = None
    text_length: int = 64
    base: ReleasedCheckpoint | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.text_length < 2:
            raise InputError("text_length", got=self.text_length, expected="2 tokens or more", fix="64 is usual.")


@dataclass(frozen=True)
class ImportedPolicy:
    """A policy in our terms: `tensors` by the network's own names, `tokenizer_text` the text of its tokenizer.json.

    `description` says in words what the folder holds; `files`: the weights that it was read from.
    """

    description: str
    architecture: Architecture
    contract: Contract
    tensors: dict[str, torch.Tensor]
    tokenizer_text: str
    files: tuple[WeightSource, ...]

    @property
    def used(self) -> int:
        """Tensors of the files that went into the policy."""
        return sum(len(weights.claimed) for weights in self.files)

    @property
    def ignored(self) -> dict[str, int]:
        """Tensors of the files that did not, by the reason."""
        return dict(Counter(reason for weights in self.files for reason in weights.ignored.values()))


class ReleasedCheckpoint:
    """A released folder; `read_part` and the like read what is in it, and it remembers which files it has opened.

    Raises InputError for a folder that is not there, files that are missing, damaged or hold more than tensors.

    An importer of a layout is a function of a Released and ImportOptions that returns an Imported.
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
        """Whether the whole model is there, with the adapter merged into it."""
        return (self.folder / INDEX).is_file() or (self.folder / MODEL).is_file()

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.folder / name).is_file()

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON document."""
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
        """Return a text file."""
        try:
            return self._path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(str(self.folder / name), got=error, expected="text", fix=COPY_AGAIN) from None

    def model(self) -> WeightSource:
        """Return the model's weights, over however many files they are spread."""
        if not self.merged:
            pickled = sorted(path.name for path in self.folder.glob("pytorch_model*.bin"))
            raise InputError(
                str(self.folder / MODEL),
                got=f"{pickled[0]}, a pickle" if pickled else "no such file, and no index of several",
                expected="the merged model as safetensors",
                fix="Convert it to safetensors first." if pickled else COPY_AGAIN,
            )
        files = [MODEL]
        if self.has(INDEX):
            placed = self.read_json(INDEX).get("weight_map")
            if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
                raise InputError(str(self.folder / INDEX), got="no weight_map", expected="one", fix=COPY_AGAIN)
            files = sorted(set(placed.values()))
        weights = self._safetensors(files, "the model")
        if self.has(INDEX) and (missing := sorted(set(placed) - set(weights))):
            raise tensor_mismatch("the model", missing=missing)
        return weights

    def adapter(self) -> WeightSource:
        """Return the factors of the low-rank adapter."""
        return self._safetensors([ADAPTER], ADAPTER)

    def lora_scaling(self) -> float:
        """Return what the product of an adapter's factors is multiplied with: lora_alpha / r.

        Where the adapter's configuration is not in the folder, OpenVLA-OFT takes rank 32 and alpha 16, as its loader
        does. Raises InputError for a kind of adapter that is more than this product.
        """
        if not self.has(ADAPTER_CONFIG):
            return 16 / 32
        config = self.read_json(ADAPTER_CONFIG)
        rank, alpha = config.get("r"), config.get("lora_alpha")
        for field in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
            if config.get(field):
                what, fix = f"{ADAPTER_CONFIG}: {field}", "Merge the adapter with the code that trained it."
                raise InputError(what, got=config[field], expected="a plain low-rank adapter", fix=fix)
        if not (isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0):
            got = f"r {rank}, lora_alpha {alpha}"
            raise InputError(ADAPTER_CONFIG, got=got, expected="two numbers above 0", fix=COPY_AGAIN)
        return alpha / rank

    def has_part(self, name: str) -> bool:
        """Whether a part of the policy, such as `action_head`, has a file of its own."""
        return bool(self._parts(name))

    def read_part(self, name: str) -> WeightSource:
        """Return the tensors of `NAME--STEP_checkpoint.pt`, without the `module.` that distributed training puts first.

        Several steps side by side are an InputError.
        """
        found = self._parts(name)
        if len(found) != 1:
            raise InputError(
                str(self.folder / f"{name}--STEP_checkpoint.pt"),
                got=", ".join(path.name for path in found) or "no such file",
                expected="one of a single step",
                fix="Leave those of one step in the folder." if found else COPY_AGAIN,
            )
        tensors = _load_pickle(self._path(found[0].name))
        prefix = "module." if tensors and all(each.startswith("module.") for each in tensors) else ""
        tensors = {each.removeprefix(prefix): tensor for each, tensor in tensors.items()}
        shapes = {each: tuple(tensor.shape) for each, tensor in tensors.items()}
        return WeightSource(found[0].name, shapes, lambda each: _copy(tensors[each]))

    def fingerprints(self, *, progress: bool = False) -> dict[str, dict[str, Any]]:
        """Return size and sha256 of every file that was opened."""
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
        # An index names files too, and must not lead out of the folder.
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
                raise InputError(str(path), got=error, expected="whole safetensors", fix=COPY_AGAIN) from None

        def read(name: str) -> torch.Tensor:
            # Opened anew each time: what stays mapped would count as memory until the end.
            with safe_open(places[name], "pt") as opened:
                return _copy(opened.get_tensor(name))

        return WeightSource(source, shapes, read)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in memory of its own, which no longer hangs on the file that it was mapped from."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickled file; anything else in it is refused and never run."""
    fix = "Take the file from the release itself; what holds code is never opened."
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise InputError(str(path), got=_first_line(error), expected="tensors and nothing else", fix=fix) from None
    except Exception as error:  # the loader trusts its input: damage surfaces as whatever fails first
        got = f"a damaged file ({_first_line(error)})"
        raise InputError(str(path), got=got, expected="what torch.save wrote", fix=COPY_AGAIN) from None
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    ):
        raise InputError(str(path), got=type(value).__name__, expected="tensors by name", fix=fix)
    return dict(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_zip(path: Path) -> bool:
    """Whether a file is of the kind that can be mapped into memory rather than read."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
