"""The cases of `saccade bench kernels` other than softmax attention: plans, linear attention, gather with norm."""

from __future__ import annotations

from collections.abc import Callable

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
"""FLOPs for each element that is normalised and modulated."""


def make_problem(
    shape: Shape, device: str, dtype: torch.dtype, public_folder: str | None, *, compiled: bool
) -> Problem:
    """Return a case with its inputs and contestants.

    Args:
        shape: The family and its sizes.
        device: "cpu" or "cuda".
        dtype: Type of the inputs.
        public_folder: Folder with clones of public code, see `public_code`.
        compiled: Include contestants that torch compiles.
    """
    if shape.family == "plan":
        return plan_problem(shape, device, dtype)
    if shape.family == "linear":
        return linear_problem(shape, device, dtype)
    if shape.family == "gather":
        return gather_problem(shape, device, dtype, compiled=compiled)
    return attention_problem(shape, device, dtype, public_folder, compiled=compiled)


def plan_problem(shape: Shape, device: str, dtype: torch.dtype) -> Problem:
    """Return the case of listing the tiles to visit, with and without block selection; reference: the full mask."""
    case = AttentionCase(shape, device, dtype)
    cost = case.minimum_cost()
    list_bytes = sum(part.nbytes for part in case.plan(case.query, case.key) if isinstance(part, torch.Tensor))
    moved = list_bytes + (case.query.nbytes + case.key.nbytes if case.selects_blocks else 0)
    minimum_cost = MinimumCost(0.0, (0.0, 0.0), (float(moved), 0.0), cost.density, cost.tile_density)

    def list_tiles() -> tuple[Tensor, ...]:
        return _lists(case.plan(case.query, case.key))

    problem = Problem(shape, ("rows", "columns"), 2, minimum_cost, lambda _: [_tile_classes(case)] * 2)
    problem.contestants = {
        OURS: lambda: PreparedContestant((), list_tiles, (), (identity,) * 2, extract_outputs=_classes)
    }
    if case.selects_blocks:
        selection = case.make_selection(case.query, case.key)

        def list_given_tiles() -> tuple[Tensor, ...]:
            plan = build_plan(
                *case.levels, query_lengths=case.query_lengths, key_lengths=case.key_lengths, selection=selection
            )
            return _lists(plan)

        problem.contestants[OURS_BLOCKS_GIVEN] = lambda: PreparedContestant(
            (), list_given_tiles, (), (identity,) * 2, extract_outputs=_classes
        )
    return problem


def _lists(plan: AttentionPlan) -> tuple[Tensor, ...]:
    return plan.row_counts, plan.row_lists, plan.column_counts, plan.column_lists


