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
"""What a backward pass of attention costs, relative to forward: five products for two, and the gradients to write."""


class Unavailable(Exception):
    """A contestant cannot run here; the message says why."""


def require_cuda(device: str, why: str = "") -> None:
    """Raise Unavailable anywhere but on a GPU."""
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
        read: Extracts the outputs to compare from the result of `call`.
    """

    leaves: tuple[Tensor, ...]
    call: Callable[[], tuple[Tensor, ...]]
    output_gradient: tuple[Tensor, ...]
    to_reference_layout: tuple[Callable[[Tensor], Tensor], ...]
    plan: Callable[[], Any] | None = None
    reference_kind: str = "own"
    read: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple


@dataclass(frozen=True)
class MinimumCost:
    """The least cost of a forward and a backward pass: operations and bytes.

    `useful`: operations of pairs of tokens that see each other; `flops`: of the tiles that hold any.
    `density`: the share of all pairs; `tile_density`: of all pairs in the tiles that are visited.
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
    """Return what is in the right form already."""
    return tensor


class AttentionCase:
    """The tensors of a case, packed: query and above [Tq, HQ, D], key and value [Tk, HK, D], score [HK, Tk]."""

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
            # Neighbours resemble each other and a query seeks a few topics, as what is learned does.
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
        self.blocks = cut_blocks(queries, BLOCK, device=device) if self.selects_blocks else None
        self._references: dict[str, list[Tensor]] = {}

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Return what gradients are taken of."""
        return (self.query, self.key, self.value, *(() if self.score is None else (self.score,)))

    @property
    def kept(self) -> int:
        """Return how many blocks a tile of queries chooses, or keys a head."""
        every = (
            -(-(self.shape.lengths[0] - self.shape.slots) // BLOCK) if self.selects_blocks else self.shape.lengths[0]
        )
        return max(1, round(self.shape.keep * every))

    def choose_blocks(self, query: Tensor, key: Tensor) -> Tensor:
        """Return which blocks each tile of queries chose, boolean [HQ, tiles, blocks].

        Its own block, and those whose mean key fits its mean query best; the slots are seen by and see everything.
        """
        queries, keys = (pool(part.detach(), self.blocks) for part in (query, key))
        count = self.blocks.max_per_segment
        scores = block_scores(queries[:count], keys, self.blocks, self.blocks.tiles[:count, 2])
        own = torch.eye(count, dtype=torch.bool, device=scores.device)
        visual = torch.arange(count, device=scores.device) < (self.shape.lengths[0] - self.shape.slots) // BLOCK
        ranked = scores.masked_fill(own, torch.finfo(scores.dtype).max).masked_fill(~visual, float("-inf"))
        return select_top_k(ranked, self.kept) | ~visual | ~visual[:, None]

    def make_selection(self, query: Tensor, key: Tensor) -> Selection:
        """Return the choice of every token, as attention takes it."""
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
        """Return the score of the keys that stay, -inf for the others, [HK, Tk]."""
        return top_k_key_bias(score, self.kept, self.key_ends)

    def mask(self, sample: int, reference_kind: str = "own") -> Tensor:
        """Return the attention mask of a sample, boolean [1 or HQ, queries, keys]; see `reference_results`."""
        rows, columns = slice(*self.query_bounds[sample]), slice(*self.key_bounds[sample])
        low, high, level = self.levels.low[:, rows], self.levels.high[:, rows], self.levels.level[:, columns]
        seen = interval_mask(low, high, level).all(0)[None]
        if reference_kind == "dense":
            return torch.ones_like(seen)
        if not self.selects_blocks:
            return seen
        if reference_kind == "tokens":
            chosen = choose_by_token(self)
        else:
            chosen = self.choose_blocks(self.query, self.key).index_select(1, self.blocks.block_in_segment)
        return seen & chosen.index_select(2, self.blocks.block_in_segment)

    def reference_results(self, reference_kind: str = "own") -> list[Tensor]:
        """Return the output and the gradients of all leaves in float64, by dense attention head by head.

        Args:
            reference_kind: The mask: "own", that of the case; "dense", none within a sample; "tokens", each token
                selects its own blocks.
        """
        if reference_kind not in self._references:
            self._references[reference_kind] = self._compute_reference(reference_kind)
        return self._references[reference_kind]

    def _compute_reference(self, reference_kind: str) -> list[Tensor]:
        shape = self.shape
        found = [torch.zeros_like(part, dtype=torch.float64) for part in (self.output_gradient, *self.leaves)]
        group = shape.heads // shape.key_heads
        for sample, (rows, columns) in enumerate(zip(self.query_bounds, self.key_bounds, strict=True)):
            mask, rows, columns = self.mask(sample, reference_kind), slice(*rows), slice(*columns)
            for head in range(shape.key_heads):
                heads, one = slice(head * group, (head + 1) * group), slice(head, head + 1)
                places = [(rows, heads), (columns, one), (columns, one)]
                parts = [part[place] for part, place in zip(self.leaves[:3], places, strict=True)]
                if self.score is not None:
                    places.append((one, columns))
                    parts.append(self.score[one, columns])
                parts = [part.detach().double().requires_grad_() for part in parts]
                bias = None if self.score is None else self.bias(parts[3])
                own = mask if len(mask) == 1 else mask[heads]
                output, _ = dense_attention(*parts[:3], own, bias)
                gradients = torch.autograd.grad(output, parts, self.output_gradient[rows, heads].double())
                for whole, place, part in zip(found, [(rows, heads), *places], [output, *gradients], strict=True):
                    whole[place] = part.detach()
        return found

    def minimum_cost(self) -> MinimumCost:
        """Return what the case costs, with the densities of its mask counted."""
        shape = self.shape
        plan = self.plan(self.query, self.key)
        pairs = sum(length * (shape.keys or length) for length in shape.lengths)
        seen = sum(float(self.mask(sample).float().mean(0).sum()) for sample in range(len(shape.lengths)))
        tiles = float(plan.row_counts.sum()) / plan.row_counts.shape[0] * plan.query_tile * plan.key_tile
        if self.score is not None:
            seen, tiles = (each * self.kept / shape.lengths[0] for each in (seen, tiles))
        each = 4.0 * shape.heads * shape.width
        size = self.query.element_size()
        moved = 2.0 * size * (self.query.numel() + self.key.numel())
        visited = min(tiles, float(pairs))
        return MinimumCost(
            useful=each * seen,
            flops=(each * visited, BACKWARD_FLOPS * each * visited),
            bytes=(moved, BACKWARD_BYTES * moved),
            density=seen / pairs,
            tile_density=visited / pairs,
        )


def choose_by_token(case: AttentionCase) -> Tensor:
    """Return the blocks that every token chose for itself, its own among them, boolean [HQ, Tq, blocks] (VMoBA)."""
    means = pool(case.key, case.blocks)
    scores = block_scores(case.query, means, case.blocks, case.blocks.segment)
    own = case.blocks.block_in_segment[:, None] == torch.arange(case.blocks.max_per_segment, device=scores.device)
    return select_top_k(scores.masked_fill(own, torch.finfo(scores.dtype).max), case.kept)


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
