"""Convert released weights to the network's: read on request, with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from ...errors import InputError


class WeightSource:
    """Named tensors of one or several files, each read on request.

    It records which tensors are used and which are ignored on purpose, so that none is lost silently.

    Attributes:
        source: Name of the files, for errors.
        claimed: Names of the tensors that are used.
        ignored: Names of the tensors that are ignored, with the reason.
    """

    def __init__(self, source: str, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], torch.Tensor]) -> None:
        """Describe the tensors.

        Args:
            source: Name of the files, for errors.
            shapes: Shape of every tensor.
            read: Returns a tensor by name.
        """
        self.source = source
        self._shapes, self._read = dict(shapes), read
        self.claimed: set[str] = set()
        self.ignored: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str, dimensions: int | None = None) -> tuple[int, ...]:
        """Return the shape of a tensor; raises InputError if it is missing or has not so many `dimensions`."""
        if name not in self:
            raise tensor_mismatch(self.source, missing=[name])
        shape = self._shapes[name]
        if dimensions not in (None, len(shape)):
            what, fix = f"{name} of {self.source}", "Copy the file again: it is damaged, or of another method."
            raise InputError(what, got=f"shape {list(shape)}", expected=f"{dimensions} dimensions", fix=fix)
        return shape

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a tensor."""
        return self._read(name)

    def ignore(self, pattern: str, reason: str) -> None:
        """Ignore the unclaimed tensors whose names begin with a match of the regular expression `pattern`."""
        for name in self:
            if name not in self.claimed and re.match(pattern, name):
                self.ignored.setdefault(name, reason)

    def unexpected(self) -> list[str]:
        """Return the names of tensors that are neither claimed nor ignored."""
        return sorted(set(self) - self.claimed - set(self.ignored))


class Conversion:
    """A map from released tensors to the network's; nothing is read before the map is known to be complete."""

    def __init__(self) -> None:
        self._conversions: dict[str, tuple[list[tuple[WeightSource, str]], Callable[..., torch.Tensor]]] = {}

    def add(
        self, target: str, *sources: tuple[WeightSource, str], make: Callable[..., torch.Tensor] = lambda weight: weight
    ) -> None:
        """Add a tensor of the network.

        Args:
            target: Its name in the network.
            sources: The released tensors that it is made of, each as (weights, name).
            make: Makes it from the released tensors; the default copies a single one.
        """
        for weights, name in sources:
            weights.claimed.add(name)
        self._conversions[target] = (list(sources), make)

    def run(
        self, files: Iterable[WeightSource], wanted: Mapping[str, torch.Tensor], *, progress: bool
    ) -> dict[str, torch.Tensor]:
        """Convert all tensors and return them by their names in the network.

        Args:
            files: All released weights.
            wanted: The network's state dict; only names and shapes are used.
            progress: Show a progress bar.

        Raises:
            InputError: Tensors are missing, or neither used nor ignored (checked before anything is read), or a tensor
                has another shape than in the network.
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
                    expected=f"shapes that give {list(wanted[target].shape)}",
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
    """Return the weights of a base model with a LoRA adapter merged into them.

    Factors that belong to no tensor of the model stay unclaimed: the caller ignores them, or the conversion fails.

    Args:
        base: Weights of the base model.
        adapter: LoRA factors.
        trained: Fully trained tensors that replace those of the base model.
        lora_scaling: Scaling of the LoRA product.
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
        down, up = (adapter.read(each) for each in factors[name])
        return merge_lora(weight, down, up, lora_scaling).to(weight.dtype)

    shapes = {name: base.shape(name) for name in base}
    if trained is not None:
        shapes |= {name: trained.shape(name) for name in trained}
    return WeightSource(f"{base.source} with its adapter", shapes, read)


def merge_lora(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, lora_scaling: float) -> torch.Tensor:
    """Return weight + scaling * up @ down in float32 (Hu et al., "LoRA", 2022, section 4.1); convolutions too.

    Args:
        weight: [m, n], or [m, channels, height, width] of a convolution.
        down: Factor A, [r, n], or [r, channels, height, width].
        up: Factor B, [m, r], or [m, r, 1, 1].
        lora_scaling: alpha / r.

    Raises:
        InputError: The factors belong to another weight.
    """
    down, up = down.flatten(1), up.flatten(1)  # [r, n], [m, r]
    if up.shape[1] != down.shape[0] or up.shape[0] * down.shape[1] != weight.numel():
        shapes = " and ".join(str(list(each.shape)) for each in (up, down))
        raise InputError(
            "adapter factors",
            got=shapes,
            expected=f"factors of a weight {list(weight.shape)}",
            fix="Give the base model that the adapter was trained on.",
        )
    return weight.float() + lora_scaling * (up.float() @ down.float()).view_as(weight)


def tensor_mismatch(source: str, *, missing: Iterable[str] = (), unexpected: Iterable[str] = ()) -> InputError:
    """Return the error for missing and unexpected tensors of a source."""
    problems = (("missing", sorted(missing)), ("left over", sorted(unexpected)))
    return InputError(
        f"tensors of {source}",
        got="; ".join(f"{len(names)} {what}: {_first_names(names)}" for what, names in problems if names),
        expected="every tensor of this layout and no other",
        fix="Check --layout, or copy the folder again: its files may come from several checkpoints.",
    )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
