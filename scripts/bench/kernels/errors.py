"""Errors of our kernels in float32, as JSON: `python -m saccade.scripts.bench.kernels.errors cpu|cuda`.

With TRITON_INTERPRET=1 the Triton interpreter runs the kernels, also on a CPU. It is slow, so the cases are small.
"""

from __future__ import annotations

import json
import sys

import torch

from .correctness import check_correctness
from .families import make_problem
from .rows import OURS_PLAN_KEPT
from .shapes import Shape

CASES = (
    Shape("trunk", (150,), 2, 2, 64, "coupled", slots=20),
    Shape("prefix", (90,), 4, 1, 128, "prefix", slots=13),
    Shape("ragged", (70, 24, 101), 2, 1, 72, "coupled", slots=14),
    Shape("history", (276,), 2, 2, 32, slots=20, keep=0.5),
    Shape("cross", (14,), 2, 2, 64, keys=200),
    Shape("bias", (128,), 2, 1, 32, keep=0.25),
    Shape("plan", (276,), 2, 2, 32, slots=20, keep=0.5),
    Shape("linear", (150,), 2, 2, 40, "causal"),
    Shape("gather", (50,) * 3, 1, 1, 96, keep=0.4),
)
"""Every family, with full and with partly filled tiles."""


def measure(device: str) -> list[dict[str, float | str | None]]:
    """Return the errors of outputs and gradients of our contestants in each case, and what is wrong."""
    errors = []
    for shape in CASES:
        problem = make_problem(shape, device, torch.float32, None, compiled=False)
        for name, build in problem.contestants.items():
            if name.startswith("ours") and name != OURS_PLAN_KEPT:
                result = check_correctness(build(), problem, torch.float32)
                case = f"{shape.title} ({name})"
                errors.append(
                    {"case": case, "forward": result.forward, "backward": result.backward, "wrong": result.wrong}
                )
    return errors


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
