"""A case of attention: its tensors, its mask, its selected blocks, and its reference results."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ....kernels.block_sparse import (
    IntervalLevels,
    causal,
    concatenate_segments,
    coupled,
    full_attention,
    interval_mask,
)
from ....kernels.block_sparse.reference import dense_attention
from ....kernels.plan import (
    AttentionPlan,
    Blocks,
    Selection,
    block_scores,
    build_plan,
    cut_blocks,
    pack_selection,
    pool,
    select_top_k,
    top_k_key_bias,
)
from .shapes import BLOCK, Shape

Tensor = torch.Tensor

BACKWARD_FLOPS, BACKWARD_BYTES = 2.5, 2.2
"""Cost of the backward pass of attention relative to forward: five matrix products for two, and writing gradients."""


class Unavailable(Exception):
    """A contestant cannot run here; the message says why."""


def require_cuda(device: str, why: str = "") -> None:
    """Raise Unavailable unless the device is a GPU."""
    if device != "cuda":
        raise Unavailable(f"needs CUDA{why}")


@dataclass
class PreparedContestant:
    """A contestant, ready to run.

    Attributes:
        leaves: Tensors whose gradients are compared.
        call: Computes the outputs from the leaves.
        output_gradient: Gradients of the outputs, from which the backward pass starts.
        to_reference_layout: Bring each output, then the gradient of each leaf, into the layout of the reference.
        plan: The planning before attention, which is timed separately; None if there is none.
        reference_kind: The reference that it must reproduce, see `Problem`.
        extract_outputs: Extracts the outputs to compare from the result of `call`.
    """

    leaves: tuple[Tensor, ...]
    call: Callable[[], tuple[Tensor, ...]]
    output_gradient: tuple[Tensor, ...]
    to_reference_layout: tuple[Callable[[Tensor], Tensor], ...]
    plan: Callable[[], Any] | None = None
    reference_kind: str = "own"
    extract_outputs: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple


@dataclass(frozen=True)
class MinimumCost:
    """The least cost of a forward and a backward pass.

    Attributes:
        useful: FLOPs of the visible pairs of tokens, forward.
        flops: FLOPs of the tiles that hold a visible pair, forward and backward.
        bytes: Bytes read and written, forward and backward.
        density: Fraction of all pairs that are visible.
        tile_density: Fraction of all pairs that lie in visited tiles.
    """

    useful: float
    flops: tuple[float, float]
    bytes: tuple[float, float]
    density: float = 1.0
    tile_density: float = 1.0


@dataclass
class Problem:
    """A case with its inputs, its reference results and its contestants; every family makes one.

    Attributes:
        shape: The sizes.
        names: Names of the results: outputs, then leaves.
        outputs: Number of outputs among them.
        minimum_cost: Operations and bytes of the case.
        reference_results: Returns outputs and gradients of a reference kind, in float64.
        contestants: Builder of each contestant, by name.
    """

    shape: Shape
    names: tuple[str, ...]
    outputs: int
    minimum_cost: MinimumCost
    reference_results: Callable[[str], list[Tensor]]
    contestants: dict[str, Callable[[], PreparedContestant]] = field(default_factory=dict)


def identity(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged: it already has the layout of the reference."""
    return tensor


