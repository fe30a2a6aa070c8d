"""Merge skills into one checkpoint, weight by weight, so that the memory holds little more than one policy.

The result is an ordinary checkpoint folder. It holds the base weights; for every weight that the skills changed, the
merged change with a mask and a scale for each skill, or LoRA factors of each skill; and tensors that each skill keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from ...errors import InputError, unknown_name
from ...ranges import require_at_least
from ..checkpoint.contents import MODEL_PREFIX
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
    """Which changes are merged and how they are stored; raises InputError for values out of range."""

    merge: str = "nothing"
    """Which changes are merged: "nothing" (every skill keeps factors of all its changes), "expert" (every skill keeps
    its LoRA factors; the first expert blocks are merged), or "all", as in MergeVLA."""
    keep_blocks: int = 2
    """Last expert blocks that are not merged and are kept per skill, with norm and head; MergeVLA keeps 1 to 3."""
    bits: int = 8
    """Quantisation of the merged change, 8 or 4 bits per entry."""
    switch: str = "instruction"
    """When the router selects the skill: at a new "instruction" or episode, or before every "chunk"."""
    margin: float = 0.5
    """Minimum difference in probability between the two most likely skills. Below it the policy abstains."""
    reach: float = 1.5
    """Maximum distance of an observation from the demonstrations, as a multiple of the usual one. Above it the policy
    abstains."""

    def __post_init__(self) -> None:
        if self.merge not in MERGE_CHOICES:
            raise unknown_name("merge", self.merge, MERGE_CHOICES)
        require_at_least(self, 0, "keep_blocks", fix="Use 2.")
        if self.bits not in BIT_CHOICES:
            raise InputError("bits", got=self.bits, expected=" or ".join(map(str, BIT_CHOICES)), fix="Use 8.")
        if self.switch not in SWITCHES:
            raise InputError("switch", got=self.switch, expected=" or ".join(SWITCHES), fix="Use instruction.")


@dataclass
class MergeResult:
    """The result of a merge.

    Attributes:
        tensors: The tensors of the checkpoint.
        table: Content of `skills.json`.
        report: A report of each weight, if it was asked for.
    """

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
    """Merge K skills.

    Args:
        skills: The skills.
        base_weights: Weights of their base checkpoint, by their names in the network.
        options: Method and masks.
        storage: Which changes are merged, and how they are stored.
        explain: Make the report, which takes longer than merging.
        progress: Wraps the loops over weights, as tqdm does.

    Raises:
        InputError: The skills cannot be merged, `base_weights` are not theirs, or a value is not finite.
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
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in base_weights.items()}
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
        # Masks and scales are fitted to the stored change, with its rounding error.
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
    """Return the rank at which factors of a weight [m, n] need as many bytes as a mask and a share of a merged change.

    A mask needs m n / 8 bytes, a merged change with 8 bits an entry m n / K for each of K skills, factors r (m + n).
    """
    rows, columns = shape
    return max(1, int(rows * columns * (1 / skills + 1 / 8) / (rows + columns)))


def _quantise_factors(vector: TaskVector) -> dict[str, torch.Tensor]:
    """Return the quantised factors of a task vector, with the same scale, so that neither loses more by rounding."""
    left, values, right = vector.svd()  # [m, r], [r], [r, n]
    root = values.sqrt()
    up, up_step = quantise(left * root, FACTOR_BITS)
    down, down_step = quantise(root[:, None] * right, FACTOR_BITS)
    return dict(zip(FACTOR_PARTS, (up, up_step, down, down_step), strict=True))


class SkillDeltas:
    """The task vectors of the skills: from LoRA factors, or for the expert from the difference to the base weights."""

    def __init__(self, skills: Sequence[SkillCheckpoint], base_weights: Mapping[str, torch.Tensor]) -> None:
        self._skills, self._base_weights = skills, base_weights
        self._factored = set(skills[0].factored)

    def task_vectors(self, name: str) -> list[TaskVector]:
        """Return the task vector [m, n] of each skill for a weight; raises InputError if a value is not finite."""
        return [self._delta(name, skill) for skill in self._skills]

    def dense(self, names: Iterable[str], number: int) -> Iterable[torch.Tensor]:
        """Yield the changes of skill `number`, one weight after another."""
        return (self._delta(name, self._skills[number]).dense() for name in names)

    def _delta(self, name: str, skill: SkillCheckpoint) -> TaskVector:
        if name in self._factored:
            return skill.delta(name)
        return TaskVector.from_delta(
            (_finite_weight(skill, name).float() - self._base_weights[name].float()).flatten(1)
        )


class SkillMasks:
    """Computes masks and scales of a merged change for each skill.

    Attributes:
        own: Whether each skill has its own masks.
    """

    def __init__(self, options: MergeOptions, count: int) -> None:
        self._options, self._kind = options, options.mask_kind
        self.own = self._kind in ("task", "agreement")
        self._magnitudes = [[0.0, 0.0] for _ in range(count)]

    def masks_and_scales(
        self, deltas: Sequence[torch.Tensor], merged: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[float]]:
        """Return a mask [m, n] and a scale for each skill.

        Args:
            deltas: Change of the weight by each of K skills, each [m, n].
            merged: Merged change, [m, n].
        """
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
        """Return where two or more skills would use the merged change, boolean [m, n]."""
        return consensus([task_mask(delta, merged, self._options.strictness) for delta in deltas])

    def rescalers(self) -> list[float]:
        """Return EMR's scale of each skill, from all weights so far."""
        return [rescaler(own, masked) for own, masked in self._magnitudes]


def split_expert(skill: SkillCheckpoint, keep_blocks: int) -> tuple[list[str], list[str]]:
    """Split the expert's tensors into those that each skill keeps and the matrices that are merged.

    Norms, biases and gates of merged blocks are small, so each skill keeps its own.

    Args:
        skill: Any of the skills.
        keep_blocks: Last blocks of the expert that each skill keeps.

    Returns:
        Names of the kept tensors, and names of the merged matrices.

    Raises:
        InputError: The expert has fewer than `keep_blocks` blocks.
    """
    names = sorted(name for name in skill.unadapted_names if name.startswith(EXPERT_PREFIX))
    blocks = {int(found.group(1)) for name in names if (found := re.match(r"expert\.blocks\.(\d+)\.", name))}
    if keep_blocks > len(blocks):
        raise InputError(
            "keep_blocks", got=keep_blocks, expected=f"at most the expert's {len(blocks)} blocks", fix="Use 2."
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
            expected=f"{skills[0].base_digests['weights'][:12]}, those of the base checkpoint {skills[0].init}",
            fix="Give the checkpoint that they were fine-tuned from with --init.",
        )


def _finite_weight(skill: SkillCheckpoint, name: str) -> torch.Tensor:
    tensor = skill.weight(name)
    if not tensor.isfinite().all():
        raise InputError(
            f"skill {skill.name}: {name}",
            got="a number that is not finite",
            expected="finite numbers",
            fix="Train the skill again: its training diverged.",
        )
    return tensor
