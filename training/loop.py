"""The training loop, on Accelerate: one process or many, resumed exactly, logged as JSON lines.

Which frames make up step k follows from the seed, the batch size, k and the rank alone. So a resumed run needs no state
of a data loader or of a random generator, and ranks see different frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..errors import InputError
from ..policy.contract import Contract
from ..policy.core import LABELLED_POINTS, DemonstrationBatch, PolicyCore
from ..policy.lerobot_files import camera_name
from ..policy.network.history import PastFrames
from .averaging import WeightAverage
from .batches import frame_order, prefetch
from .configuration import LoopConfig
from .dataset import DemonstrationDataset
from .log import TrainingLog
from .state import TrainingState, read_state, write_state

STATE_FOLDER, CHECKPOINT_FOLDER, LOG_FILE = "training_state", "checkpoint", "log.jsonl"
"""What the loop leaves in a training's folder."""


@dataclass(frozen=True)
class TrainingResult:
    """Where training ended; `loss`, `grounding` and `samples_per_second` are those of the log's last line."""

    steps: int
    seconds: float
    loss: float
    grounding: float
    samples_per_second: float
    checkpoint: Path


def train(
    core: PolicyCore,
    dataset: DemonstrationDataset,
    config: LoopConfig,
    folder: Path,
    *,
    save: Callable[[Path, dict[str, torch.Tensor], int], object],
    accelerator: Accelerator,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train `core` on `dataset` and leave checkpoints in `folder`; return where it ended.

    `save(path, tensors, step)` writes a checkpoint of the averaged weights; `report` gets every line of the log. Raises
    InputError when a loss is no longer finite, when the disk is full, and when the state to resume from does not fit;
    the last checkpoint and the last state stay whole.
    """
    main = accelerator.is_main_process
    trainer = Trainer(core, config, accelerator)
    start = (
        _restore_state(folder / STATE_FOLDER, trainer, accelerator) if resume else TrainingState(step=0, seconds=0.0)
    )
    log = TrainingLog(folder / LOG_FILE, start.step) if main else None
    log_line = log.lines[-1] if log and log.lines else {}
    meter = StepMeter(start.seconds)
    demonstrations = _device_batches(dataset, core.contract, config, start.step, accelerator)
    bar = tqdm(total=config.steps, initial=start.step, desc="training", unit="step", disable=not (progress and main))
    with bar, closing(demonstrations) as batches:
        for step, batch in enumerate(batches, start.step):
            meter.add(trainer.train_step(step, batch))
            steps_done = step + 1
            is_saved = steps_done % config.save_every == 0 or steps_done == config.steps
            if is_saved or steps_done % config.log_every == 0:
                log_line = meter.log_line(
                    steps_done, config.learning_rate_at(step), config.batch_size * accelerator.num_processes
                )
                bar.set_postfix(loss=f"{log_line['loss']:.4f}", pointing=f"{log_line['grounding']:.2f}")
                if log is not None:
                    log.write(log_line)
                    if report is not None:
                        report(log_line)
            if is_saved and main:
                save(folder / CHECKPOINT_FOLDER, trainer.average.tensors(), steps_done)
                state = TrainingState(steps_done, meter.seconds)
                write_state(folder / STATE_FOLDER, state, trainer.model, trainer.optimizer, trainer.average)
            bar.update()
    accelerator.wait_for_everyone()
    return TrainingResult(
        steps=max(start.step, config.steps),
        seconds=meter.seconds,
        loss=log_line.get("loss", math.nan),
        grounding=log_line.get("grounding", math.nan),
        samples_per_second=log_line.get("samples_per_second", math.nan),
        checkpoint=folder / CHECKPOINT_FOLDER,
    )


class Trainer:
    """The network with all that a step changes: its weights, the optimiser's moments, the running average."""

    def __init__(self, core: PolicyCore, config: LoopConfig, accelerator: Accelerator) -> None:
        self._core, self._config, self._accelerator = core, config, accelerator
        self.model = core.model.to(accelerator.device).train()
        optimizer = torch.optim.AdamW(_parameter_groups(self.model, config.weight_decay), lr=config.learning_rate)
        self._prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        # After `prepare`, which hands every process the weights of the first.
        self.average = WeightAverage(self.model, config.average)

    def train_step(self, step: int, batch: DemonstrationBatch) -> torch.Tensor:
        """Take step number `step`; return its action loss, pointing loss and gradient norm, float32 [3]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate_at(step)
        with self._accelerator.autocast():
            loss, _ = self._core.loss(batch, self._prepared)
            total = loss.total(self._config.grounding)
        self._accelerator.backward(total)
        norm = self._accelerator.clip_grad_norm_(self._prepared.parameters(), self._config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return torch.stack([part.detach().float() for part in (loss.action.mean(), loss.grounding, norm)])


class StepMeter:
    """Gathers what the steps since the log's last line have measured, and the time that they took."""

    def __init__(self, seconds: float) -> None:
        self._seconds_before, self._began = seconds, time.perf_counter()
        self._line_began, self._step_losses = self._began, []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._seconds_before + time.perf_counter() - self._began

    def add(self, step_losses: torch.Tensor) -> None:
        """Take in what a step has measured; it is not looked at before the line, so that a GPU need not wait."""
        self._step_losses.append(step_losses)

    def log_line(self, step: int, learning_rate: float, samples: int) -> dict[str, Any]:
        """Return the log's line at `step`, means since the last one; a step took `samples` frames.

        Raises InputError when a mean is not finite.
        """
        loss, grounding, norm = torch.stack(self._step_losses).mean(0).tolist()
        if not all(map(math.isfinite, (loss, grounding, norm))):
            raise InputError(
                "training",
                got=f"loss {loss}, pointing loss {grounding} and gradient norm {norm} up to step {step}",
                expected="finite numbers",
                fix="Lower the learning rate; the last checkpoint is kept.",
            )
        now = time.perf_counter()
        rate = samples * len(self._step_losses) / (now - self._line_began)
        self._line_began, self._step_losses = now, []
        return {
            "step": step,
            "loss": loss,
            "grounding": grounding,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "samples_per_second": rate,
            "seconds": self.seconds,
        }


def _restore_state(folder: Path, trainer: Trainer, accelerator: Accelerator) -> TrainingState:
    # The main process first, as reading may have to put right what a kill has left.
    with accelerator.main_process_first():
        state = read_state(folder, trainer.model, trainer.optimizer, trainer.average)
    return state or TrainingState(step=0, seconds=0.0)


def _device_batches(
    dataset: DemonstrationDataset, contract: Contract, config: LoopConfig, start: int, accelerator: Accelerator
) -> Iterator[DemonstrationBatch]:
    """Yield this process's batch of every step from `start` on, on its device, with the contract's cameras."""
    device, views = accelerator.device, _view_indices(dataset, contract)
    frames = np.arange(0, len(dataset), config.stride)
    firsts = frame_order(frames, config, start, accelerator.process_index, accelerator.num_processes)
    order = (dataset.decision_runs(first, config.run) for first in firsts)
    with closing(prefetch(dataset, order)) as batches:
        for batch in batches:
            grounding = batch.get("grounding")
            yield DemonstrationBatch(
                images=batch["images"][:, views].to(device),
                instructions=[dataset.instructions[place] for place in batch["instruction"].tolist()],
                state=batch["state"].to(device),
                action=batch["action"].to(device),
                padded=batch["action_is_pad"].to(device),
                grounding=None if grounding is None else _labels_of_views(views, grounding, dataset).to(device),
                past_frames=_past_frames(batch, views, device),
            )


def _past_frames(batch: dict[str, torch.Tensor], views: list[int] | slice, device: torch.device) -> PastFrames | None:
    if "past_images" not in batch:
        return None
    return PastFrames(
        images=batch["past_images"][:, views].to(device),
        batch_row=batch["past_member"].to(device),
        place=batch["past_place"].to(device),
    )


def _view_indices(dataset: DemonstrationDataset, contract: Contract) -> list[int] | slice:
    """Return where the dataset has each of the contract's cameras: it may have more, in another order."""
    names = [camera_name(key) for key in dataset.camera_keys]
    contract_cameras = [camera.name for camera in contract.cameras]
    if missing := [name for name in contract_cameras if name not in names]:
        fix = "Choose demonstrations that were recorded with it."
        raise InputError("cameras", got=", ".join(names), expected=f"{missing[0]} among them", fix=fix)
    # A slice of all copies nothing.
    return slice(None) if names == contract_cameras else [names.index(name) for name in contract_cameras]


def _labels_of_views(views: list[int] | slice, grounding: torch.Tensor, dataset: DemonstrationDataset) -> torch.Tensor:
    """Keep the labels of some views: [B, 6 + all views * 4] to [B, 6 + views * 4]."""
    world_labels, view_labels = grounding.tensor_split([3 * LABELLED_POINTS], dim=1)
    cameras = len(dataset.camera_keys)
    if view_labels.shape[1] != cameras * LABELLED_POINTS * 2:
        return grounding  # the core refuses it, with what it expected
    return torch.cat([world_labels, view_labels.unflatten(1, (cameras, -1))[:, views].flatten(1)], dim=1)


def _parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave alone biases, norms and learned tokens, whose first dimension is one."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2 and len(parameter) > 1]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
