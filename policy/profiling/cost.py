"""The cost of a network in FLOPs and bytes, computed without values.

A 7B policy is measured in seconds and without memory: its tensors are PyTorch's fake tensors, which have a shape, a
dtype and a device but no storage.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..network.architecture import Architecture
from ..network.history import PastFrames
from ..network.losses import chunk_loss
from ..network.model import SaccadeModel
from ..network.tensor_tree import list_tensors
from ..pretrained.adaptation import set_checkpointing


@dataclass(frozen=True)
class InputSizes:
    """The sizes that the contract decides, not the architecture; the defaults are LIBERO's.

    Attributes:
        views: Cameras, V.
        image_size: Height and width in pixels.
        state: Width of the state, S.
        action: Dimensions of an action, A.
        chunk: Steps of a chunk, T.
        batch: Rows, B.
    """

    views: int = 2
    image_size: int = 224
    state: int = 8
    action: int = 7
    chunk: int = 8
    batch: int = 1

    def build(self, architecture: Architecture) -> SaccadeModel:
        """Build the network; InputError if the sizes do not fit it."""
        return SaccadeModel(
            architecture,
            views=self.views,
            image_size=self.image_size,
            state=self.state,
            action=self.action,
            chunk=self.chunk,
        )

    def images(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return random images uint8 [B, V, 3, H, W]."""
        size = (self.batch, self.views, 3, self.image_size, self.image_size)
        return torch.randint(0, 256, size, dtype=torch.uint8, device=device)

    def past_frames(self, history: int, device: str | torch.device = "cpu") -> PastFrames | None:
        """Return `history` random past frames for each row; None without history."""
        if not history:
            return None
        rows = torch.arange(self.batch, device=device).repeat_interleave(history)
        frame_index = torch.arange(len(rows), device=device).unflatten(0, (self.batch, history)) + self.batch
        return PastFrames(replace(self, batch=len(rows)).images(device), rows, frame_index)

    def tokens(self, architecture: Architecture, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return text tokens [B, L] of an instruction that fills a quarter of its length."""
        tokens = torch.full((self.batch, architecture.text_length), architecture.padding, device=device)
        words = max(2, architecture.text_length // 4)
        tokens[:, :words] = torch.arange(words, device=device) % architecture.padding
        return tokens

    def states(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return normalized states [B, S]."""
        return torch.zeros(self.batch, self.state, device=device)


class FakeNetwork[Network: nn.Module]:
    """A network of fake tensors: shapes, dtypes and gradients of the real one, without memory.

    Inside `fake_mode()`, `network` runs forward and backward on inputs that are created there.

    Args:
        build: Builds the network.
        dtype: Floating point type of the weights; None leaves it unchanged.
        device: The device that the fake tensors claim; it need not exist.
    """

    def __init__(self, build: Callable[[], Network], *, dtype: torch.dtype | None = None, device: str = "cpu") -> None:
        # Built outside the mode: timm reads values of its own schedules while it builds.
        with torch.device("meta"):
            network = build()
        self.network = network if dtype is None else network.to(dtype)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            _fake_parameters(self.network, device)

    @contextmanager
    def fake_mode(self) -> Iterator[None]:
        """Compute with fake tensors inside this context."""
        with self.mode:
            yield


def _fake_parameters(network: nn.Module, device: str) -> None:
    """Replace every parameter and buffer by a fake tensor on `device`; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in network.modules():
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, old in named:
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype, device=device)
                made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, name, made[id(old)])


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of matrix products, convolutions and attention; a multiply-add counts as two.

    Attributes:
        total: All operations.
        parts: Operations by part of the policy: towers, fusion, trunk, expert, other.
    """

    total: int
    parts: dict[str, int] = field(default_factory=dict)


def _attention_flops(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _planned_attention_flops(query: Any, key: Any, value: Any, bias: Any, *plan: Any, **_: object) -> int:
    # Packed tokens: a query attends to the keys of its segment, and all segments of a batch are equally long.
    query_tiles, query_tile = plan[5], plan[11]
    segments = query_tiles[0] - query[0] // query_tile - 1
    return 4 * query[0] * query[1] * query[2] * (key[0] // segments)


def _planned_attention_backward_flops(
    gradient: Any, _: Any, query: Any, key: Any, value: Any, *rest: Any, **__: object
) -> int:
    # Scores and their gradients are computed twice, for queries and for keys: seven matrix products.
    return _planned_attention_flops(query, key, value, *rest[2:]) * 7 // 2


EXTRA_FLOP_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.saccade.block_sparse_attention: _planned_attention_flops,
    torch.ops.saccade.block_sparse_attention_backward: _planned_attention_backward_flops,
}
"""Formulas that PyTorch's counter lacks: fused attention of the CPU, counted like a GPU's, and our operator."""


def count_flops(run: Callable[[], object], network: nn.Module | None = None) -> Flops:
    """Count the FLOPs of a computation.

    PyTorch's counter sees every operation below autograd: a backward pass in `run` counts, and what activation
    checkpointing computes twice counts twice. Attention counts all of Q times K, masked or not. Its backward pass
    counts 2.5 times that, as fused kernels compute it, or 3.5 times with this package's operator, which computes scores
    twice to keep sums in a fixed order. Sums, norms and activations do not count. Under `no_grad` the counter fails on
    parameters that require gradients: freeze them before.

    Args:
        run: The computation.
        network: A SaccadeModel whose methods `run` calls, to count by parts.
    """
    with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOP_FORMULAS) as counter:
        run()
    counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    total = counts.pop("Global", 0)
    if not isinstance(network, SaccadeModel):
        return Flops(total)

    def flops_of(path: str, module: nn.Module) -> int:
        # The counter names a part by its class if `run` calls the part, by its path if `run` calls the network.
        return counts.get(f"SaccadeModel.{path}", counts.get(type(module).__name__, 0))

    towers, trunk, expert = (flops_of(name, getattr(network, name)) for name in ("tower", "trunk", "expert"))
    fusion = counts.get("SaccadeModel.tower.fusion", counts.get(f"{type(network.tower).__name__}.fusion", 0))
    parts = {"towers": towers - fusion, "fusion": fusion, "trunk": trunk, "expert": expert}
    return Flops(total, {**parts, "other": total - sum(parts.values())})


@dataclass(frozen=True)
class DecisionCost:
    """The cost of a policy's decisions.

    Attributes:
        parameters: Parameters of the network.
        weight_bytes: Bytes of the weights in bfloat16.
        encode_instruction: FLOPs once per instruction.
        decide: FLOPs of every decision.
        peak_bytes: Weights and activations of a decision in bfloat16, without the reserves of allocator and libraries.
    """

    parameters: int
    weight_bytes: int
    encode_instruction: Flops
    decide: Flops
    peak_bytes: int


def decision_cost(architecture: Architecture, sizes: InputSizes) -> DecisionCost:
    """Return the cost of decisions in bfloat16; InputError if the sizes do not fit the architecture."""
    fake_network = FakeNetwork(lambda: sizes.build(architecture).requires_grad_(False).eval(), dtype=torch.bfloat16)
    network = fake_network.network
    with fake_network.fake_mode(), torch.no_grad():
        images, tokens, state = sizes.images(), sizes.tokens(architecture), sizes.states()
        encode_instruction = count_flops(lambda: network.encode_instruction(tokens), network)
        instruction_plan, memory = network.encode_instruction(tokens), network.empty_memory(sizes.batch)
        arguments = images, instruction_plan, state, memory
        decide = count_flops(lambda: network.decide(*arguments), network)
        peak = peak_bytes(lambda: network.decide(*arguments), [network, *arguments])
    parameters = sum(each.numel() for each in network.parameters())
    return DecisionCost(parameters, 2 * parameters, encode_instruction, decide, peak)


def training_flops(build: Callable[[], SaccadeModel], sizes: InputSizes, *, checkpointing: bool = False) -> Flops:
    """Count the FLOPs of a training step: forward, L1 loss over the chunk, backward.

    Args:
        build: Builds the network; parameters with `requires_grad` are trained.
        sizes: Sizes of the batch.
        checkpointing: Whether activations are computed again in the backward pass.
    """
    fake_network = FakeNetwork(lambda: build().train(), dtype=torch.bfloat16)
    with fake_network.fake_mode():
        return count_flops(
            training_step(fake_network.network, sizes, checkpointing=checkpointing), fake_network.network
        )


def training_peak_bytes(
    build: Callable[[], SaccadeModel],
    sizes: InputSizes,
    *,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
) -> int:
    """Return the peak memory of a training step with AdamW, in bytes.

    Weights, gradients and AdamW's two moments are in `dtype`, as in PyTorch. The peak is that of live tensors during a
    step that starts without gradients; the allocator's rounding and the libraries' workspaces are not included. It is
    measured on the CPU, where the trunk's attention is in float32: a GPU needs a little less.

    Args:
        build: As in `training_flops`.
        sizes: As in `training_flops`.
        dtype: Floating point type of weights and gradients.
        checkpointing: As in `training_flops`.
    """
    fake_network = FakeNetwork(lambda: build().train(), dtype=dtype)
    network = fake_network.network
    with fake_network.fake_mode():
        step = training_step(network, sizes, checkpointing=checkpointing)
        moments = [torch.zeros_like(each) for each in network.parameters() if each.requires_grad for _ in range(2)]
        return peak_bytes(step, [network, moments])


def training_step(
    network: SaccadeModel, sizes: InputSizes, *, device: str = "cpu", checkpointing: bool = False
) -> Callable[[], None]:
    """Return a function that runs one forward and backward pass on a random batch; this sets `checkpointing`."""
    set_checkpointing(network, on=checkpointing)
    images, tokens = sizes.images(device), sizes.tokens(network.architecture, device)
    state, target = sizes.states(device), torch.zeros(sizes.batch, sizes.chunk, sizes.action, device=device)
    padded = torch.zeros(sizes.batch, sizes.chunk, dtype=torch.bool, device=device)

    past_frames = sizes.past_frames(network.architecture.history, device)

    def step() -> None:
        chunk_loss(network(images, tokens, state, past_frames).actions, target, padded).mean().backward()

    return step


def peak_bytes(run: Callable[[], object], resident: list[Any]) -> int:
    """Return the peak bytes of live tensors while `run` runs.

    Every result of every operation is tracked until its memory, real or fake, is freed, so that views count once.
    Memory that an operation uses internally is not seen.

    Args:
        run: The computation.
        resident: Tensors, modules and structures of tensors that live meanwhile.
    """
    with _PeakMemoryMode() as live:
        for each in resident:
            tensors = [*each.parameters(), *each.buffers()] if isinstance(each, nn.Module) else list_tensors(each)
            for tensor in tensors:
                live.track(tensor)
        run()
    return live.peak


class _PeakMemoryMode(TorchDispatchMode):
    """Track the memory of every tensor from the operation that creates it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._tracked: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.track(each)
        return result

    def track(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._tracked:
            return
        self._tracked.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._untrack, key, size)

    def _untrack(self, key: int, size: int) -> None:
        self._tracked.discard(key)
        self.live -= size