def _classes(lists: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return [H, query tiles, key tiles] from the lists of rows and of columns: 1 partly visible, 2 fully."""
    classes = []
    for counts, entries in (lists[:2], lists[2:]):
        position = torch.arange(entries.shape[-1], device=entries.device)
        kind = (position < counts[..., :1]).float() + 2 * (position >= entries.shape[-1] - counts[..., 1:])
        classes.append(torch.zeros_like(kind).scatter_reduce(-1, entries.long(), kind, "amax"))
    return classes[0], classes[1].mT


def _tile_classes(case: AttentionCase) -> Tensor:
    """Return the reference of `_classes`, from the mask of all pairs of tokens."""
    plan = build_plan(*case.levels, query_lengths=case.query_lengths, key_lengths=case.key_lengths)
    heads = case.shape.heads if case.selects_blocks else 1
    classes = torch.zeros(heads, len(plan.query_tiles), len(plan.key_tiles), dtype=torch.float64, device=case.device)
    row = column = 0
    for sample in range(len(case.shape.lengths)):
        mask = case.mask(sample)
        rows, columns = (-(-size // BLOCK) for size in mask.shape[1:])
        row_padding, column_padding = rows * BLOCK - mask.shape[1], columns * BLOCK - mask.shape[2]
        # A tile with padding keys is not fully visible; padding queries do not count.
        padded = functional.pad(mask, (0, column_padding))
        some, every = (
            functional.pad(padded, (0, 0, 0, row_padding), value=value)
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
    """Return the case of linear attention; causal SDPA of the same sizes is compared with its own reference."""
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
                _linear_attention_reference(case, decay) if reference_kind == "own" else case.reference_results("own")
            )
        return references[reference_kind]

    def ours() -> PreparedContestant:
        leaves = make_leaves(*case.leaves)
        query, key, value = leaves

        def call() -> tuple[Tensor]:
            return linear_attention(query, key, value, decay, bounds)[:1]

        return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 4)

    def causal() -> PreparedContestant:
        entry = sdpa_padded(case, masked=False)
        query, key, value = entry.leaves

        def call() -> tuple[Tensor]:
            return (functional.scaled_dot_product_attention(query, key, value, is_causal=True),)

        return PreparedContestant(
            entry.leaves, call, entry.output_gradient, entry.to_reference_layout, reference_kind="softmax"
        )

    problem = Problem(shape, ("output", "query", "key", "value"), 1, minimum_cost, reference_results)
    problem.contestants = {OURS: ours, SDPA_CAUSAL: causal}
    return problem


def _linear_attention_reference(case: AttentionCase, decay: Tensor) -> list[Tensor]:
    """Return output and gradients of linear attention in float64, from the full [S, S] weights of each head."""
    results = [torch.zeros_like(part, dtype=torch.float64) for part in (case.output_gradient, *case.leaves)]
    for rows in (slice(*bounds) for bounds in case.query_bounds):
        position = torch.arange(rows.stop - rows.start, device=case.device)
        distance = (position[:, None] - position).double()  # [S, S]
        for head, log_decay in enumerate(decay.double().tolist()):
            parts = [part[rows, head].detach().double().requires_grad_() for part in case.leaves]
            query, key, value = parts
            weight = torch.where(distance >= 0, (log_decay * distance.clamp(min=0)).exp(), 0.0) * case.shape.width**-0.5
            output = ((query @ key.mT) * weight) @ value
            gradients = torch.autograd.grad(output, parts, case.output_gradient[rows, head].double())
            for result, part in zip(results, [output, *gradients], strict=True):
                result[rows, head] = part.detach()
    return results


def gather_problem(shape: Shape, device: str, dtype: torch.dtype, *, compiled: bool) -> Problem:
    """Return the case of gathering kept tokens, raw and normalised with FiLM: our kernel and the steps in torch."""
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
    # Forward reads the kept tokens and writes them twice; backward reads three tensors of that size and writes a
    # gradient for every token.
    minimum_cost = MinimumCost(
        flops, (flops, 2 * flops), (3.0 * each, 3.0 * each + tokens.nbytes), rows / sources, rows / sources
    )

    def reference_results(_: str) -> list[Tensor]:
        parts = [part.double().requires_grad_() for part in (tokens, weight, scale, shift)]
        outputs = gather_norm_film_reference(parts[0], indices, parts[1], (parts[2], parts[3]))
        gradients = torch.autograd.grad(outputs, parts, [part.double() for part in output_gradient])
        return [part.detach() for part in (*outputs, *gradients)]

    def entry(function: Callable[..., tuple[Tensor, ...]]) -> PreparedContestant:
        leaves = make_leaves(tokens, weight, scale, shift)
        return PreparedContestant(
            leaves, lambda: function(leaves[0], indices, leaves[1], leaves[2:]), output_gradient, (identity,) * 6
        )

    def compiled_chain() -> PreparedContestant:
        require_cuda(device, " to be compiled for")
        return entry(torch.compile(eager_chain, dynamic=False))

    problem = Problem(
        shape, ("kept", "normed", "tokens", "weight", "scale", "shift"), 2, minimum_cost, reference_results
    )
    problem.contestants = {OURS: lambda: entry(gather_norm_film), TORCH_EAGER: lambda: entry(eager_chain)}
    if compiled:
        problem.contestants[TORCH_COMPILED] = compiled_chain
    return problem


def eager_chain(
    tokens: Tensor, indices: Tensor, weight: Tensor, modulation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gather, normalise (RMSNorm) and modulate (FiLM) with one torch operator each.

    Args:
        tokens: [B, S, D].
        indices: Kept tokens, [B, K].
        weight: Weight of the norm, [D].
        modulation: Scale and shift, each [B, D].

    Returns:
        The kept tokens and the normalised ones, each [B, K, D].
    """
    scale, shift = modulation
    kept = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
    normed = functional.rms_norm(kept.float(), weight.shape, weight, 1e-6)
    return kept, (normed * (1 + scale[:, None]) + shift[:, None]).to(tokens.dtype)
