"""Public code of sparse attention, imported where it is installed or lies in a folder, and measured beside ours."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from .problem import AttentionCase, PreparedContestant, Unavailable, identity, require_cuda
from .shapes import BLOCK

Tensor = torch.Tensor


@contextlib.contextmanager
def _extended_module_path(public_folder: str | None) -> Iterator[None]:
    """Let modules be found in a folder, in the folders in it, and in their `src`."""
    added = []
    if public_folder is not None:
        root = Path(public_folder)
        inner = sorted(each for each in root.iterdir() if each.is_dir())
        added = [str(each) for each in (root, *inner, *(each / "src" for each in inner)) if each.is_dir()]
    before = list(sys.path)
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = before


def import_public(names: tuple[str, ...], public_folder: str | None, device: str) -> ModuleType:
    """Return the first module of `names` that can be imported; raises Unavailable with the reason."""
    require_cuda(device)
    reasons = []
    with _extended_module_path(public_folder):
        for name in names:
            try:
                return importlib.import_module(name)
            # Whatever another project's import fails at, for want of a package or of a build, is the reason.
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:70])
    raise Unavailable(reasons[-1])


def dynamic_mask_attention(case: AttentionCase, public_folder: str | None) -> PreparedContestant:
    """Dynamic Mask Attention's Triton kernel (arXiv 2508.02124): keys kept by a mask, with a bias that learns."""
    module = import_public(("flash_sparse_attn", "flash_dmattn"), public_folder, case.device)
    function = getattr(module, "triton_sparse_attn_func", None) or getattr(module, "triton_dmattn_func", None)
    if function is None:
        raise Unavailable("has no Triton function that takes a mask and a bias")
    leaves = tuple(part.detach().clone().requires_grad_() for part in case.leaves)
    query, key, value, score = leaves

    def call() -> tuple[Tensor]:
        bias = case.bias(score)
        kept = bias > float("-inf")
        # Its kernel takes the mask apart, and a bias that is finite.
        added = bias.masked_fill(~kept, 0.0).to(query.dtype)[None, :, None]
        return (function(query[None], key[None], value[None], kept[None, :, None], added)[0],)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 5)


def mixture_of_blocks(case: AttentionCase, public_folder: str | None) -> PreparedContestant:
    """VMoBA's attention (arXiv 2506.23858): every token of every head chooses as many blocks as ours do."""
    module = import_public(("vmoba",), public_folder, case.device)
    leaves = tuple(part.detach().clone().requires_grad_() for part in case.leaves)
    query, key, value = leaves
    tokens = case.shape.lengths[0]
    ends = torch.tensor([0, tokens], dtype=torch.int32, device=case.device)

    def call() -> tuple[Tensor]:
        return (module.moba_attn_varlen(query, key, value, ends, tokens, BLOCK, case.kept, select_mode="topk"),)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 4, reference_kind="tokens")
