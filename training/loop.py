"""The training loop, on Accelerate: one process or many, resumed exactly, logged as JSON lines.

Which frames make up step k follows from the seed, k and the rank alone. So a resumed run needs no state of a data
loader or of a random generator, and no two ranks see the same frames.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..errors import InputError
from ..policy.core import Core, Demonstrated
from .averaging import WeightAverage
from .configuration import LoopConfig
from .dataset import DemonstrationDataset
from .state import TrainingState, read_state, write_state


def frame_order(frames: np.ndarray, config: LoopConfig, start: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """Yield the frames of every step from `start` on, int64 [batch_size], for one rank of several.

    Each epoch is a permutation of `frames`, dealt out to steps and ranks; an epoch's remainder is left to chance.
    """
    per_step = config.batch_size * ranks
    per_epoch = max(1, len(frames) // per_step)
    epoch, order = -1, frames
    for step in range(start, config.steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([config.seed, epoch]).permutation(frames)
            if len(order) < per_step:
                order = np.resize(order, per_step)
        first = (step % per_epoch) * per_step + rank * config.batch_size
        yield order[first : first + config.batch_size]


def prefetch(dataset: DemonstrationDataset, order: Iterator[np.ndarray], ahead: int = 3) -> Iterator[dict]:
    """Yield the batches of an order, made by a thread that stays a little ahead."""
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for indices in order:
                if not put(dataset.batch(indices)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


@dataclass
class TrainingResult:
    """Where training ended."""

    steps: int
    seconds: float
    loss: float
    grounding: float
    checkpoint: Path
    samples_per_second: float = 0.0
    log: list[dict] = field(default_factory=list)


def train(
    core: Core,
    dataset: DemonstrationDataset,
    config: LoopConfig,
    folder: Path,
    *,
    save: Callable[[Path, dict[str, torch.Tensor], int], None],
    accelerator: Accelerator,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[dict], None] | None = None,
) -> TrainingResult:
    """Train `core` on `dataset` and leave checkpoints in `folder`; return where it ended.

    `save(path, tensors, step)` writes a checkpoint of the averaged weights; `report` gets every line of the log.
    """
    device = accelerator.device
    model = core.model.to(device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    average = WeightAverage(model, config.average)
    state_folder = folder / "training_state"
    start, seconds = 0, 0.0
    if resume and (state := read_state(state_folder, model, optimizer, average)) is not None:
        start, seconds = state.step, state.seconds
    prepared, optimizer = accelerator.prepare(model, optimizer)
    frames = np.arange(0, len(dataset), config.stride)
    order = frame_order(frames, config, start, accelerator.process_index, accelerator.num_processes)
    bar = tqdm(
        total=config.steps,
        initial=start,
        desc="training",
        unit="step",
        disable=not (progress and accelerator.is_main_process),
    )
    log_path, began, window, samples, mark = folder / "log.jsonl", time.perf_counter(), [], 0, time.perf_counter()
    result = TrainingResult(start, seconds, math.nan, math.nan, folder / "checkpoint")
    for step, batch in enumerate(prefetch(dataset, order), start):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        grounding = batch.get("grounding")
        demonstrated = Demonstrated(
            images=batch["images"].to(device, non_blocking=True),
            instructions=[dataset.instructions[place] for place in batch["instruction"].tolist()],
            state=batch["state"].to(device),
            action=batch["action"].to(device),
            padded=batch["action_is_pad"].to(device),
            grounding=None if grounding is None else grounding.to(device),
        )
        with accelerator.autocast():
            action_loss, grounding_loss, _ = core.losses(demonstrated, prepared)
            loss = action_loss.mean() + config.grounding * grounding_loss
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(prepared.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        window.append((action_loss.detach().mean(), grounding_loss.detach(), torch.as_tensor(norm)))
        samples += config.batch_size * accelerator.num_processes
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            means = torch.stack([torch.stack([part.float() for part in row]) for row in window]).mean(0).tolist()
            if not all(map(math.isfinite, means)):
                raise InputError(
                    "training", got=f"a loss of {means[0]} at step {done}", expected="finite numbers",
                    fix="Lower the learning rate; the last checkpoint is kept.",
                )  # fmt: skip
            now = time.perf_counter()
            line = {
                "step": done,
                "loss": means[0],
                "grounding": means[1],
                "gradient_norm": means[2],
                "learning_rate": config.rate(step),
                "samples_per_second": samples / (now - mark),
                "seconds": seconds + now - began,
            }
            result.loss, result.grounding, result.samples_per_second = line["loss"], line["grounding"], samples / (
                now - mark
            )
            window, samples, mark = [], 0, now
            if accelerator.is_main_process:
                with log_path.open("a") as log:
                    log.write(json.dumps(line) + "\n")
                if report is not None:
                    report(line)
            bar.set_postfix(loss=f"{means[0]:.4f}", pointing=f"{means[1]:.2f}")
        bar.update()
        if accelerator.is_main_process and (done % config.save_every == 0 or done == config.steps):
            save(result.checkpoint, average.tensors(), done)
            spent = seconds + time.perf_counter() - began
            write_state(state_folder, TrainingState(done, spent), model, optimizer, average)
        result.steps = done
    bar.close()
    accelerator.wait_for_everyone()
    result.seconds = seconds + time.perf_counter() - began
    return result


def _parameter_groups(model: torch.nn.Module, decay: float) -> list[dict]:
    """Decay matrices; leave biases, norms and learned tokens alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and p.shape[0] > 1]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
