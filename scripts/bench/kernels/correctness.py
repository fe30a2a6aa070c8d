"""What must hold before `saccade bench kernels` gives a speed: every contestant computes what it should."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .problem import PreparedContestant, Problem

Tensor = torch.Tensor

NORM_TOLERANCES = {torch.float32: (1e-5, 5e-5), torch.bfloat16: (1e-2, 3e-2)}
"""How far outputs and gradients may be off as a whole, relative to the exact answer: in the norm of all numbers."""

ELEMENT_TOLERANCES = {torch.float32: (5e-5, 2e-4), torch.bfloat16: (4e-2, 1e-1)}
"""How far a single number may be off, relative to the largest one."""


@dataclass
class CorrectnessResult:
    """What the comparison found: the largest error of outputs and of gradients, and what is wrong, if anything.

    Errors are relative to the largest number of the exact answer; None where nothing was computed.
    """

    forward: float | None = None
    backward: float | None = None
    wrong: str = ""
    details: dict[str, float] = field(default_factory=dict)


def check_correctness(entry: PreparedContestant, problem: Problem, dtype: torch.dtype) -> CorrectnessResult:
    """Compare outputs and gradients of a contestant with the exact answer in float64.

    `dtype`: of the numbers that it was given, already rounded; float32 or bfloat16.
    """
    outputs = entry.call()
    found = list(entry.read(outputs))
    if entry.leaves:
        found += torch.autograd.grad(outputs, entry.leaves, entry.output_gradient)
    expected = problem.reference_results(entry.reference_kind)
    result = CorrectnessResult()
    errors: list[list[float]] = [[], []]
    for number, (name, to_reference_layout, one, other) in enumerate(
        zip(problem.names, entry.to_reference_layout, found, expected, strict=True)
    ):
        part = int(number >= problem.outputs)
        norm_error, max_error = relative_errors(to_reference_layout(one.detach()), other)
        result.details[name] = max_error
        errors[part].append(max_error)
        if (
            not (norm_error <= NORM_TOLERANCES[dtype][part] and max_error <= ELEMENT_TOLERANCES[dtype][part])
            and not result.wrong
        ):
            what = name if part == 0 else f"gradient of {name}"
            result.wrong = f"{what} is off by {max_error:.1e} of the largest number, {norm_error:.1e} as a whole"
    result.forward, result.backward = (max(part) if part else None for part in errors)
    return result


def relative_errors(got: Tensor, expected: Tensor) -> tuple[float, float]:
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
