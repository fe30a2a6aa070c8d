"""The correctness check of `saccade bench kernels`: compare a contestant with the float64 reference before timing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .problem import PreparedContestant, Problem

Tensor = torch.Tensor

NORM_TOLERANCES = {torch.float32: (1e-5, 5e-5), torch.bfloat16: (1e-2, 3e-2)}
"""Tolerances of outputs and of gradients: norm of the error, relative to the norm of the reference."""

ELEMENT_TOLERANCES = {torch.float32: (5e-5, 2e-4), torch.bfloat16: (4e-2, 1e-1)}
"""Tolerances of outputs and of gradients: largest error of an element, relative to the largest element."""


@dataclass
class CorrectnessResult:
    """The result of the comparison.

    Attributes:
        forward: Largest error of the outputs, relative to the largest element of the reference.
        backward: The same for the gradients; None if there are none.
        wrong: The first result over its tolerance; empty if all are correct.
        details: Largest relative error of each output and gradient, by name.
    """

    forward: float | None = None
    backward: float | None = None
    wrong: str = ""
    details: dict[str, float] = field(default_factory=dict)


def check_correctness(entry: PreparedContestant, problem: Problem, dtype: torch.dtype) -> CorrectnessResult:
    """Compare outputs and gradients of a contestant with the float64 reference.

    Args:
        entry: The contestant.
        problem: The case.
        dtype: Type of the inputs, float32 or bfloat16; it selects the tolerances.

    Returns:
        The errors and, if a tolerance is exceeded, where.
    """
    outputs = entry.call()
    results = list(entry.extract_outputs(outputs))
    if entry.leaves:
        results += torch.autograd.grad(outputs, entry.leaves, entry.output_gradient)
    expected = problem.reference_results(entry.reference_kind)
    result = CorrectnessResult()
    errors: list[list[float]] = [[], []]
    for number, (name, to_reference_layout, got, reference) in enumerate(
        zip(problem.names, entry.to_reference_layout, results, expected, strict=True)
    ):
        part = int(number >= problem.outputs)
        norm_error, max_error = relative_errors(to_reference_layout(got.detach()), reference)
        result.details[name] = max_error
        errors[part].append(max_error)
        close = norm_error <= NORM_TOLERANCES[dtype][part] and max_error <= ELEMENT_TOLERANCES[dtype][part]
        if not close and not result.wrong:
            what = name if part == 0 else f"gradient of {name}"
            result.wrong = f"{what} is off by {max_error:.1e} of the largest number, {norm_error:.1e} in norm"
    result.forward, result.backward = (max(part) if part else None for part in errors)
    return result


def relative_errors(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the relative errors of a tensor.

    Args:
        got: The tensor to check.
        expected: The reference in float64.

    Returns:
        The norm of the error relative to the norm of `expected`, and the largest error relative to its largest element;
        both infinite if an element is not finite or the shapes differ.
    """
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return float("inf"), float("inf")
    if not expected.numel():
        return 0.0, 0.0
    error = got.double() - expected
    norm, largest = expected.norm().clamp(min=1e-12), expected.abs().max().clamp(min=1e-12)
    return float(error.norm() / norm), float(error.abs().max() / largest)
