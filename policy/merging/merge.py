"""Merging skills into one checkpoint: weight by weight, so that little more than one policy is in memory.

What leaves is an ordinary checkpoint folder. Its weights are those of the shared beginning; beside them lie, for every
weight that the skills changed, the merged change, and for every skill what it takes of it and what it keeps of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from ...errors import InputError, unknown_name
from ..checkpoint.contents import PREFIX
from ..pretrained.adaptation import EXPERT_PREFIX
from .digests import weights_digest
from .explain import WeightReport, compare, compare_factored
from .masks import consensus, least_squares_scale, pack_bits, task_mask
from .merged import (
    DELTA_PREFIX,
    FACTOR_BITS,
    FACTOR_PARTS,
    FACTOR_PREFIX,
    MASK_PREFIX,
    OWN_PREFIX,
    SCALE_PREFIX,
    STEP_PREFIX,
    SWITCHES,
)
from .operators.emr import rescaler, sign_agreement
from .operators.methods import METHODS, MergeOptions
from .operators.task_vector import TaskVector
from .operators.ties import trim_threshold
from .quantisation import BIT_CHOICES, dequantise, quantise
from .router import Router
from .skills import SkillCheckpoint, check_compatible

MERGE_CHOICES = ("nothing", "expert", "all")


@dataclass(frozen=True)
class StorageOptions:
    """What of a merge is shared, and how it is kept; raises InputError for values out of range."""

    merge: str = "nothing"
    """Which of the skills' changes become one, of which each takes its part: "nothing", where each keeps factors of all
    of them, "expert", where it keeps those that it has learned, or "all", as MergeVLA does."""
    keep_blocks: int = 2
    """Last blocks of the expert that stay every skill's own, with all that follows them; MergeVLA keeps 1 to 3."""
    bits: int = 8
    """Bits of an entry of the merged change, 8 or 4."""
    switch: str = "instruction"
    """When the policy looks for its skill: at a new "instruction" or episode, or before every "chunk"."""
    margin: float = 0.5
    """Least difference between the two most likely skills; below it the policy abstains."""
    reach: float = 1.5
    """How far from what is usual an observation may be, as a multiple; beyond it the policy abstains."""

    def __post_init__(self) -> None:
        if self.merge not in MERGE_CHOICES:
            raise unknown_name("merge", self.merge, MERGE_CHOICES)
        if self.keep_blocks < 0:
            raise InputError("keep_blocks", got=self.keep_blocks, expected="0 or more", fix="2 is usual.")
        if self.bits not in BIT_CHOICES:
            raise InputError("bits", got=self.bits, expected=" or ".join(map(str, BIT_CHOICES)), fix="8 is usual.")
        if self.switch not in SWITCHES:
            raise InputError("switch", got=self.switch, expected=" or ".join(SWITCHES), fix="Choose one of them.")


@dataclass
class MergeResult:
    """What a merge gave: the checkpoint's `tensors`, what `skills.json` says, and, explained, each weight's report."""

    tensors: dict[str, torch.Tensor]
    table: dict[str, Any]
    report: list[WeightReport] = field(default_factory=list)


