"""Timing for `saccade bench kernels`: CUDA graphs with a cold cache on a GPU, plain repetition on a processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .problem import PreparedContestant

WARMUP_RUNS = 3
CACHE_FLUSH_BYTES = 256 * 2**20
"""More than any second-level cache holds."""

BACKENDS = {"cudnn": "cuDNN", "flash": "flash", "efficient": "efficient"}


class KernelTimer:
    """Measures seconds on one device, `repeats` times: on a GPU the median counts, on a processor the fastest.

    A processor does other things meanwhile, so what counts is what its cores spend, all of them together.

    `captured` tells whether what was measured last, beside its plan, ran in CUDA graphs; always so on a processor.
    """

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats, self.captured = device, repeats, True
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.flush_buffer = (
            torch.empty(CACHE_FLUSH_BYTES, dtype=torch.uint8, device="cuda") if device == "cuda" else None
        )

    def measure(self, entry: PreparedContestant) -> dict[str, float]:
        """Return the seconds of forward, backward and both in one go, and of the plan where it is a part."""
        leaves, output_gradient = entry.leaves, entry.output_gradient
        found = {} if entry.plan is None else {"plan": self.time(entry.plan)}
        self.captured = True

        def forward() -> None:
            with torch.no_grad():
                entry.call()

        def both() -> None:
            torch.autograd.grad(entry.call(), leaves, output_gradient)

        found["forward"] = self.time(forward)
        if leaves:
            found |= {"backward": self._backward(entry), "both": self.time(both)}
        return found

    def _backward(self, entry: PreparedContestant) -> float:
        if self.stream is None:
            outputs = entry.call()
            return self.time(
                lambda: torch.autograd.grad(outputs, entry.leaves, entry.output_gradient, retain_graph=True)
            )
        # Gradients run on the stream of their forward pass, which must be the one that is captured.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = entry.call()
        return self.time(lambda: torch.autograd.grad(outputs, entry.leaves, entry.output_gradient, retain_graph=True))

    def time(self, function: Callable[[], Any]) -> float:
        """Return the seconds of a function, captured in a CUDA graph where that is possible."""
        if self.stream is None:
            return self._time_on_cpu(function)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARMUP_RUNS):
                function()
        torch.cuda.synchronize()
        run = function
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                function()
            run = graph.replay
        except RuntimeError:
            # What waits for the device cannot be captured; it is timed as it comes.
            torch.cuda.synchronize()
            self.captured = False
        seconds = []
        with torch.cuda.stream(self.stream):
            for _ in range(self.repeats):
                self.flush_buffer.zero_()
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                run()
                ended.record()
                ended.synchronize()
                seconds.append(began.elapsed_time(ended) / 1e3)
        return statistics.median(seconds)

    def _time_on_cpu(self, function: Callable[[], Any]) -> float:
        function()
        seconds = []
        for _ in range(self.repeats):
            began = time.process_time()
            function()
            seconds.append(time.process_time() - began)
        return min(seconds)

    def bandwidth(self) -> float:
        """Return the bytes per second of a large copy, read and written ones counted."""
        size = 2**30 if self.device == "cuda" else 2**26
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.time(lambda: target.copy_(source))

    def measure_peak_flops(self) -> float:
        """Return the operations per second of a large product: on a processor, in float32."""
        size = 1024
        left = torch.ones(size, size, device=self.device)
        return 2 * size**3 / self.time(lambda: left @ left)


class _OperatorLog(TorchDispatchMode):
    """Notes the names of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def sdpa_backend(call: Callable[[], Any]) -> str:
    """Return which of its ways torch's attention takes, by the operators that it really calls."""
    with _OperatorLog() as log:
        call()
    called = [name for name in log.names if "_scaled_dot_product" in name]
    return (
        "+".join(sorted({backend for word, backend in BACKENDS.items() for name in called if word in name})) or "math"
    )
