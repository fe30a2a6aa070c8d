"""What must hold before `saccade bench kernels` gives a speed: every contestant computes what it should."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .problem import Entry, Problem

Tensor = torch.Tensor

LIMITS = {torch.float32: (1e-5, 5e-5), torch.bfloat16: (1e-2, 3e-2)}
"""How far outputs and gradients may be off as a whole, relative to the exact answer: in the norm of all numbers."""

WORST = {torch.float32: (5e-5, 2e-4), torch.bfloat16: (4e-2, 1e-1)}
"""How far a single number may be off, relative to the largest one."""


@dataclass
class Verdict:
    """What the comparison found: the largest error of outputs and of gradients, and what is wrong, if anything.

    Errors are relative to the largest number of the exact answer; None where nothing was computed.
    """

    forward: float | None = None
    backward: float | None = None
    wrong: str = ""
    details: dict[str, float] = field(default_factory=dict)


def judge(entry: Entry, problem: Problem, dtype: torch.dtype) -> Verdict:
    """Compare outputs and gradients of a contestant with the exact answer in float64.

    `dtype`: of the numbers that it was given, already rounded; float32 or bfloat16.
    """
    outputs = entry.call()
    found = list(entry.read(outputs))
    if entry.leaves:
        found += torch.autograd.grad(outputs, entry.leaves, entry.above)
    expected = problem.answer(entry.against)
    verdict = Verdict()
    errors: list[list[float]] = [[], []]
    for number, (name, restore, one, other) in enumerate(
        zip(problem.names, entry.restore, found, expected, strict=True)
    ):
        part = int(number >= problem.outputs)
        whole, worst = difference(restore(one.detach()), other)
        verdict.details[name] = worst
        errors[part].append(worst)
        if not (whole <= LIMITS[dtype][part] and worst <= WORST[dtype][part]) and not verdict.wrong:
            what = name if part == 0 else f"gradient of {name}"
            verdict.wrong = f"{what} is off by {worst:.1e} of the largest number, {whole:.1e} as a whole"
    verdict.forward, verdict.backward = (max(part) if part else None for part in errors)
    return verdict


def difference(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return how far two tensors are apart: in norm and at the worst place, each relative to `expected`.

    Infinite where anything is not finite or the shapes differ.
    """
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return float("inf"), float("inf")
    if not expected.numel():
        return 0.0, 0.0
    apart = got.double() - expected
    size, largest = expected.norm().clamp(min=1e-12), expected.abs().max().clamp(min=1e-12)
    return float(apart.norm() / size), float(apart.abs().max() / largest)