def merge_skills(
    skills: Sequence[SkillCheckpoint],
    base_weights: Mapping[str, torch.Tensor],
    options: MergeOptions,
    storage: StorageOptions,
    *,
    explain: bool = False,
    progress: Any = iter,
) -> MergeResult:
    """Merge K skills; `base_weights` are the weights of what they began as, by their names in the network.

    With `explain` the report is made, which takes longer than merging. `progress` wraps what is looped over, as tqdm
    does. Raises InputError for skills that do not belong together, a `base_weights` that is not theirs, and numbers that
    are not finite.
    """
    check_compatible(skills)
    _check_base(base_weights, skills)
    deltas = SkillDeltas(skills, base_weights)
    own, matrices = split_expert(skills[0], storage.keep_blocks)
    factored_names = skills[0].factored
    kept_as_factors, names = {
        "nothing": ([*factored_names, *matrices], []),
        "expert": (factored_names, matrices),
        "all": ([], [*factored_names, *matrices]),
    }[storage.merge]
    tensors = {PREFIX + name: tensor for name, tensor in base_weights.items()}
    for number, skill in enumerate(skills):
        tensors |= {f"{OWN_PREFIX}{number}.{name}": _finite_weight(skill, name) for name in own}
    report, ranks, full_matrices = [], {}, set(matrices)
    for name in progress(kept_as_factors) if kept_as_factors else ():
        vectors = deltas.task_vectors(name)
        truncated_vectors = vectors
        if name in full_matrices:
            truncated_vectors = [vector.truncate(equal_storage_rank(vector.shape, len(skills))) for vector in vectors]
        ranks[name] = [vector.rank for vector in truncated_vectors]
        for number, vector in enumerate(truncated_vectors):
            tensors |= {
                f"{FACTOR_PREFIX}{number}.{part}.{name}": each for part, each in _quantise_factors(vector).items()
            }
        if explain:
            report.append(compare_factored(name, vectors, truncated_vectors))
    method = METHODS[options.method]
    thresholds = None
    if names and method.trims and options.keep < 1:
        thresholds = [
            trim_threshold(partial(deltas.dense, names, number), options.keep) for number in range(len(skills))
        ]
    skill_masks = SkillMasks(options, len(skills))
    for name in progress(names) if names else ():
        vectors = deltas.task_vectors(name)
        merged = options.scale * method.merge(vectors, options, thresholds, name)
        dense = [vector.dense() for vector in vectors]
        if options.mask_kind == "consensus":
            merged = merged * skill_masks.consensus(dense, merged)
        entries, steps = quantise(merged, storage.bits)
        tensors[DELTA_PREFIX + name], tensors[STEP_PREFIX + name] = entries, steps
        # What is stored is what is masked and scaled, its rounding included.
        merged = dequantise(entries, steps, merged.shape, storage.bits)
        masks, scales = skill_masks.masks_and_scales(dense, merged)
        if skill_masks.own:
            tensors |= {f"{MASK_PREFIX}{number}.{name}": pack_bits(mask) for number, mask in enumerate(masks)}
        tensors[SCALE_PREFIX + name] = torch.tensor(scales)
        if explain:
            report.append(compare(name, vectors, dense, merged, masks, scales))
    if options.mask_kind == "agreement":
        tensors |= {SCALE_PREFIX + name: torch.tensor(skill_masks.rescalers()) for name in names}
    profiles = [skill.profile() for skill in skills]
    router = Router.fit(profiles, margin=storage.margin, reach=storage.reach)
    table = {
        "names": [skill.name for skill in skills],
        "normalization": [asdict(skill.contract.normalization) for skill in skills],
        "changed": names,
        "factored": ranks,
        "own": own,
        "bits": storage.bits,
        "masked": skill_masks.own,
        "switch": storage.switch,
        "router": router.settings(),
        "options": asdict(options)
        | {"masks": options.mask_kind, "keep_blocks": storage.keep_blocks, "merge": storage.merge},
    }
    return MergeResult(tensors | router.tensors(), table, report)


def equal_storage_rank(shape: tuple[int, int], skills: int) -> int:
    """Return the rank whose factors of a weight [m, n] take the room that a mask and a share of a merge would take.

    A mask takes mn / 8 bytes, a merged change of 8 bits an entry mn / K for each of K skills, factors r (m + n).
    """
    rows, columns = shape
    return max(1, int(rows * columns * (1 / skills + 1 / 8) / (rows + columns)))


def _quantise_factors(vector: TaskVector) -> dict[str, torch.Tensor]:
    """Return a skill's factors in few bits; both get the same share of the change, so that neither loses more."""
    left, values, right = vector.svd()
    root = values.sqrt()
    up, up_step = quantise(left * root, FACTOR_BITS)
    down, down_step = quantise(root[:, None] * right, FACTOR_BITS)
    return dict(zip(FACTOR_PARTS, (up, up_step, down, down_step), strict=True))


