"""The training loop on Accelerate, for one process or many, with exact resume and a log of JSON lines.

The frames of step k depend only on the seed, the batch size, k and the rank. So a resumed run needs no state of a data
loader or random generator, and the ranks train on different frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
"""Names in the output folder of a training."""


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training.

    Attributes:
        steps: Finished steps, including those before a resume.
        seconds: Time of these steps.
        loss: Action loss in the last log line.
        grounding: Pointing loss in the last log line.
        samples_per_second: Frames per second of all processes in the last log line.
        checkpoint: Folder of the last checkpoint.
    """

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
    """Train `core` on `dataset` and write checkpoints, the training state and the log to `folder`.

    Args:
        core: The policy; its network is trained in place.
        dataset: The demonstrations.
        config: Options of the loop.
        folder: Output folder; it must exist.
        save: Called as `save(path, tensors, step)` to write a checkpoint of the averaged weights.
        accelerator: Device, precision and processes.
        resume: Continue from the training state in `folder`.
        progress: Show a progress bar.
        report: Called with every log line.

    Raises:
        InputError: A loss is not finite, the disk is full, or the state to resume from does not fit. The last
            checkpoint and the last state stay complete.
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
    """Takes training steps: holds the network, the optimizer and the averaged weights.

    Attributes:
        model: The network.
        optimizer: AdamW, prepared by Accelerate.
        average: The averaged weights.
    """

    def __init__(self, core: PolicyCore, config: LoopConfig, accelerator: Accelerator) -> None:
        self._core, self._config, self._accelerator = core, config, accelerator
        self.model = core.model.to(accelerator.device).train()
        optimizer = torch.optim.AdamW(_parameter_groups(self.model, config.weight_decay), lr=config.learning_rate)
        self._prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        # After `prepare`, which broadcasts the weights of the first process.
        self.average = WeightAverage(self.model, config.average)

    def train_step(self, step: int, batch: DemonstrationBatch) -> torch.Tensor:
        """Take step number `step` and return its action loss, pointing loss and gradient norm, float32 [3]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate_at(step)
        with self._accelerator.autocast():
            loss, _ = self._core.loss(batch, self._prepared)
            total = loss.total(self._config.grounding)
        self._accelerator.backward(total)
        # It is None with XLA alone.
        norm = cast(
            "torch.Tensor",
            self._accelerator.clip_grad_norm_(self._prepared.parameters(), self._config.gradient_clip),
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return torch.stack([part.detach().float() for part in (loss.action.mean(), loss.grounding, norm)])


class StepMeter:
    """Averages losses and measures the time between two log lines."""

    def __init__(self, seconds: float) -> None:
        """Start to measure; `seconds` is the time of training before a resume."""
        self._seconds_before, self._began = seconds, time.perf_counter()
        self._line_began = self._began
        self._step_losses: list[torch.Tensor] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before a resume."""
        return self._seconds_before + time.perf_counter() - self._began

    def add(self, step_losses: torch.Tensor) -> None:
        """Add the result of `Trainer.train_step`; it stays on the device until the log line, to save a sync."""
        self._step_losses.append(step_losses)

    def log_line(self, step: int, learning_rate: float, samples: int) -> dict[str, Any]:
        """Return the log line at `step`, with means over the steps since the last line.

        Args:
            step: Finished steps.
            learning_rate: Learning rate of the last step.
            samples: Frames of a step, of all processes.

        Raises:
            InputError: A mean is not finite.
        """
        loss, grounding, norm = torch.stack(self._step_losses).mean(0).tolist()
        if not all(map(math.isfinite, (loss, grounding, norm))):
            raise InputError(
                "training",
                got=f"loss {loss}, pointing loss {grounding} and gradient norm {norm} up to step {step}",
                expected="finite values",
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
    # The main process first: reading may have to restore a state whose replacement was interrupted.
    with accelerator.main_process_first():
        state = read_state(folder, trainer.model, trainer.optimizer, trainer.average)
    return state or TrainingState(step=0, seconds=0.0)


def _device_batches(
    dataset: DemonstrationDataset, contract: Contract, config: LoopConfig, start: int, accelerator: Accelerator
) -> Generator[DemonstrationBatch]:
    """Yield the batches of this process from step `start` on, on its device, with the cameras of the contract."""
    device, views = accelerator.device, _view_indices(dataset, contract)
    frames = np.arange(0, len(dataset), config.stride)
    firsts = frame_order(frames, config, start, accelerator.process_index, accelerator.num_processes)
    order = (dataset.decision_runs(first, config.run) for first in firsts)
    with closing(prefetch(dataset, order)) as batches:
        for batch in batches:
            grounding = batch.get("grounding")
            yield DemonstrationBatch(
                images=batch["images"][:, views].to(device),
                instructions=[dataset.instructions[number] for number in batch["instruction"].tolist()],
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
        frame_index=batch["past_place"].to(device),
    )


def _view_indices(dataset: DemonstrationDataset, contract: Contract) -> list[int] | slice:
    """Return the index of each camera of the contract in the dataset, which may have more, in another order."""
    names = [camera_name(key) for key in dataset.camera_keys]
    contract_cameras = [camera.name for camera in contract.cameras]
    if missing := [name for name in contract_cameras if name not in names]:
        fix = "Choose demonstrations that were recorded with this camera."
        raise InputError("cameras", got=", ".join(names), expected=f"{missing[0]} among them", fix=fix)
    # A slice makes a view, a list a copy.
    return slice(None) if names == contract_cameras else [names.index(name) for name in contract_cameras]


def _labels_of_views(views: list[int] | slice, grounding: torch.Tensor, dataset: DemonstrationDataset) -> torch.Tensor:
    """Select the labels of some views: [B, 6 + all views * 4] to [B, 6 + views * 4]."""
    world_labels, view_labels = grounding.tensor_split([3 * LABELLED_POINTS], dim=1)
    cameras = len(dataset.camera_keys)
    if view_labels.shape[1] != cameras * LABELLED_POINTS * 2:
        return grounding  # the core raises a clear error
    return torch.cat([world_labels, view_labels.unflatten(1, (cameras, -1))[:, views].flatten(1)], dim=1)


def _parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Apply weight decay to matrices, but not to biases, norms and learned tokens, whose first dimension is one."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2 and len(parameter) > 1]
    matrix_ids = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in matrix_ids]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
