"""Contestants from public code of sparse attention, imported from installed packages or from a folder of clones."""

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
    """Add a folder, its subfolders and their `src` to the module search path."""
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
    """Return the first module that can be imported.

    Args:
        names: Names of the module in different releases, newest first.
        public_folder: Folder with clones of public code; None for installed packages only.
        device: Device of the measurement; public code needs CUDA.

    Raises:
        Unavailable: No module can be imported; the message says why.
    """
    require_cuda(device)
    reasons = []
    with _extended_module_path(public_folder):
        for name in names:
            try:
                return importlib.import_module(name)
            # Another project's import can fail with any error, e.g. a missing package or extension; report it.
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:70])
    raise Unavailable(reasons[-1])


def dynamic_mask_attention(case: AttentionCase, public_folder: str | None) -> PreparedContestant:
    """Prepare the kernel of Dynamic Mask Attention (arXiv 2508.02124): keys kept by a mask, with a learned bias."""
    module = import_public(("flash_sparse_attn", "flash_dmattn"), public_folder, case.device)
    function = getattr(module, "triton_sparse_attn_func", None) or getattr(module, "triton_dmattn_func", None)
    if function is None:
        raise Unavailable("has no Triton function that takes a mask and a bias")
    leaves = tuple(part.detach().clone().requires_grad_() for part in case.leaves)
    query, key, value, score = leaves

    def call() -> tuple[Tensor]:
        bias = case.bias(score)
        keep_mask = bias > float("-inf")  # [HK, Tk]
        # The kernel takes the mask separately and needs a finite bias.
        finite_bias = bias.masked_fill(~keep_mask, 0.0).to(query.dtype)[None, :, None]  # [1, HK, 1, Tk]
        return (function(query[None], key[None], value[None], keep_mask[None, :, None], finite_bias)[0],)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 5)


def mixture_of_blocks(case: AttentionCase, public_folder: str | None) -> PreparedContestant:
    """Prepare VMoBA's attention (arXiv 2506.23858): each token of each head selects as many blocks as our tiles do."""
    module = import_public(("vmoba",), public_folder, case.device)
    leaves = tuple(part.detach().clone().requires_grad_() for part in case.leaves)
    query, key, value = leaves
    tokens = case.shape.lengths[0]
    ends = torch.tensor([0, tokens], dtype=torch.int32, device=case.device)

    def call() -> tuple[Tensor]:
        return (module.moba_attn_varlen(query, key, value, ends, tokens, BLOCK, case.keep_count, select_mode="topk"),)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 4, reference_kind="tokens")
