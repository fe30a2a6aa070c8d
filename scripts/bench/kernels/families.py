"""The cases of `saccade bench kernels` that are no attention: plans, linear attention, and gathering with norm."""

from __future__ import annotations

import torch
from torch.nn import functional

from ....kernels.gather_norm_film import gather_norm_film
from ....kernels.gather_norm_film.reference import gather_norm_film_reference
from ....kernels.linear_attention import alibi_log_decays, linear_attention
from ....kernels.plan import AttentionPlan, build_plan
from .contestants import attention_problem, make_leaves, sdpa_padded
from .problem import AttentionCase, MinimumCost, PreparedContestant, Problem, identity, require_cuda
from .rows import OURS, OURS_BLOCKS_GIVEN, SDPA_CAUSAL, TORCH_COMPILED, TORCH_EAGER
from .shapes import BLOCK, Shape

Tensor = torch.Tensor

CHUNK = 64
GATHER_FLOPS = 8
"""Operations for each number that is normed and modulated."""


def make_problem(shape: Shape, device: str, dtype: torch.dtype, public_folder: str | None, compiled: bool) -> Problem:
    """Return a case with its numbers and all who take part in it; `compiled`: those that torch compiles, too."""
    if shape.family == "plan":
        return plan_problem(shape, device, dtype)
    if shape.family == "linear":
        return linear_problem(shape, device, dtype)
    if shape.family == "gather":
        return gather_problem(shape, device, dtype, compiled)
    return attention_problem(shape, device, dtype, public_folder, compiled)


