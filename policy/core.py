"""A policy in the contract's units: network, normalisation and tokens behind a few calls, to learn and to decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .checkpoint.folder import Checkpoint, read_checkpoint
from .contract import Contract
from .network.architecture import MAY_BE_SWITCHED_ON, Architecture, switched_on
from .network.capture import CapturedPolicy
from .network.history import LABELLED, Memory, Past
from .network.model import Decision, Instructed, SaccadeModel, chunk_loss, grounding_loss
from .network.tokenizer import TOKENIZER, make_tokenizer
from .normalization import Normalizer
from .pretrained.adaptation import Adaptation, adapt, fold, read_adaptation


@dataclass(frozen=True)
class Demonstrated:
    """A batch of demonstrated decisions, in the contract's units.

    `images` uint8 [B, V, 3, H, W]; `instructions`: B sentences; `state` [B, S]; `action` [B, T, A]; `padded` boolean
    [B, T], true past the episode's end; `grounding`: None or labels [B, 6 + V*2*2]: the two points in the arm's frame,
    then where each view sees them, as fractions of the picture; `past`: what a policy with history remembers.
    """

    images: torch.Tensor
    instructions: Sequence[str]
    state: torch.Tensor
    action: torch.Tensor
    padded: torch.Tensor
    grounding: torch.Tensor | None = None
    past: Past | None = None


def build_model(architecture: Architecture, contract: Contract) -> SaccadeModel:
    """Build the network for a contract; raises InputError when its cameras do not suit this network."""
    sizes = {(camera.height, camera.width) for camera in contract.cameras}
    height, width = next(iter(sizes))
    # A pretrained tower has patches of a size of its own, and says so itself.
    multiple = 1 if architecture.towers else 16
    if len(sizes) > 1 or height != width or height % multiple:
        raise InputError(
            "contract.cameras",
            got=", ".join(map(str, contract.cameras)),
            expected=f"one square size for all, a multiple of {multiple} pixels",
            fix="Resize when recording: saccade collect --image-size 128.",
        )
    return SaccadeModel(
        architecture,
        views=len(contract.cameras),
        image_size=height,
        state=len(contract.state.names),
        action=len(contract.action.names),
        chunk=contract.chunk,
    )


class Core:
    """The network with its contract: `losses` to learn from demonstrations, `decide` to act."""

    def __init__(self, architecture: Architecture, contract: Contract, tokenizer_text: str | None = None) -> None:
        """`tokenizer_text` is that of the trunk's `tokenizer.json`, where the architecture has one."""
        self.architecture, self.contract, self.tokenizer_text = architecture, contract, tokenizer_text
        # Before the network, which is slow to build: a missing tokenizer is told at once.
        self.tokenizer = make_tokenizer(architecture, tokenizer_text)
        self.model = build_model(architecture, contract)
        self.normalizer = Normalizer(contract.normalization)
        self.adaptation: Adaptation | None = None
        self.fresh: tuple[str, ...] = ()
        """Parameters that the checkpoint which it was loaded from did not have yet."""
        self.skills: tuple[str, ...] = ()
        """The skills of a merged policy, see `merging.merged`; none of any other."""

    def adapt(self, adaptation: Adaptation) -> None:
        """Put factors beside the pretrained weights, which then stay as they are: see `adaptation.adapt`."""
        adapt(self.model, adaptation)
        self.adaptation = adaptation

    def fold(self) -> None:
        """Add the factors to the weights, if there are any, and remove them."""
        if self.adaptation is not None:
            fold(self.model)
            self.adaptation = None

    def losses(
        self, batch: Demonstrated, model: torch.nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, Decision]:
        """Return the action loss [B], the grounding loss (a scalar, zero without labels) and the decision.

        `model` stands in for the network where a wrapper for many processes has to be called in its place. Raises
        InputError for labels of other cameras.
        """
        state = batch.state.float()
        tokens = self.tokenizer(batch.instructions).to(state.device)
        network = self.model if model is None else model
        decision = network(batch.images, tokens, self.normalizer.encode_state(state), batch.past)
        target = self.normalizer.encode_actions(batch.action.float(), state)
        action = chunk_loss(decision.actions, target, batch.padded)
        if batch.grounding is None:
            # What nothing teaches still takes part, or training in several processes would wait for its gradient.
            untaught = action.new_zeros(()) if decision.recalled is None else 0 * decision.recalled.sum()
            return action, untaught, decision
        return action, grounding_loss(decision, *self._labels(batch.grounding)), decision

    def _labels(self, grounding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where each view sees the labelled points, [B, V, LABELLED, 2], and where they are, [B, space]."""
        views, space = len(self.contract.cameras), 3 * LABELLED
        width = space + views * LABELLED * 2
        if grounding.shape[1:] != (width,):
            raise InputError(
                "grounding",
                got=f"labels of shape {list(grounding.shape[1:])}",
                expected=f"[{width}], for {views} cameras",
                fix="Record with `saccade collect`, or leave the feature out of the dataset.",
            )
        return grounding[:, space:].unflatten(1, (views, LABELLED, 2)), grounding[:, :space]

    @torch.inference_mode()
    def instruct(self, instructions: Sequence[str]) -> Instructed:
        """Prepare for B instructions; it holds for as long as the weights do."""
        return self.model.instruct(self.tokenizer(instructions).to(self.model.view_condition.device))

    @torch.inference_mode()
    def describe(self, images: torch.Tensor, instructions: Sequence[str], state: torch.Tensor) -> torch.Tensor:
        """Return features [B, d] of observations under B instructions: see `SaccadeModel.describe`."""
        device = self.model.view_condition.device
        tokens = self.tokenizer(instructions).to(device)
        return self.model.describe(images.to(device), tokens, self.normalizer.encode_state(state.to(device)))

    @torch.inference_mode()
    def nothing_remembered(self, batch: int) -> Memory | None:
        """Return the memory of B episodes that begin; None for a policy without history."""
        return self.model.nothing_remembered(batch)

    @torch.inference_mode()
    def decide(
        self,
        images: torch.Tensor,
        instructed: Instructed,
        state: torch.Tensor,
        captured: CapturedPolicy | None = None,
        memory: Memory | None = None,
    ) -> tuple[torch.Tensor, Decision]:
        """Return the chunk [B, T, A] in the contract's units, and what was looked at.

        A `captured` policy, which has the instruction already, stands in for the network. `memory`: what a policy with
        history remembers of this episode, None for nothing; decisions are the contract's `execute` steps apart.
        """
        device = self.model.view_condition.device
        images, state = images.to(device), state.to(device)
        encoded = self.normalizer.encode_state(state)
        if captured is None:
            decision = self.model.decide(images, instructed, encoded, memory)
        else:
            decision = captured.decide(images, encoded, memory)
        return self.normalizer.decode_actions(decision.actions, state), decision

    @torch.inference_mode()
    def capture(self, instructed: Instructed) -> CapturedPolicy:
        """Capture a decision under B instructions in a CUDA graph; it is warm and ready then.

        Raises InputError for a policy that is not on a CUDA device.
        """
        batch, camera = len(instructed.text), self.contract.cameras[0]
        device = self.model.view_condition.device
        images = torch.zeros(
            batch, len(self.contract.cameras), 3, camera.height, camera.width, dtype=torch.uint8, device=device
        )
        state = torch.zeros(batch, len(self.contract.state.names), device=device)
        return CapturedPolicy(self.model, images, instructed, state)


def architecture_from_dict(values: Mapping[str, Any], source: str) -> Architecture:
    """Read an architecture back; raises InputError for fields that this version does not know.

    A field that is missing is younger than the checkpoint; its default is what was done before there was a choice.
    """
    unknown = sorted(set(values) - set(Architecture.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"{source}: architecture",
            got=f"unknown fields: {', '.join(unknown)}",
            expected="the fields that this version of Saccade knows",
            fix="Use the version that wrote the checkpoint.",
        )
    return Architecture(**values)


PREFIX = "model."
"""How the names of the network's weights begin in a checkpoint."""

SKILLS = "skills.json"
"""The file of a merged checkpoint that says which skills it has, and how they were merged."""


def load_core(
    folder: str | Path,
    *,
    fold: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    change: Sequence[str] = (),
) -> Core:
    """Read a checkpoint folder and return its policy, ready to act; raises InputError for whatever does not fit.

    The factors of an adapted policy are folded into its weights, or kept apart, to go on learning. `change`: fields of
    the architecture to switch on, see `architecture.switched_on`; parts that come with them start as the identity, and
    `Core.fresh` names their parameters.
    """
    checkpoint = read_checkpoint(folder)
    values = checkpoint.config.get("architecture")
    if not isinstance(values, dict):
        raise InputError(
            f"{folder}/config.json", got="no architecture", expected="a Saccade checkpoint", fix="Check the path."
        )
    learned = architecture_from_dict(values, f"{folder}/config.json")
    architecture = switched_on(learned, change)
    grows = any(getattr(architecture, name) and not getattr(learned, name) for name in MAY_BE_SWITCHED_ON)
    adaptation = read_adaptation(checkpoint.config, f"{folder}/config.json")
    text = read_tokenizer_text(folder, checkpoint, architecture)
    if SKILLS in checkpoint.provenance["files"]:
        from .merging.merged import load_merged

        return load_merged(folder, checkpoint, architecture, text, device=device, dtype=dtype)
    # Built without memory: seven billion random numbers, only to be replaced, take minutes and 28 GB.
    with torch.device("meta"):
        core = Core(architecture, checkpoint.contract, text)
        if adaptation is not None:
            core.adapt(adaptation)
    # Copied, since in the file they are not aligned, for which a processor rounds in another order.
    tensors = {name: tensor.to(device, dtype, copy=True) for name, tensor in network_tensors(checkpoint).items()}
    core.fresh = load_tensors(core.model, tensors, str(folder), grow=grows)
    if fold:
        core.fold()
    core.model.eval()
    return core


def network_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights by their names in the network: without what merging and its router go by."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(PREFIX)}


def read_tokenizer_text(folder: str | Path, checkpoint: Checkpoint, architecture: Architecture) -> str | None:
    """Return the text of a checkpoint's tokenizer, None where it reads bytes; InputError if it is not part of it."""
    if architecture.tokenizer == "bytes":
        return None
    if TOKENIZER not in checkpoint.provenance["files"]:
        raise InputError(
            f"checkpoint {folder}", got=f"no {TOKENIZER}", expected="the trunk's tokenizer", fix="Copy it again."
        )
    return (Path(folder) / TOKENIZER).read_text(encoding="utf-8")


def load_tensors(
    model: SaccadeModel, tensors: Mapping[str, torch.Tensor], source: str, *, grow: bool = False
) -> tuple[str, ...]:
    """Load weights, every one of them; raises InputError that names what is missing, left over or of another shape.

    A model that was built on the meta device takes the tensors themselves, on their device and in their dtype. With
    `grow`, a part that has a method `start_as_identity`, and of which nothing is there, starts so; the names of such
    parameters are returned.
    """
    tensors, fresh = dict(tensors), {}
    for name, part in model.named_modules():
        if grow and hasattr(part, "start_as_identity") and not any(each.startswith(f"{name}.") for each in tensors):
            like = next(iter(tensors.values()))
            part.to_empty(device=like.device).to(like.dtype).start_as_identity()
            fresh |= {f"{name}.{each}": tensor for each, tensor in part.state_dict().items()}
    tensors |= fresh
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    other = sorted(name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape)
    if missing or extra or other:
        parts = [
            f"{len(names)} {what} ({names[0]}, ...)"
            for what, names in (("missing", missing), ("left over", extra), ("of another shape", other))
            if names
        ]
        raise InputError(
            f"weights in {source}",
            got="; ".join(parts),
            expected=f"exactly the {len(own)} tensors of this architecture",
            fix="The configuration and the weights are not of one checkpoint.",
        )
    without_memory = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(tensors, assign=without_memory)
    if without_memory:
        model.trunk.restore_rotation()
    return tuple(fresh)
