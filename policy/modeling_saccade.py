"""A Saccade policy for LeRobot's commands: it takes LeRobot's batches and returns losses and actions."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import draccus
import torch
from lerobot.configs import PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy

from ..errors import InputError
from .checkpoint.contents import SKILLS_FILE, load_tensors, network_tensors, read_tokenizer_text
from .checkpoint.folder import (
    CONTRACT_FILE,
    PROVENANCE_FILE,
    Checkpoint,
    collect_provenance,
    read_checkpoint,
    write_checkpoint,
)
from .configuration_saccade import SaccadeConfig
from .contract import Contract
from .core import DemonstrationBatch, PolicyCore
from .datasets.columns import ACTION_KEY, GROUNDING_KEY, STATE_KEY, DatasetColumns, read_columns
from .datasets.dataset_contract import dataset_offer, fit_dataset_contract
from .lerobot_files import camera_name
from .network.history import FrameMemory, PastFrames
from .network.model import InstructionPlan
from .network.tokenizer import TOKENIZER_FILE

NETWORK_OPTIONS = ("input_features", "output_features", "chunk_size", "n_action_steps", "architecture", "adaptation")
"""The options that define a policy's network, not its training."""


class SaccadePolicy(PreTrainedPolicy):
    """A Saccade policy as LeRobot trains and runs it.

    A new policy takes its contract with its statistics from the demonstrations; a loaded policy has its own. States and
    actions are in the contract's units: the policy normalizes, LeRobot does not.

    Args:
        config: The options.
        dataset_stats: LeRobot's statistics; not used.
        dataset_meta: LeRobot's metadata of the demonstrations, whose root is read.
        contract: The contract of a loaded policy.
        tokenizer_text: The trunk's `tokenizer.json`.

    Raises:
        InputError: There are neither demonstrations nor a contract, or the two do not fit.
    """

    config: SaccadeConfig

    # LeRobot declares both as None and requires subclasses to set them.
    config_class = SaccadeConfig  # pyright: ignore[reportAssignmentType]
    name = "saccade"  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        config: SaccadeConfig,
        *,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: Any = None,
        contract: Contract | None = None,
        tokenizer_text: str | None = None,
    ) -> None:
        super().__init__(config)
        del dataset_stats  # LeRobot's quantiles are approximate; read_columns gives exact ones
        config.validate_features()
        columns = None if dataset_meta is None else read_columns(Path(dataset_meta.root))
        if contract is None:
            contract = self._fit_contract(config, columns)
        elif columns is not None:
            contract.check(dataset_offer(columns))
        contract = _reconcile_contract(contract, config)
        core = PolicyCore(config.architecture, contract, tokenizer_text)
        if config.adaptation is not None:
            core.add_lora(config.adaptation)
        self.model = core.model
        self.core = core
        self._camera_keys = {camera_name(key): key for key in config.image_features}
        self._fingerprint = None if columns is None else columns.fingerprint
        self._grounding_labels = _grounding_labels(columns, contract)
        self.reset()

    @staticmethod
    def _fit_contract(config: SaccadeConfig, columns: DatasetColumns | None) -> Contract:
        if columns is None:
            raise InputError(
                "policy without statistics",
                got="neither demonstrations nor a checkpoint",
                expected="one of them",
                fix="Give --policy.path=FOLDER of a trained policy, or train one with --dataset.root.",
            )
        contract = fit_dataset_contract(columns, chunk=config.chunk_size, execute=config.n_action_steps)
        camera_names = {camera_name(key) for key in config.image_features}
        return dataclasses.replace(contract, cameras=tuple(c for c in contract.cameras if c.name in camera_names))

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return two groups of parameters: matrices with weight decay; biases, norms and learned tokens without."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim >= 2 and parameter.shape[0] > 1]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in trained if id(parameter) not in chosen]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def reset(self) -> None:
        """Start an episode: forget past frames, queued actions and the instruction."""
        self._queue: deque[torch.Tensor] = deque()
        self._memory: FrameMemory | None = None
        self._instruction_plan: tuple[list[str], InstructionPlan] | None = None

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of demonstrated decisions, a scalar or with `reduction="none"` [B], and its parts to log."""
        self._instruction_plan = None  # what was prepared holds for the weights of before
        images, instructions, state = self._read_observations(batch)
        past_frames = None
        if images.ndim == 6:
            past_frames = self._past_frames(images, batch)
            images, state = images[:, 0], state[:, 0]
        grounding = None
        if self._grounding_labels is not None and self.config.grounding and "index" in batch:
            grounding = self._grounding_labels[batch["index"].cpu()].to(state.device)
        demonstration_batch = DemonstrationBatch(
            images=images,
            instructions=instructions,
            state=state,
            action=batch[ACTION_KEY],
            padded=batch[f"{ACTION_KEY}_is_pad"],
            grounding=grounding,
            past_frames=past_frames,
        )
        loss, _ = self.core.loss(demonstration_batch)
        per_row = loss.per_row(self.config.grounding)  # [B]
        parts = {"action_loss": loss.action.mean().item(), "grounding_loss": loss.grounding.item()}
        return (per_row if reduction == "none" else per_row.mean()), parts

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return a chunk [B, T, A] in the contract's units; a policy with history remembers the frame."""
        self.eval()
        images, instructions, state = self._read_observations(batch)
        if self._instruction_plan is None or self._instruction_plan[0] != instructions:
            self._instruction_plan = instructions, self.core.encode_instruction(instructions)
        if self._memory is None or len(self._memory.valid) != len(images):
            self._memory = self.core.empty_memory(len(images))
        chunk, decision = self.core.decide(images, self._instruction_plan[1], state, memory=self._memory)
        if self._memory is not None and decision.frame_tokens is not None:
            self._memory = self._memory.with_new_frame(decision.frame_tokens)
        return chunk

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the next action [B, A]; after `n_action_steps` actions the policy decides a new chunk."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def _past_frames(self, images: torch.Tensor, batch: Mapping[str, Any]) -> PastFrames:
        """Return the past frames of images [B, 1 + H, V, 3, height, width], the newest first."""
        key = f"{self._camera_keys[self.core.contract.cameras[0].name]}_is_pad"
        if key not in batch:
            raise InputError(
                key, got="nothing", expected="which frames are before the episode", fix="Keep that key in the batch."
            )
        valid = ~batch[key][:, 1:].bool()
        rows, frames = valid.shape
        frame_index = torch.arange(rows * frames, device=valid.device).unflatten(0, (rows, frames)) + rows
        batch_row = torch.arange(rows, device=valid.device).repeat_interleave(frames)
        return PastFrames(images[:, 1:].flatten(0, 1), batch_row, frame_index.masked_fill(~valid, -1))

    def _read_observations(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return images uint8 [B, V, 3, H, W], instructions and state [B, S] of a LeRobot batch.

        With history, images and state of a training batch have an axis of time steps after B, the current one first.
        """
        contract = self.core.contract
        views = []
        for camera in contract.cameras:
            key = self._camera_keys[camera.name]
            if key not in batch:
                fix = "Rename a camera to it: --rename_map."
                raise InputError(key, got="nothing", expected="the images of a camera", fix=fix)
            if batch[key].shape[-3:] != (3, camera.height, camera.width):
                raise InputError(
                    key,
                    got=f"images of shape {list(batch[key].shape[-3:])}",
                    expected=f"[3, {camera.height}, {camera.width}], as the contract says",
                    fix="Set the camera to that size.",
                )
            views.append(batch[key])
        images = torch.stack(views, dim=-4)
        if images.is_floating_point():
            # LeRobot divides bytes by 255: undo it, so that actions equal those of `saccade eval` bit for bit.
            images = images.mul(255).round().clamp(0, 255).to(torch.uint8)
        instructions = batch.get("task")
        if isinstance(instructions, str):
            instructions = [instructions]
        if not instructions or not all(instructions):
            raise InputError(
                "task", got="no instruction", expected="an instruction", fix="Set the instruction with --task."
            )
        return images, list(instructions), batch[STATE_KEY]

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a complete Saccade checkpoint into a folder in which LeRobot may have files, too."""
        staging = save_directory / ".saccade"
        shutil.rmtree(staging, ignore_errors=True)
        provenance = collect_provenance([Path(sys.argv[0]).name, *sys.argv[1:]], {}, self._fingerprint)
        encoded = draccus.encode(self.config, PreTrainedConfig)
        texts = {TOKENIZER_FILE: text} if (text := self.core.tokenizer_text) else {}
        write_checkpoint(staging, state_dict or self.state_dict(), encoded, self.core.contract, provenance, texts)
        # The provenance has the digests of the others and comes last: after a kill the folder does not verify.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == PROVENANCE_FILE):
            os.replace(path, save_directory / path.name)
        staging.rmdir()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: SaccadeConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: dict[str, str] | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = True,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: Any = None,
    ) -> SaccadePolicy:
        """Load a checkpoint from a folder or the Hugging Face hub, and verify every file and weight.

        The arguments are LeRobot's; `strict` must be true, `resume_download` and `proxies` have no effect.

        Raises:
            InputError: A file is missing or changed, the weights are those of another network, or the demonstrations of
                `dataset_meta` do not fit the contract.
        """
        del resume_download, proxies
        if not strict:
            fix = "Leave strict true: a policy with random weights must not act."
            raise InputError("strict", got=False, expected=True, fix=fix)
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    force_download=force_download,
                    local_files_only=local_files_only,
                )
            )
        checkpoint = read_checkpoint(folder)
        if SKILLS_FILE in checkpoint.provenance["files"]:
            raise InputError(
                f"policy {folder}",
                got="a merged policy",
                expected="a policy that is not merged: LeRobot's commands run no others",
                fix="Use `saccade eval`, `saccade serve` or `saccade run`.",
            )
        if config is None:
            config = cast(SaccadeConfig, PreTrainedConfig.from_pretrained(folder))
        elif not (config.input_features or config.output_features):
            # `--policy.type=saccade` alone does not define the network; LeRobot reads these options, too.
            own = PreTrainedConfig.from_pretrained(folder)
            for name in NETWORK_OPTIONS:
                setattr(config, name, getattr(own, name))
        policy = cls(
            config,
            dataset_stats=dataset_stats,
            dataset_meta=dataset_meta,
            contract=checkpoint.contract,
            tokenizer_text=read_tokenizer_text(folder, checkpoint, config.architecture),
        )
        policy._load(checkpoint, str(folder))
        policy.to(config.device)
        policy.eval()
        return policy

    def _load(self, checkpoint: Checkpoint, source: str) -> None:
        load_tensors(self.model, network_tensors(checkpoint), source)
        if self._fingerprint is None:
            self._fingerprint = checkpoint.provenance.get("dataset_fingerprint")