class SkillDeltas:
    """The skills' changes of a weight, from the factors, or for the expert's matrices from what they began as."""

    def __init__(self, skills: Sequence[SkillCheckpoint], base_weights: Mapping[str, torch.Tensor]) -> None:
        self._skills, self._base_weights = skills, base_weights
        self._factored = set(skills[0].factored)

    def task_vectors(self, name: str) -> list[TaskVector]:
        """Return every skill's change of a weight, as a matrix of its outputs; raises InputError if one diverged."""
        return [self._delta(name, skill) for skill in self._skills]

    def dense(self, names: Iterable[str], number: int) -> Iterable[torch.Tensor]:
        """Yield one skill's changes of the weights, one after another."""
        return (self._delta(name, self._skills[number]).dense() for name in names)

    def _delta(self, name: str, skill: SkillCheckpoint) -> TaskVector:
        if name in self._factored:
            return skill.delta(name)
        return TaskVector.from_delta(
            (_finite_weight(skill, name).float() - self._base_weights[name].float()).flatten(1)
        )


class SkillMasks:
    """What every skill takes of a merged change, and the scale of what it takes, by the kind of masks."""

    def __init__(self, options: MergeOptions, count: int) -> None:
        self._options, self._kind = options, options.mask_kind
        self.own = self._kind in ("task", "agreement")
        """Whether each skill has masks of its own."""
        self._magnitudes = [[0.0, 0.0] for _ in range(count)]

    def masks_and_scales(
        self, deltas: Sequence[torch.Tensor], merged: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[float]]:
        """Return a mask [m, n] and a scale for each of the skills' changes [m, n]."""
        if self._kind == "task":
            masks = [task_mask(delta, merged, self._options.strictness) for delta in deltas]
            return masks, [least_squares_scale(delta, mask * merged) for delta, mask in zip(deltas, masks, strict=True)]
        if self._kind == "agreement":
            masks = [sign_agreement(delta, merged) for delta in deltas]
            for sums, delta, mask in zip(self._magnitudes, deltas, masks, strict=True):
                sums[0] += delta.abs().mean().item()
                sums[1] += (mask * merged).abs().mean().item()
            return masks, self.rescalers()
        return [torch.ones_like(merged, dtype=torch.bool)] * len(deltas), [1.0] * len(deltas)

    def consensus(self, deltas: Sequence[torch.Tensor], merged: torch.Tensor) -> torch.Tensor:
        """Return the entries that two skills or more would take."""
        return consensus([task_mask(delta, merged, self._options.strictness) for delta in deltas])

    def rescalers(self) -> list[float]:
        """Return EMR's scale of each skill, from all weights so far: one for all weights."""
        return [rescaler(own, masked) for own, masked in self._magnitudes]


def split_expert(skill: SkillCheckpoint, keep_blocks: int) -> tuple[list[str], list[str]]:
    """Return the expert's tensors that stay every skill's own, and its matrices that are merged.

    Norms, biases and gates of merged blocks are few numbers, and stay with their skill. Raises InputError where all
    blocks would be kept: nothing of the expert was merged then.
    """
    names = sorted(name for name in skill.unadapted_names if name.startswith(EXPERT_PREFIX))
    blocks = {int(found.group(1)) for name in names if (found := re.match(r"expert\.blocks\.(\d+)\.", name))}
    if keep_blocks > len(blocks):
        raise InputError(
            "keep_blocks", got=keep_blocks, expected=f"at most the expert's {len(blocks)} blocks", fix="2 is usual."
        )
    merged = set(sorted(blocks)[: len(blocks) - keep_blocks])
    matrices = [
        name
        for name in names
        if (found := re.match(r"expert\.blocks\.(\d+)\.", name))
        and int(found.group(1)) in merged
        and skill.weight(name).ndim >= 2
    ]
    return sorted(set(names) - set(matrices)), matrices


def _check_base(base_weights: Mapping[str, torch.Tensor], skills: Sequence[SkillCheckpoint]) -> None:
    digest = weights_digest(base_weights)
    if digest != skills[0].base_digests["weights"]:
        raise InputError(
            "init",
            got=f"weights with sha256 {digest[:12]}",
            expected=f"{skills[0].base_digests['weights'][:12]}, those of {skills[0].init}, which the skills began as",
            fix="Give the checkpoint that they were trained from with --init.",
        )


def _finite_weight(skill: SkillCheckpoint, name: str) -> torch.Tensor:
    tensor = skill.weight(name)
    if not tensor.isfinite().all():
        raise InputError(
            f"skill {skill.name}: {name}",
            got="a number that is not finite",
            expected="finite numbers",
            fix="This skill's training has diverged: train it again.",
        )
    return tensor
