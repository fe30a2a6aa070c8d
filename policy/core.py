"""A policy in the contract's units: the network with its tokenizer and normalization, to train and to act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from .contract import Contract
from .network.architecture import Architecture
from .network.capture import CapturedPolicy
from .network.history import LABELLED_POINTS, FrameMemory, PastFrames
from .network.losses import TrainingLoss, chunk_loss, grounding_loss
from .network.model import InstructionPlan, PolicyOutput, SaccadeModel
from .network.tokenizer import make_tokenizer
from .normalization import Normalizer
from .pretrained.adaptation import LoraAdaptation, add_lora, fold_lora


@dataclass(frozen=True)
class DemonstrationBatch:
    """A batch of demonstrated decisions, in the contract's units.

    Attributes:
        images: uint8 [B, V, 3, H, W].
        instructions: B instructions.
        state: [B, S].
        action: [B, T, A].
        padded: Boolean [B, T], true past the end of the episode.
        grounding: Labels [B, 6 + V * 2 * 2] or None: the two points in the arm's frame, in metres, then where each view
            sees them, as fractions of the image.
        past_frames: The frames that a policy with history remembers.
    """

    images: torch.Tensor
    instructions: Sequence[str]
    state: torch.Tensor
    action: torch.Tensor
    padded: torch.Tensor
    grounding: torch.Tensor | None = None
    past_frames: PastFrames | None = None


def build_model(architecture: Architecture, contract: Contract) -> SaccadeModel:
    """Build the network for a contract.

    Raises:
        InputError: The contract's cameras do not fit the network.
    """
    sizes = {(camera.height, camera.width) for camera in contract.cameras}
    height, width = next(iter(sizes))
    # A pretrained tower checks its own patch size.
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


class PolicyCore:
    """A policy in the contract's units: the network, its tokenizer and its normalization.

    `loss` serves training, `decide` serves control.

    Attributes:
        architecture: The sizes and choices of the network.
        contract: Cameras, state, action, statistics and chunk length.
        tokenizer_text: Text of the trunk's `tokenizer.json`; None for byte tokens.
        adaptation: The LoRA adaptation of `add_lora`; None without one.
        new_parameters: Parameters that the loaded checkpoint did not have: they start as the identity.
        skills: Names of the skills of a merged policy, see `merging.merged`; empty for any other policy.
    """

    def __init__(self, architecture: Architecture, contract: Contract, tokenizer_text: str | None = None) -> None:
        self.architecture, self.contract, self.tokenizer_text = architecture, contract, tokenizer_text
        # Before the network, which takes long to build, so that a missing tokenizer fails at once.
        self.tokenizer = make_tokenizer(architecture, tokenizer_text)
        self.model = build_model(architecture, contract)
        self.normalizer = Normalizer(contract.normalization)
        self.adaptation: LoraAdaptation | None = None
        self.new_parameters: tuple[str, ...] = ()
        self.skills: tuple[str, ...] = ()

    def add_lora(self, adaptation: LoraAdaptation) -> None:
        """Add LoRA factors to the pretrained weights, which are frozen then; see `adaptation.add_lora`."""
        add_lora(self.model, adaptation)
        self.adaptation = adaptation

    def fold_lora(self) -> None:
        """Merge the LoRA factors, if there are any, into the weights."""
        if self.adaptation is not None:
            fold_lora(self.model)
            self.adaptation = None

    def loss(
        self, batch: DemonstrationBatch, model: torch.nn.Module | None = None
    ) -> tuple[TrainingLoss, PolicyOutput]:
        """Run the network on demonstrations and compute the training loss.

        Args:
            batch: Demonstrated decisions in the contract's units.
            model: A wrapper to call in place of the network, such as DistributedDataParallel.

        Returns:
            The loss, and what the network computed.

        Raises:
            InputError: The grounding labels belong to other cameras.
        """
        state = batch.state.float()
        tokens = self.tokenizer(batch.instructions).to(state.device)
        network = self.model if model is None else model
        output: PolicyOutput = network(batch.images, tokens, self.normalizer.encode_state(state), batch.past_frames)
        target = self.normalizer.encode_actions(batch.action.float(), state)  # [B, T, A]
        action = chunk_loss(output.actions, target, batch.padded)  # [B]
        if batch.grounding is not None:
            grounding = grounding_loss(output, *self._split_grounding(batch.grounding))
        elif output.recalled_points is not None:
            # Zero, but part of the graph: DDP hangs on parameters that get no gradient.
            grounding = 0 * output.recalled_points.sum()
        else:
            grounding = action.new_zeros(())
        return TrainingLoss(action, grounding), output

    def _split_grounding(self, grounding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split labels into points of each view [B, V, LABELLED_POINTS, 2] and in space [B, 3 * LABELLED_POINTS]."""
        views, space = len(self.contract.cameras), 3 * LABELLED_POINTS
        width = space + views * LABELLED_POINTS * 2
        if grounding.shape[1:] != (width,):
            raise InputError(
                "grounding",
                got=f"labels of shape {list(grounding.shape[1:])}",
                expected=f"[{width}], for {views} cameras",
                fix="Collect the dataset with `saccade collect`, or remove its feature grounding.",
            )
        return grounding[:, space:].unflatten(1, (views, LABELLED_POINTS, 2)), grounding[:, :space]

    @torch.inference_mode()
    def encode_instruction(self, instructions: Sequence[str]) -> InstructionPlan:
        """Compute what depends on B instructions alone; valid until the weights change."""
        return self.model.encode_instruction(self.tokenizer(instructions).to(self.model.view_condition.device))

    @torch.inference_mode()
    def routing_features(self, images: torch.Tensor, instructions: Sequence[str], state: torch.Tensor) -> torch.Tensor:
        """Return the features [B, C + D] that select a skill; see `SaccadeModel.routing_features`."""
        device = self.model.view_condition.device
        tokens = self.tokenizer(instructions).to(device)
        return self.model.routing_features(images.to(device), tokens, self.normalizer.encode_state(state.to(device)))

    @torch.inference_mode()
    def empty_memory(self, batch: int) -> FrameMemory | None:
        """Return the empty memory of B new episodes; None for a policy without history."""
        return self.model.empty_memory(batch)

    @torch.inference_mode()
    def decide(
        self,
        images: torch.Tensor,
        instruction_plan: InstructionPlan,
        state: torch.Tensor,
        captured: CapturedPolicy | None = None,
        memory: FrameMemory | None = None,
    ) -> tuple[torch.Tensor, PolicyOutput]:
        """Decide one chunk of actions for each row.

        Args:
            images: uint8 [B, V, 3, H, W].
            instruction_plan: The result of `encode_instruction`.
            state: [B, S], in the contract's units.
            captured: A captured policy to use in place of the network; it has its instruction already.
            memory: What a policy with history remembers of each episode; None for nothing. Decisions are the contract's
                `execute` steps apart.

        Returns:
            Actions [B, T, A] in the contract's units, and the network's output.
        """
        device = self.model.view_condition.device
        images, state = images.to(device), state.to(device)
        encoded = self.normalizer.encode_state(state)
        if captured is None:
            output = self.model.decide(images, instruction_plan, encoded, memory)
        else:
            output = captured.decide(images, encoded, memory)
        return self.normalizer.decode_actions(output.actions, state), output

    @torch.inference_mode()
    def capture(self, instruction_plan: InstructionPlan) -> CapturedPolicy:
        """Capture a decision under B instructions in a CUDA graph, warmed up.

        Raises:
            InputError: The policy is not on a CUDA device.
        """
        batch, camera = len(instruction_plan.text), self.contract.cameras[0]
        device = self.model.view_condition.device
        images = torch.zeros(
            batch, len(self.contract.cameras), 3, camera.height, camera.width, dtype=torch.uint8, device=device
        )
        state = torch.zeros(batch, len(self.contract.state.names), device=device)
        return CapturedPolicy(self.model, images, instruction_plan, state)