def _reconcile_contract(contract: Contract, config: SaccadeConfig) -> Contract:
    """Return the contract with the configured `n_action_steps`; InputError if the options do not fit it."""
    cameras = {camera_name(key) for key in config.image_features}
    names = [camera.name for camera in contract.cameras]
    for option, got, expected in (
        ("chunk_size", config.chunk_size, contract.chunk),
        ("input_features", sorted(cameras), sorted(names)),
        ("observation.state", _feature_width(config.robot_state_feature), len(contract.state.names)),
        ("action", _feature_width(config.action_feature), len(contract.action.names)),
        *([("n_action_steps", config.n_action_steps, contract.execute)] if config.architecture.history else []),
    ):
        if got != expected and not (option == "input_features" and set(names) <= cameras):
            raise InputError(
                option,
                got=got,
                expected=f"{expected}, as {CONTRACT_FILE} says",
                fix="Leave it as the checkpoint has it.",
            )
    return dataclasses.replace(contract, execute=config.n_action_steps)


def _feature_width(feature: PolicyFeature | None) -> int:
    """Return the width of a vector feature; 0 if it is missing, which fits no contract."""
    return 0 if feature is None else feature.shape[0]


def _grounding_labels(columns: DatasetColumns | None, contract: Contract) -> torch.Tensor | None:
    """Return the dataset's grounding labels [F, G], or None if it has none for the cameras of this policy.

    They are read from the dataset, because LeRobot's processors drop features that are neither observation nor action.
    """
    if columns is None or GROUNDING_KEY not in columns.vectors:
        return None
    if [camera_name(key) for key in columns.camera_keys] != [camera.name for camera in contract.cameras]:
        return None
    return torch.from_numpy(columns.vectors[GROUNDING_KEY].copy())  # a parquet column is read-only
