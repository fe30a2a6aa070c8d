"""A policy captured in a CUDA graph: a decision costs one launch instead of thousands.

Every shape of the network is static, whatever is seen and said, so that one graph serves all decisions. It reads its
inputs, the instruction's share among them, where they lay when it was captured: new ones are copied there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import InputError
from .history import FrameMemory
from .model import InstructionPlan, PolicyOutput, SaccadeModel
from .tensor_tree import list_tensors, map_tensors

WARM_UP_RUNS = 3
"""Runs before a capture: libraries choose their algorithms and get their workspaces in the first ones."""

type CapturedGraph = tuple[PolicyOutput, Callable[[], object]]
"""A captured computation's output, and what computes it again in the same place."""


def capture_cuda_graph(run: Callable[[], PolicyOutput]) -> CapturedGraph:
    """Warm `run` up on a stream of its own, capture it in a CUDA graph, and return the output and the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    # The first replay uploads the graph to the device, so that the first decision need not.
    graph.replay()
    torch.cuda.synchronize()
    return output, graph.replay


class CapturedPolicy:
    """Decide as `model.decide` does, by replaying it: ready once built, for one shape of batch.

    `images` uint8 [B, V, 3, H, W] and `state` [B, S] are examples, `instruction_plan` the first instruction. Weights must
    stay where they are; changed in place, the graph reads the new ones. Raises InputError for a model that is not on a
    CUDA device; `capture_graph` stands in for the CUDA graph elsewhere.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: SaccadeModel,
        images: torch.Tensor,
        instruction_plan: InstructionPlan,
        state: torch.Tensor,
        *,
        capture_graph: Callable[[Callable[[], PolicyOutput]], CapturedGraph] = capture_cuda_graph,
    ) -> None:
        device = model.view_condition.device
        if capture_graph is capture_cuda_graph and device.type != "cuda":
            raise InputError(
                "a captured policy",
                got=f"a model on {device}",
                expected="one on a CUDA device",
                fix="Run it uncaptured.",
            )
        # Own copies: what is written to later may be shared with the caller, or expanded and not writable at all.
        self._images, self._state = images.to(device, copy=True), state.to(device, copy=True)
        self._instruction_plan = map_tensors(instruction_plan, lambda tensor: tensor.to(device).contiguous().clone())
        self._buffers = list_tensors(self._instruction_plan)
        self._empty_memory = model.empty_memory(len(images))
        self._memory = map_tensors(self._empty_memory, torch.Tensor.clone)
        with torch.cuda.device_of(self._images):
            self._output, self._replay = capture_graph(
                lambda: model.decide(self._images, self._instruction_plan, self._state, self._memory)
            )

    @torch.inference_mode()
    def instruct(self, instruction_plan: InstructionPlan) -> None:
        """Take a new instruction; raises InputError for another batch or another model's."""
        new_tensors = list_tensors(instruction_plan)
        shapes = [[(tuple(each.shape), each.dtype) for each in tensors] for tensors in (new_tensors, self._buffers)]
        if shapes[0] != shapes[1]:
            raise InputError(
                "instruction of a captured policy",
                got=f"{len(new_tensors)} tensors, text {list(instruction_plan.text.shape)} of {instruction_plan.text.dtype}",
                expected=f"{len(self._buffers)}, text {list(self._instruction_plan.text.shape)} of "
                f"{self._instruction_plan.text.dtype}, as it was captured",
                fix="Prepare it with the model that was captured, for as many rows.",
            )
        for buffer, tensor in zip(self._buffers, new_tensors, strict=True):
            buffer.copy_(tensor)

    @torch.inference_mode()
    def decide(self, images: torch.Tensor, state: torch.Tensor, memory: FrameMemory | None = None) -> PolicyOutput:
        """Decide for images uint8 [B, V, 3, H, W] and normalised states [B, S]; raises InputError for other shapes.

        `memory`: what a policy with history remembers, None for nothing. The decision is the caller's own: the next one
        does not change it.
        """
        for name, buffer, new_value in (("images", self._images, images), ("state", self._state, state)):
            if new_value.shape != buffer.shape:
                raise InputError(
                    f"{name} of a captured policy",
                    got=list(new_value.shape),
                    expected=f"{list(buffer.shape)}, as it was captured",
                    fix="Capture once for every shape of batch.",
                )
            buffer.copy_(new_value)
        for buffer, new_value in zip(
            list_tensors(self._memory), list_tensors(memory or self._empty_memory), strict=True
        ):
            buffer.copy_(new_value)
        with torch.cuda.device_of(self._images):
            self._replay()
            return map_tensors(self._output, torch.Tensor.clone)
