"""The weights of a released folder on their way into ours: read when asked for, each accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from ...errors import InputError


class WeightSource:
    """Named tensors of a file or of several, each read when it is asked for.

    It knows which were claimed for the policy and which are ignored on purpose, so that none is forgotten in silence.
    """

    def __init__(self, source: str, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], torch.Tensor]) -> None:
        self.source = source
        self._shapes, self._read = dict(shapes), read
        self.claimed: set[str] = set()
        self.ignored: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str, dimensions: int | None = None) -> tuple[int, ...]:
        """Return a tensor's shape; raises InputError if there is no such tensor, or not of so many `dimensions`."""
        if name not in self:
            raise tensor_mismatch(self.source, missing=[name])
        shape = self._shapes[name]
        if dimensions not in (None, len(shape)):
            what, fix = f"{name} of {self.source}", "The file is of another method, or damaged: copy it again."
            raise InputError(what, got=f"shape {list(shape)}", expected=f"{dimensions} dimensions", fix=fix)
        return shape

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, in memory of its own."""
        return self._read(name)

    def ignore(self, pattern: str, reason: str) -> None:
        """Leave out the tensors, as yet unclaimed, whose names a regular expression matches from their start on."""
        for name in self:
            if name not in self.claimed and re.match(pattern, name):
                self.ignored.setdefault(name, reason)

    def unexpected(self) -> list[str]:
        """Return the names that are neither claimed nor ignored."""
        return sorted(set(self) - self.claimed - set(self.ignored))


class Conversion:
    """Which tensors of a folder become which of ours; read and written out once all are known to be there."""

    def __init__(self) -> None:
        self._conversions: dict[str, tuple[list[tuple[WeightSource, str]], Callable[..., torch.Tensor]]] = {}

    def add(
        self, target: str, *sources: tuple[WeightSource, str], make: Callable[..., torch.Tensor] = lambda weight: weight
    ) -> None:
        """Make our tensor `target` out of some of theirs, each given as where it is and its name; one is copied."""
        for weights, name in sources:
            weights.claimed.add(name)
        self._conversions[target] = (list(sources), make)

    def run(
        self, files: Iterable[WeightSource], wanted: Mapping[str, torch.Tensor], *, progress: bool
    ) -> dict[str, torch.Tensor]:
        """Return our tensors by name; `wanted` are the network's own, of which the shapes count.

        Raises InputError, before anything is read, that lists what the folder lacks, and what of its `files` is neither
        used nor ignored; and for a tensor of a shape that the network does not have.
        """
        from tqdm import tqdm

        files = list(files)
        for weights in files:
            missing = sorted(weights.claimed - set(weights))
            if missing or weights.unexpected():
                raise tensor_mismatch(weights.source, missing=missing, unexpected=weights.unexpected())
        missing_targets, unknown = (
            sorted(set(wanted) - set(self._conversions)),
            sorted(set(self._conversions) - set(wanted)),
        )
        if missing_targets or unknown:
            raise tensor_mismatch("the released folder", missing=missing_targets, unexpected=unknown)
        converted = {}
        for target, (sources, make) in tqdm(
            self._conversions.items(), desc="converting", unit="tensor", disable=not progress, leave=False
        ):
            parts = [weights.read(name) for weights, name in sources]
            try:
                tensor = make(*parts)
            except (RuntimeError, IndexError) as error:
                raise InputError(
                    ", ".join(name for _, name in sources),
                    got=f"shapes {', '.join(str(list(part.shape)) for part in parts)}",
                    expected=f"what makes {list(wanted[target].shape)} together",
                    fix="Files of several checkpoints are mixed: copy the folder again.",
                ) from error
            if tensor.shape != wanted[target].shape:
                raise InputError(
                    sources[0][1] if sources else target,
                    got=f"shape {list(tensor.shape)}",
                    expected=f"{list(wanted[target].shape)}, as config.json and the other tensors have it",
                    fix="Files of several checkpoints are mixed: copy the folder again.",
                )
            converted[target] = tensor
        return converted


def with_adapter(
    base: WeightSource, adapter: WeightSource, trained: WeightSource | None, lora_scaling: float
) -> WeightSource:
    """Return a model's weights with an adapter folded in, and with those `trained` as a whole in place of the base's.

    Which of the adapter's factors belong to no tensor of the model is left to the caller to ignore or refuse.
    """
    trained_names = set(trained) if trained is not None else set()
    factors = {}
    for name in base:
        pair = [f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight" for side in "AB"]
        if name.endswith(".weight") and all(each in adapter for each in pair):
            factors[name] = pair
            adapter.claimed.update(pair)
    if trained is not None:
        trained.claimed |= trained_names

    def read(name: str) -> torch.Tensor:
        if trained is not None and name in trained_names:
            return trained.read(name)
        weight = base.read(name)
        if name not in factors:
            return weight
        return merge_lora(weight, *(adapter.read(each) for each in factors[name]), lora_scaling).to(weight.dtype)

    shapes = {name: base.shape(name) for name in base}
    if trained is not None:
        shapes |= {name: trained.shape(name) for name in trained}
    return WeightSource(f"{base.source} with its adapter", shapes, read)


def merge_lora(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, lora_scaling: float) -> torch.Tensor:
    """Return a weight with the product of its adapter's two factors added, in float32; convolutions too.

    Raises InputError for factors of another weight.
    """
    down, up = down.flatten(1), up.flatten(1)
    if up.shape[1] != down.shape[0] or up.shape[0] * down.shape[1] != weight.numel():
        shapes = " and ".join(str(list(each.shape)) for each in (up, down))
        raise InputError(
            "adapter factors",
            got=shapes,
            expected=f"those of a weight of {list(weight.shape)}",
            fix="Adapter and model are not of one training: give the model that was adapted.",
        )
    return weight.float() + lora_scaling * (up.float() @ down.float()).view_as(weight)


def tensor_mismatch(source: str, *, missing: Iterable[str] = (), unexpected: Iterable[str] = ()) -> InputError:
    """Return the error for tensors that a source lacks or that it should not have."""
    problems = (("missing", sorted(missing)), ("left over", sorted(unexpected)))
    return InputError(
        f"tensors of {source}",
        got="; ".join(f"{len(names)} {what}: {_first_names(names)}" for what, names in problems if names),
        expected="every tensor of this layout and no other",
        fix="The folder is of another method, or its files are of several checkpoints: see --layout, or copy it again.",
    )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