class AttentionCase:
    """The packed tensors of a case.

    Attributes:
        query, output_gradient: [Tq, HQ, D].
        key, value: [Tk, HK, D].
        score: Learned score of the keys, [HK, Tk]; None except in the family "bias".
        selects_blocks: Whether each tile of queries selects blocks of keys.
    """

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        generator = torch.Generator().manual_seed(0)
        key_lengths = (shape.keys,) * len(shape.lengths) if shape.keys else shape.lengths
        self.query_bounds = _segment_bounds(shape.lengths)
        self.key_bounds = _segment_bounds(key_lengths)

        def normal(tokens: int, heads: int) -> Tensor:
            return torch.randn(tokens, heads, shape.width, generator=generator)

        queries, keys = self.query_bounds[-1][1], self.key_bounds[-1][1]
        query, key, value = (
            normal(queries, shape.heads),
            normal(keys, shape.key_heads),
            normal(keys, shape.key_heads),
        )
        if shape.family in ("history", "plan"):
            # As in trained models, neighbouring keys are similar and a query matches a few topics.
            topics = torch.randn(16, 1, shape.width, generator=generator)
            topic = torch.randint(16, (2, -(-keys // BLOCK)), generator=generator).repeat_interleave(BLOCK, 1)
            query, key = query + topics[topic[0, :queries]], key + topics[topic[1, :keys]]
        output_gradient, score = normal(queries, shape.heads), torch.randn(shape.key_heads, keys, generator=generator)
        self.query, self.key, self.value, self.output_gradient = (
            part.to(device, dtype) for part in (query, key, value, output_gradient)
        )
        self.score = score.to(device) if shape.family == "bias" else None
        parts = [_levels(shape, length, shape.keys or length) for length in shape.lengths]
        self.levels = IntervalLevels(*(part.to(device) for part in concatenate_segments(parts)))
        self.query_lengths = torch.tensor(shape.lengths, dtype=torch.int32, device=device)
        self.key_lengths = torch.tensor(key_lengths, dtype=torch.int32, device=device)
        self.key_ends = torch.tensor([0, *(stop for _, stop in self.key_bounds)], dtype=torch.int32, device=device)
        self.selects_blocks = shape.family in ("history", "plan") and shape.keep < 1
        self._blocks = cut_blocks(queries, BLOCK, device=device) if self.selects_blocks else None
        self._references: dict[str, list[Tensor]] = {}

    @property
    def blocks(self) -> Blocks:
        """The blocks of the packed tokens."""
        if self._blocks is None:
            raise ValueError(f"blocks: got the family {self.shape.family!r}, expected one that selects blocks")
        return self._blocks

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors whose gradients are compared."""
        return (self.query, self.key, self.value, *(() if self.score is None else (self.score,)))

    @property
    def keep_count(self) -> int:
        """Number of blocks that a tile of queries selects, or of keys that a head keeps."""
        every = (
            -(-(self.shape.lengths[0] - self.shape.slots) // BLOCK) if self.selects_blocks else self.shape.lengths[0]
        )
        return max(1, round(self.shape.keep * every))

    def choose_blocks(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the blocks that each tile of queries selects, boolean [HQ, tiles, blocks].

        A tile selects its own block, and the blocks whose mean key scores highest with its mean query. The slots see
        everything and are seen by everything.
        """
        queries, keys = (pool(part.detach(), self.blocks) for part in (query, key))
        count = self.blocks.max_per_segment
        scores = block_scores(queries[:count], keys, self.blocks, self.blocks.tiles[:count, 2])
        own = torch.eye(count, dtype=torch.bool, device=scores.device)
        visual = torch.arange(count, device=scores.device) < (self.shape.lengths[0] - self.shape.slots) // BLOCK
        ranked = scores.masked_fill(own, torch.finfo(scores.dtype).max).masked_fill(~visual, float("-inf"))
        return select_top_k(ranked, self.keep_count) | ~visual | ~visual[:, None]

    def make_selection(self, query: Tensor, key: Tensor) -> Selection:
        """Return the selection of every token in the packed format of the kernel."""
        return pack_selection(self.choose_blocks(query, key).index_select(1, self.blocks.block_in_segment), self.blocks)

    def plan(self, query: Tensor, key: Tensor) -> AttentionPlan:
        """Return the plan of attention, with the selection where there is one."""
        return build_plan(
            *self.levels,
            query_lengths=self.query_lengths,
            key_lengths=self.key_lengths,
            selection=self.make_selection(query, key) if self.selects_blocks else None,
        )

    def bias(self, score: Tensor) -> Tensor:
        """Return the score of the kept keys, -inf for the others, [HK, Tk]."""
        return top_k_key_bias(score, self.keep_count, self.key_ends)

    def mask(self, sample: int, reference_kind: str = "own") -> Tensor:
        """Return the attention mask of a sample, boolean [1 or HQ, queries, keys]; see `reference_results`."""
        rows, columns = slice(*self.query_bounds[sample]), slice(*self.key_bounds[sample])
        low, high, level = self.levels.low[:, rows], self.levels.high[:, rows], self.levels.level[:, columns]
        visible = interval_mask(low, high, level).all(0)[None]
        if reference_kind == "dense":
            return torch.ones_like(visible)
        if not self.selects_blocks:
            return visible
        if reference_kind == "tokens":
            selected = select_by_token(self)
        else:
            selected = self.choose_blocks(self.query, self.key).index_select(1, self.blocks.block_in_segment)
        return visible & selected.index_select(2, self.blocks.block_in_segment)

    def reference_results(self, reference_kind: str = "own") -> list[Tensor]:
        """Return the output and the gradients of all leaves in float64, from dense attention of one head at a time.

        Args:
            reference_kind: The mask: "own", that of the case; "dense", none within a sample; "tokens", each token
                selects its own blocks.
        """
        if reference_kind not in self._references:
            self._references[reference_kind] = self._compute_reference(reference_kind)
        return self._references[reference_kind]

    def _compute_reference(self, reference_kind: str) -> list[Tensor]:
        shape = self.shape
        results = [torch.zeros_like(part, dtype=torch.float64) for part in (self.output_gradient, *self.leaves)]
        group = shape.heads // shape.key_heads
        for sample, (queries, keys) in enumerate(zip(self.query_bounds, self.key_bounds, strict=True)):
            mask, rows, columns = self.mask(sample, reference_kind), slice(*queries), slice(*keys)
            for head in range(shape.key_heads):
                heads, one = slice(head * group, (head + 1) * group), slice(head, head + 1)
                indices = [(rows, heads), (columns, one), (columns, one)]
                parts = [part[index] for part, index in zip(self.leaves[:3], indices, strict=True)]
                if self.score is not None:
                    indices.append((one, columns))
                    parts.append(self.score[one, columns])
                parts = [part.detach().double().requires_grad_() for part in parts]
                bias = None if self.score is None else self.bias(parts[3])
                head_mask = mask if len(mask) == 1 else mask[heads]
                query, key, value = parts[:3]  # [rows, group, D], [columns, 1, D] twice
                output, _ = dense_attention(query, key, value, head_mask, bias)
                gradients = torch.autograd.grad(output, parts, self.output_gradient[rows, heads].double())
                for result, index, part in zip(results, [(rows, heads), *indices], [output, *gradients], strict=True):
                    result[index] = part.detach()
        return results

    def minimum_cost(self) -> MinimumCost:
        """Return the cost of the case, with the densities counted from its mask and its plan."""
        shape = self.shape
        plan = self.plan(self.query, self.key)
        pairs = sum(length * (shape.keys or length) for length in shape.lengths)
        visible = sum(float(self.mask(sample).float().mean(0).sum()) for sample in range(len(shape.lengths)))
        tiles = float(plan.row_counts.sum()) / plan.row_counts.shape[0] * plan.query_tile * plan.key_tile
        if self.score is not None:
            visible, tiles = (each * self.keep_count / shape.lengths[0] for each in (visible, tiles))
        flops_per_pair = 4.0 * shape.heads * shape.width
        size = self.query.element_size()
        moved = 2.0 * size * (self.query.numel() + self.key.numel())
        visited = min(tiles, float(pairs))
        return MinimumCost(
            useful=flops_per_pair * visible,
            flops=(flops_per_pair * visited, BACKWARD_FLOPS * flops_per_pair * visited),
            bytes=(moved, BACKWARD_BYTES * moved),
            density=visible / pairs,
            tile_density=visited / pairs,
        )


def select_by_token(case: AttentionCase) -> Tensor:
    """Return the blocks that every token selects, its own included, boolean [HQ, Tq, blocks] (as VMoBA does)."""
    means = pool(case.key, case.blocks)
    scores = block_scores(case.query, means, case.blocks, case.blocks.segment)
    own = case.blocks.block_in_segment[:, None] == torch.arange(case.blocks.max_per_segment, device=scores.device)
    return select_top_k(scores.masked_fill(own, torch.finfo(scores.dtype).max), case.keep_count)


def _segment_bounds(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    edges = [0, *itertools.accumulate(lengths)]
    return list(itertools.pairwise(edges))


def _levels(shape: Shape, queries: int, keys: int) -> IntervalLevels:
    if shape.mask == "coupled":
        return coupled(queries - shape.slots, shape.slots)
    if shape.mask == "causal":
        return causal(queries)
    if shape.mask == "prefix":
        level = (torch.arange(queries) >= queries - shape.slots).int()[None]
        return IntervalLevels(torch.zeros_like(level), level, level)
    if shape.mask == "everything":
        return full_attention(queries, keys)
    raise ValueError(f"mask: got {shape.mask!r}, expected coupled, causal, prefix or everything")
