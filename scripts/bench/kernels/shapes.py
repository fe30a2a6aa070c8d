"""The shapes that `saccade bench kernels` measures: those of real policies, and small ones for any machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

FAMILIES = {
    "trunk": "trunk with action slots: causal context, slots see everything",
    "prefix": "prefix language model: bidirectional context, slots see the context and each other",
    "ragged": "pruned batch: as the trunk, samples of different lengths",
    "history": "long history: every tile of 64 queries selects blocks of 64 keys",
    "cross": "action expert: few queries, many keys",
    "bias": "keys kept by a learned score, with its gradient",
    "plan": "selecting blocks and listing tiles, without attention",
    "linear": "linear attention with decay",
    "gather": "gathering kept tokens, with norm and FiLM",
}
"""Description of each family."""

BLOCK = 64
"""Tokens of a selectable block, and of a tile."""


@dataclass(frozen=True)
class Shape:
    """The shape of one case.

    Attributes:
        family: One of FAMILIES.
        lengths: Tokens of each sample, action slots included.
        heads: Query heads.
        key_heads: Key and value heads.
        width: Width of a head; of a token in the family "gather".
        mask: coupled, prefix, causal or everything.
        slots: Action slots, the last tokens of each sample.
        keys: Keys of each sample in cross-attention; 0 if the keys are the query tokens.
        keep: Fraction of blocks, keys or tokens that is kept.
        headline: Whether a metric with a target is taken from this case.
        sweep: The plot that shows this case, "length" or "density"; empty if none.
    """

    family: str
    lengths: tuple[int, ...]
    heads: int
    key_heads: int
    width: int
    mask: str = "everything"
    slots: int = 0
    keys: int = 0
    keep: float = 1.0
    headline: bool = False
    sweep: str = ""

    @property
    def title(self) -> str:
        """Short description of the case."""
        samples, tokens = len(self.lengths), self.lengths[0]
        batch = f"{samples} x " if samples > 1 else ""
        if self.family == "gather":
            return f"gather: {batch}{round(self.keep * tokens)} of {tokens} tokens of {self.width}"
        if len(set(self.lengths)) > 1:
            size = f"{samples} samples of {min(self.lengths)} to {max(self.lengths)} tokens"
        elif self.keys:
            size = f"{batch}{tokens} queries, {self.keys} keys"
        else:
            size = f"{batch}{tokens} tokens"
        heads = f"{self.heads}/{self.key_heads} heads of {self.width}"
        kept = "" if self.keep == 1 else f", {self.keep:.4g} kept"
        return f"{self.family}: {size}, {heads}{kept}"


def shapes(size: str) -> Iterator[Shape]:
    """Yield the cases of a size, "full" or "small"; full ones need a GPU with tens of GB of memory."""
    yield from _full() if size == "full" else _small()


def _full() -> Iterator[Shape]:
    # OpenVLA-OFT: two cameras of 256 patches, 35 text tokens, 56 action slots.
    trunk = Shape("trunk", (603,), 32, 32, 128, "coupled", slots=56, headline=True)
    for tokens in (256, 603, 1024, 2048):
        yield replace(trunk, lengths=(tokens,), headline=tokens == 603, sweep="length")
    # Three cameras of 1024 patches, 50 text tokens, 400 slots.
    yield replace(trunk, lengths=(3522,), slots=400, sweep="length")
    yield replace(trunk, lengths=(8306,), headline=False, sweep="length")
    yield replace(trunk, lengths=(603,) * 8)
    yield replace(trunk, lengths=(603,) * 32)
    yield replace(trunk, lengths=(3522,) * 8, slots=400)
    # pi0: three cameras of 256 patches, 48 text tokens, 51 tokens of state and action.
    prefix = Shape("prefix", (867,), 8, 1, 256, "prefix", slots=51, headline=True)
    yield prefix
    yield replace(prefix, lengths=(867,) * 32)
    draw = random.Random(0)
    lengths = tuple(draw.randint(96, 512) for _ in range(32))
    yield Shape("ragged", lengths, 32, 32, 128, "coupled", slots=56, headline=True)
    history = Shape("history", (8306,), 16, 16, 128, slots=114, sweep="density")
    for keep in (1.0, 0.5, 0.25, 0.125, 0.0625):
        yield replace(history, keep=keep, headline=keep == 0.125)
    cross = Shape("cross", (56,), 16, 16, 64)
    for keys in (512, 4096, 8192):
        yield replace(cross, keys=keys, headline=keys == 8192)
    yield replace(cross, lengths=(56,) * 32, keys=1024)
    yield Shape("bias", (4096,), 16, 4, 64, keep=0.25, headline=True)
    yield Shape("plan", (8306,), 16, 16, 128, slots=114, keep=0.125, headline=True)
    yield Shape("plan", lengths, 32, 32, 128, "coupled", slots=56)
    yield Shape("linear", (8192,), 16, 16, 128, "causal", headline=True)
    yield Shape("linear", (3522,), 16, 16, 128, "causal")
    yield Shape("gather", (1024,) * 32, 1, 1, 4096, keep=0.5, headline=True)


def _small() -> Iterator[Shape]:
    trunk = Shape("trunk", (603,), 4, 4, 32, "coupled", slots=56, headline=True)
    for tokens in (128, 256, 603, 1024):
        yield replace(trunk, lengths=(tokens,), headline=tokens == 603, sweep="length")
    yield replace(trunk, lengths=(150,) * 4, slots=14)
    yield Shape("prefix", (217,), 4, 1, 64, "prefix", slots=13, headline=True)
    draw = random.Random(0)
    lengths = tuple(draw.randint(24, 128) for _ in range(8))
    yield Shape("ragged", lengths, 4, 4, 32, "coupled", slots=14, headline=True)
    history = Shape("history", (1054,), 2, 2, 32, slots=30, sweep="density")
    for keep in (1.0, 0.5, 0.25, 0.125):
        yield replace(history, keep=keep, headline=keep == 0.125)
    yield Shape("cross", (14,), 4, 4, 32, keys=512, headline=True)
    yield Shape("cross", (14,) * 8, 4, 4, 32, keys=128)
    yield Shape("bias", (512,), 4, 2, 32, keep=0.25, headline=True)
    yield Shape("plan", (1054,), 2, 2, 32, slots=30, keep=0.125, headline=True)
    yield Shape("plan", lengths, 4, 4, 32, "coupled", slots=14)
    yield Shape("linear", (512,), 2, 2, 32, "causal", headline=True)
    yield Shape("gather", (128,) * 8, 1, 1, 256, keep=0.5, headline=True)
