"""A policy captured in a CUDA graph: a decision costs one launch instead of thousands.

Every shape of the network is static, so that one graph serves all observations and instructions. The graph reads its
inputs, the instruction plan included, from fixed buffers; new inputs are copied there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import InputError
from .history import FrameMemory
from .model import InstructionPlan, PolicyOutput, SaccadeModel
from .tensor_tree import list_tensors, map_tensors

WARM_UP_RUNS = 3
"""Runs before a capture, in which libraries choose their algorithms and allocate their workspaces."""

type CapturedGraph = tuple[PolicyOutput, Callable[[], object]]
"""The output buffers of a captured computation, and the function that computes them again."""


def capture_cuda_graph(run: Callable[[], PolicyOutput]) -> CapturedGraph:
    """Warm `run` up on a separate stream and capture it in a CUDA graph.

    Args:
        run: The computation; its shapes and inputs' addresses must not change.

    Returns:
        Its output, and the function that replays the graph.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    # The first replay uploads the graph to the device: do it here, not in the first decision.
    graph.replay()
    torch.cuda.synchronize()
    return output, graph.replay


class CapturedPolicy:
    """Compute `model.decide` by replaying a CUDA graph, for one batch size.

    The weights must stay at their addresses; the graph reads weights that are changed in place.

    Args:
        model: The network, on a CUDA device.
        images: Example images uint8 [B, V, 3, H, W].
        instruction_plan: The first instructions.
        state: Example states [B, S].
        capture_graph: What captures the computation; tests replace it where there is no CUDA device.

    Raises:
        InputError: The model is not on a CUDA device.
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
                fix="Move the model to a CUDA device, or call its decide.",
            )
        # Copies: the buffers are written to later, and the arguments may be shared with the caller or expanded.
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
    def set_instruction(self, instruction_plan: InstructionPlan) -> None:
        """Copy new instructions into the graph's buffers.

        Raises:
            InputError: The plan is of another batch size or another model.
        """
        new_tensors = list_tensors(instruction_plan)
        shapes = [[(tuple(each.shape), each.dtype) for each in tensors] for tensors in (new_tensors, self._buffers)]
        if shapes[0] != shapes[1]:
            raise InputError(
                "instruction of a captured policy",
                got=_describe(instruction_plan),
                expected=f"{_describe(self._instruction_plan)}, as captured",
                fix="Encode it with the model that was captured, for the same batch size.",
            )
        for buffer, tensor in zip(self._buffers, new_tensors, strict=True):
            buffer.copy_(tensor)

    @torch.inference_mode()
    def decide(self, images: torch.Tensor, state: torch.Tensor, memory: FrameMemory | None = None) -> PolicyOutput:
        """Decide one chunk of actions for each row; the next call does not change the result.

        Args:
            images: uint8 [B, V, 3, H, W].
            state: Normalized states [B, S].
            memory: What a policy with history remembers; None for nothing.

        Raises:
            InputError: The shapes are not those of the capture.
        """
        for name, buffer, new_value in (("images", self._images, images), ("state", self._state, state)):
            if new_value.shape != buffer.shape:
                raise InputError(
                    f"{name} of a captured policy",
                    got=list(new_value.shape),
                    expected=f"{list(buffer.shape)}, as captured",
                    fix="Capture the policy once for every batch size.",
                )
            buffer.copy_(new_value)
        for buffer, new_value in zip(
            list_tensors(self._memory), list_tensors(memory or self._empty_memory), strict=True
        ):
            buffer.copy_(new_value)
        with torch.cuda.device_of(self._images):
            self._replay()
            return map_tensors(self._output, torch.Tensor.clone)


def _describe(plan: InstructionPlan) -> str:
    return f"{len(list_tensors(plan))} tensors, text {list(plan.text.shape)} of {plan.text.dtype}"
