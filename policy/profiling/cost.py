"""What a network costs, in operations and bytes, found out without running it: sizes are real, values are not there.

A 7B policy is measured in seconds and in no memory: its tensors are PyTorch's fake ones, which have a shape, a dtype
and a device but no storage, and every operation is only asked how large its result is.
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
    """The sizes that the contract and not the architecture decides; LIBERO's, unless they are said."""

    views: int = 2
    image_size: int = 224
    state: int = 8
    action: int = 7
    chunk: int = 8
    batch: int = 1

    def build(self, architecture: Architecture) -> SaccadeModel:
        """Build the network; raises InputError for sizes that do not suit it."""
        return SaccadeModel(
            architecture,
            views=self.views,
            image_size=self.image_size,
            state=self.state,
            action=self.action,
            chunk=self.chunk,
        )

    def images(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return pictures uint8 [B, V, 3, H, W], of noise."""
        size = (self.batch, self.views, 3, self.image_size, self.image_size)
        return torch.randint(0, 256, size, dtype=torch.uint8, device=device)

    def past_frames(self, history: int, device: str | torch.device = "cpu") -> PastFrames | None:
        """Return what a training batch remembers: `history` frames of noise for each row; None without history."""
        if not history:
            return None
        rows = torch.arange(self.batch, device=device).repeat_interleave(history)
        place = torch.arange(len(rows), device=device).unflatten(0, (self.batch, history)) + self.batch
        return PastFrames(replace(self, batch=len(rows)).images(device), rows, place)

    def tokens(self, architecture: Architecture, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return text tokens [B, L] of an instruction that fills a fourth of its room."""
        tokens = torch.full((self.batch, architecture.text_length), architecture.padding, device=device)
        words = max(2, architecture.text_length // 4)
        tokens[:, :words] = torch.arange(words, device=device) % architecture.padding
        return tokens

    def states(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return normalised states [B, S]."""
        return torch.zeros(self.batch, self.state, device=device)


class FakeNetwork:
    """A network without values: its shapes, dtypes and gradients are those of the real one, its memory is none.

    `network` may be run, its backward pass too, within `fake_mode()`, on inputs that are made there.
    """

    def __init__(
        self, build: Callable[[], nn.Module], *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        # Built beside the mode and moved into it: timm reads values of its own schedules while it builds.
        with torch.device("meta"):
            network = build()
        self.network = network if dtype is None else network.to(dtype)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            _fake_parameters(self.network, device)

    @contextmanager
    def fake_mode(self) -> Iterator[None]:
        """Let what is computed meanwhile be imagined."""
        with self.mode:
            yield


def _fake_parameters(network: nn.Module, device: str) -> None:
    """Put an imagined tensor on `device` in the place of every parameter and buffer; shared ones stay shared."""
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
    """Floating-point operations, two to a multiply-add, of matrix products, convolutions and attention.

    `parts` are those of `total` by part of the policy: towers, fusion, trunk, expert, other.
    """

    total: int
    parts: dict[str, int] = field(default_factory=dict)


def _attention_flops(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _planned_attention_flops(query: Any, key: Any, value: Any, bias: Any, *plan: Any, **_: object) -> int:
    # Packed tokens: queries meet the keys of their own segment, of which a batch has as many, all equally long.
    query_tiles, query_tile = plan[5], plan[11]
    segments = query_tiles[0] - query[0] // query_tile - 1
    return 4 * query[0] * query[1] * query[2] * (key[0] // segments)


def _planned_attention_backward_flops(
    gradient: Any, _: Any, query: Any, key: Any, value: Any, *rest: Any, **__: object
) -> int:
    # Scores and their gradients are computed twice, once for the queries and once for the keys: seven products.
    return _planned_attention_flops(query, key, value, *rest[2:]) * 7 // 2


EXTRA_FLOP_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.saccade.block_sparse_attention: _planned_attention_flops,
    torch.ops.saccade.block_sparse_attention_backward: _planned_attention_backward_flops,
}
"""What PyTorch's counter does not know: the processor's fused attention, counted like a GPU's, and our operator."""


def count_flops(run: Callable[[], object], network: nn.Module | None = None) -> Flops:
    """Count what `run` computes, by parts where `network` is a SaccadeModel, whose methods it calls.

    PyTorch's own counter, which sees every operation below autograd: a backward pass counts when `run` has one, and
    what checkpointing computes twice counts twice. Attention counts the whole of Q times K, masked or not, and its
    backward pass two and a half times that, as the fused kernels compute it, three and a half times with our operator,
    which computes scores twice instead of adding up in any order; sums, norms and activations count nothing.
    Under `no_grad` the counter stumbles over parameters that want gradients: freeze them before.
    """
    with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOP_FORMULAS) as counter:
        run()
    counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    total = counts.pop("Global", 0)
    if not isinstance(network, SaccadeModel):
        return Flops(total)

    def of(path: str, module: nn.Module) -> int:
        # A part is named by its class where `run` calls it itself, by its path where the whole network was called.
        return counts.get(f"SaccadeModel.{path}", counts.get(type(module).__name__, 0))

    towers, trunk, expert = (of(name, getattr(network, name)) for name in ("tower", "trunk", "expert"))
    fusion = counts.get("SaccadeModel.tower.fusion", counts.get(f"{type(network.tower).__name__}.fusion", 0))
    parts = {"towers": towers - fusion, "fusion": fusion, "trunk": trunk, "expert": expert}
    return Flops(total, {**parts, "other": total - sum(parts.values())})


@dataclass(frozen=True)
class DecisionCost:
    """What a policy's decisions cost: `encode_instruction` once for an instruction, `decide` every time.

    `parameters`: of the whole network; `weight_bytes`: theirs in bfloat16; `peak_bytes`: weights and activations of a
    decision in bfloat16, without what the allocator and the libraries keep for themselves.
    """

    parameters: int
    weight_bytes: int
    encode_instruction: Flops
    decide: Flops
    peak_bytes: int


def decision_cost(architecture: Architecture, sizes: InputSizes) -> DecisionCost:
    """Return what decisions of a policy in bfloat16 cost; raises InputError for sizes that do not suit it."""
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
    """Count a training step: forward, L1 loss over the chunk, backward; `build` says by `requires_grad` what learns."""
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
    """Return the peak of bytes in a training step under AdamW; `build` says by `requires_grad` what learns.

    Weights and gradients are in `dtype`, and AdamW's two moments too, as PyTorch makes them. The peak is of live
    tensors at any time of the step, which begins without gradients; the allocator's rounding and the libraries'
    workspaces come on top. It is a processor's: the trunk's attention is held in float32 there, so that a GPU needs a
    little less.
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
    """Return what goes forward and backward once, on a batch of noise on the device; it sets `checkpointing`."""
    set_checkpointing(network, checkpointing)
    images, tokens = sizes.images(device), sizes.tokens(network.architecture, device)
    state, target = sizes.states(device), torch.zeros(sizes.batch, sizes.chunk, sizes.action, device=device)
    padded = torch.zeros(sizes.batch, sizes.chunk, dtype=torch.bool, device=device)

    past_frames = sizes.past_frames(network.architecture.history, device)

    def step() -> None:
        chunk_loss(network(images, tokens, state, past_frames).actions, target, padded).mean().backward()

    return step


def peak_bytes(run: Callable[[], object], resident: list[Any]) -> int:
    """Return the most bytes of tensors that live at once while `run` runs, with what is `resident` meanwhile.

    `resident`: tensors, modules, and structures of tensors. Every result of every operation is followed to the end of its
    memory, real or imagined, so that views count once; what an operation uses inside itself is not seen.
    """
    with _PeakMemoryMode() as live:
        for each in resident:
            tensors = [*each.parameters(), *each.buffers()] if isinstance(each, nn.Module) else list_tensors(each)
            for tensor in tensors:
                live.track(tensor)
        run()
    return live.peak


class _PeakMemoryMode(TorchDispatchMode):
    """Follow every tensor's memory from the operation that made it until it is freed."""

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
        """Count a tensor's memory, unless it is counted already, until it is freed."""
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