def plan_problem(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """Listing the tiles to visit, with and without choosing blocks; the answer is found from the mask of all tokens."""
    case = AttentionCase(shape, device, dtype)
    cost = case.minimum_cost()
    lists = sum(part.nbytes for part in case.plan(case.query, case.key) if isinstance(part, torch.Tensor))
    read = lists + (case.query.nbytes + case.key.nbytes if case.selects_blocks else 0)
    minimum_cost = MinimumCost(0.0, (0.0, 0.0), (float(read), 0.0), cost.density, cost.tile_density)

    def whole() -> tuple[Tensor, ...]:
        return _lists(case.plan(case.query, case.key))

    problem = Problem(shape, ("rows", "columns"), 2, minimum_cost, lambda _: [_tile_classes(case)] * 2)
    problem.contestants = {OURS: lambda: PreparedContestant((), whole, (), (identity,) * 2, read=_classes)}
    if case.selects_blocks:
        chosen = case.make_selection(case.query, case.key)
        lengths = {"query_lengths": case.query_lengths, "key_lengths": case.key_lengths}

        def listed() -> tuple[Tensor, ...]:
            return _lists(build_plan(*case.levels, **lengths, selection=chosen))

        problem.contestants[OURS_BLOCKS_GIVEN] = lambda: PreparedContestant(
            (), listed, (), (identity,) * 2, read=_classes
        )
    return problem


def _lists(plan: AttentionPlan) -> tuple[Tensor, ...]:
    return plan.row_counts, plan.row_lists, plan.column_counts, plan.column_lists


def _classes(lists: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return twice [H, query tiles, key tiles], from the lists of rows and of columns: 1 seen in part, 2 wholly."""
    found = []
    for counts, entries in (lists[:2], lists[2:]):
        place = torch.arange(entries.shape[-1], device=entries.device)
        kind = (place < counts[..., :1]).float() + 2 * (place >= entries.shape[-1] - counts[..., 1:])
        found.append(torch.zeros_like(kind).scatter_reduce(-1, entries.long(), kind, "amax"))
    return found[0], found[1].mT


def _tile_classes(case: AttentionCase) -> Tensor:
    """Return what `_classes` must give, from who sees whom, token by token."""
    plan = build_plan(*case.levels, query_lengths=case.query_lengths, key_lengths=case.key_lengths)
    heads = case.shape.heads if case.selects_blocks else 1
    classes = torch.zeros(heads, len(plan.query_tiles), len(plan.key_tiles), dtype=torch.float64, device=case.device)
    row = column = 0
    for sample in range(len(case.shape.lengths)):
        mask = case.mask(sample)
        rows, columns = (-(-size // BLOCK) for size in mask.shape[1:])
        below, beside = rows * BLOCK - mask.shape[1], columns * BLOCK - mask.shape[2]
        # A key that is not there must not be read; a query that is not there minds nothing.
        seen = functional.pad(mask, (0, beside))
        some, every = (
            functional.pad(seen, (0, 0, 0, below), value=value)
            .unflatten(2, (columns, BLOCK))
            .unflatten(1, (rows, BLOCK))
            for value in (False, True)
        )
        visible = some.any(4).any(2)
        kind = visible.double() + (visible & every.all(4).all(2)).double()
        classes[:, row : row + rows, column : column + columns] = kind
        row, column = row + rows, column + columns
    return classes


def linear_problem(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """Linear attention, beside causal attention of the same sizes, which computes something else."""
    case = AttentionCase(shape, device, dtype)
    decay = alibi_log_decays(shape.heads).to(device)
    bounds = torch.tensor([0, *(stop for _, stop in case.query_bounds)], dtype=torch.int32, device=device)
    flops = 4.0 * shape.heads * case.query.shape[0] * shape.width * (CHUNK + shape.width)
    moved = 4.0 * case.query.nbytes
    minimum_cost = MinimumCost(flops, (flops, 3 * flops), (moved, 2 * moved))
    references: dict[str, list[Tensor]] = {}

    def reference_results(reference_kind: str) -> list[Tensor]:
        if reference_kind not in references:
            references[reference_kind] = (
                _decayed(case, decay) if reference_kind == "own" else case.reference_results("own")
            )
        return references[reference_kind]

    def ours() -> PreparedContestant:
        leaves = make_leaves(*case.leaves)
        return PreparedContestant(
            leaves, lambda: linear_attention(*leaves, decay, bounds)[:1], (case.output_gradient,), (identity,) * 4
        )

    def causal() -> PreparedContestant:
        entry = sdpa_padded(case, masked=False)

        def call() -> tuple[Tensor]:
            return (functional.scaled_dot_product_attention(*entry.leaves, is_causal=True),)

        return PreparedContestant(
            entry.leaves, call, entry.output_gradient, entry.to_reference_layout, reference_kind="softmax"
        )

    problem = Problem(shape, ("output", "query", "key", "value"), 1, minimum_cost, reference_results)
    problem.contestants = {OURS: ours, SDPA_CAUSAL: causal}
    return problem


def _decayed(case: AttentionCase, decay: Tensor) -> list[Tensor]:
    """Return output and gradients of linear attention in float64, every pair of tokens written out, head by head."""
    found = [torch.zeros_like(part, dtype=torch.float64) for part in (case.output_gradient, *case.leaves)]
    for rows in (slice(*bounds) for bounds in case.query_bounds):
        place = torch.arange(rows.stop - rows.start, device=case.device)
        apart = (place[:, None] - place).double()
        for head, fade in enumerate(decay.double().tolist()):
            parts = [part[rows, head].detach().double().requires_grad_() for part in case.leaves]
            query, key, value = parts
            weight = torch.where(apart >= 0, (fade * apart.clamp(min=0)).exp(), 0.0) * case.shape.width**-0.5
            output = ((query @ key.mT) * weight) @ value
            gradients = torch.autograd.grad(output, parts, case.output_gradient[rows, head].double())
            for whole, part in zip(found, [output, *gradients], strict=True):
                whole[rows, head] = part.detach()
    return found


def gather_problem(shape: Shape, device: str, dtype: torch.dtype, compiled: bool) -> Problem:
    """Kept tokens as they are and normed with FiLM: ours, and what it is made of in torch."""
    generator = torch.Generator().manual_seed(0)
    batch, sources, width = len(shape.lengths), shape.lengths[0], shape.width
    rows = round(shape.keep * sources)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    tokens = normal(batch, sources, width).to(device, dtype)
    weight, scale, shift = (part.to(device) for part in (normal(width), normal(batch, width), normal(batch, width)))
    indices = torch.rand(batch, sources, generator=generator).argsort(-1)[:, :rows].sort(-1).values.to(device)
    output_gradient = tuple(normal(batch, rows, width).to(device, dtype) for _ in range(2))
    each = output_gradient[0].nbytes
    flops = float(GATHER_FLOPS * output_gradient[0].numel())
    # Forward reads what stays and writes it twice; backward reads three such and writes a gradient for every token.
    minimum_cost = MinimumCost(
        flops, (flops, 2 * flops), (3.0 * each, 3.0 * each + tokens.nbytes), rows / sources, rows / sources
    )

    def reference_results(_: str) -> list[Tensor]:
        parts = [part.double().requires_grad_() for part in (tokens, weight, scale, shift)]
        outputs = gather_norm_film_reference(parts[0], indices, parts[1], (parts[2], parts[3]))
        gradients = torch.autograd.grad(outputs, parts, [part.double() for part in output_gradient])
        return [part.detach() for part in (*outputs, *gradients)]

    def entry(function) -> PreparedContestant:
        leaves = make_leaves(tokens, weight, scale, shift)
        return PreparedContestant(
            leaves, lambda: function(leaves[0], indices, leaves[1], leaves[2:]), output_gradient, (identity,) * 6
        )

    def chain() -> PreparedContestant:
        require_cuda(device, " to be compiled for")
        return entry(torch.compile(plain_chain, dynamic=False))

    problem = Problem(
        shape, ("kept", "normed", "tokens", "weight", "scale", "shift"), 2, minimum_cost, reference_results
    )
    problem.contestants = {OURS: lambda: entry(gather_norm_film), TORCH_EAGER: lambda: entry(plain_chain)}
    if compiled:
        problem.contestants[TORCH_COMPILED] = chain
    return problem


def plain_chain(
    tokens: Tensor, indices: Tensor, weight: Tensor, modulation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gather, norm and modulate one after the other, as in torch one would."""
    scale, shift = modulation
    kept = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
    normed = functional.rms_norm(kept.float(), weight.shape, weight, 1e-6)
    return kept, (normed * (1 + scale[:, None]) + shift[:, None]).to(tokens.dtype)
