"""Timing for `saccade bench kernels`: CUDA graphs with a cold L2 cache on a GPU, repeated calls on a CPU."""

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
"""Larger than the L2 cache of any GPU."""

BACKENDS = {"cudnn": "cuDNN", "flash": "flash", "efficient": "efficient"}


class KernelTimer:
    """Measures the seconds of a contestant on one device.

    On a GPU a time is the median of the repeats. On a CPU it is the CPU time of the fastest repeat, summed over cores:
    other processes run meanwhile, so wall time would depend on them.

    Attributes:
        device: "cpu" or "cuda".
        repeats: Timed runs of each function.
        captured: Whether the last contestant, except its plan, ran in CUDA graphs; always True on a CPU.
    """

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats, self.captured = device, repeats, True
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.flush_buffer = (
            torch.empty(CACHE_FLUSH_BYTES, dtype=torch.uint8, device="cuda") if device == "cuda" else None
        )

    def measure(self, entry: PreparedContestant) -> dict[str, float]:
        """Return the seconds of each part of a contestant.

        Args:
            entry: The contestant, already checked.

        Returns:
            "forward"; "backward" and "both" (in one go) if there are gradients; "plan" if there is one.
        """
        leaves, output_gradient = entry.leaves, entry.output_gradient
        part_seconds = {} if entry.plan is None else {"plan": self.time(entry.plan)}
        self.captured = True

        def forward() -> None:
            with torch.no_grad():
                entry.call()

        def both() -> None:
            torch.autograd.grad(entry.call(), leaves, output_gradient)

        part_seconds["forward"] = self.time(forward)
        if leaves:
            part_seconds |= {"backward": self._backward(entry), "both": self.time(both)}
        return part_seconds

    def _backward(self, entry: PreparedContestant) -> float:
        if self.stream is None:
            outputs = entry.call()
            return self.time(
                lambda: torch.autograd.grad(outputs, entry.leaves, entry.output_gradient, retain_graph=True)
            )
        # Autograd runs the backward pass on the stream of the forward pass: use the stream that is captured.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = entry.call()
        return self.time(lambda: torch.autograd.grad(outputs, entry.leaves, entry.output_gradient, retain_graph=True))

    def time(self, function: Callable[[], Any]) -> float:
        """Return the seconds of a function; on a GPU captured in a CUDA graph if possible."""
        if self.stream is None or self.flush_buffer is None:
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
            # A function that synchronises with the device cannot be captured: time the plain calls.
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
        """Return the memory bandwidth of a large copy in bytes per second, reads and writes counted."""
        size = 2**30 if self.device == "cuda" else 2**26
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.time(lambda: target.copy_(source))

    def measure_peak_flops(self) -> float:
        """Return the FLOP per second of a large float32 matrix product."""
        size = 1024
        left = torch.ones(size, size, device=self.device)
        return 2 * size**3 / self.time(lambda: left @ left)


class _OperatorLog(TorchDispatchMode):
    """Records the names of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def sdpa_backend(call: Callable[[], Any]) -> str:
    """Return the backend that torch's SDPA uses, from the operators that it calls: cuDNN, flash, efficient or math."""
    with _OperatorLog() as log:
        call()
    called = [name for name in log.names if "_scaled_dot_product" in name]
    return (
        "+".join(sorted({backend for word, backend in BACKENDS.items() for name in called if word in name})) or "math"
    )
