"""`saccade train`: train a policy on demonstrations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .checkpoint_writer import make_checkpoint_writer
from .folder import check_unchanged, prepare_folder, read_earlier_options, to_json_values
from .options import TrainConfig
from .policy import make_core

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ...training.loop import TrainingResult


def run(config: TrainConfig) -> int:
    """Train, print the result, and return the exit code."""
    result = train_policy(config)

    from accelerate import PartialState

    if PartialState().is_main_process:
        print(
            f"trained to step {result.steps} in {result.seconds / 60:.1f} min; loss {result.loss:.4f}; "
            f"checkpoint in {result.checkpoint}"
        )
    return 0


def train_policy(config: TrainConfig, *, progress: bool = True) -> TrainingResult:
    """Train a policy and write checkpoint, training state, log and options into --out.

    Every process of `accelerate launch` calls this; the main process alone writes.

    Args:
        config: The options of `saccade train`.
        progress: Whether to show progress bars.

    Returns:
        Steps, seconds and losses of the training, and the folder of its checkpoint.

    Raises:
        InputError: An option or a dataset does not fit; nothing has been written or deleted then.
    """
    earlier = read_earlier_options(config)
    accelerator = _make_accelerator(config)

    from ...policy.pretrained.adaptation import set_checkpointing
    from ...training.dataset import DemonstrationDataset
    from ...training.loop import train

    dataset = DemonstrationDataset(config.data, _chunk_length(config), progress=progress)
    core, skill = make_core(config, dataset)
    dataset.set_history(core.architecture.history, core.contract.execute)
    # Tokenize all instructions before anything is deleted: one that is too long would stop the training later.
    core.tokenizer(dataset.instructions)
    set_checkpointing(core.model, on=config.checkpointing)
    options = to_json_values(config) | {
        "dataset_fingerprint": dataset.fingerprint,
        "processes": accelerator.num_processes,
    }
    if config.resume:
        check_unchanged(config, earlier, options)
    if accelerator.is_main_process:
        prepare_folder(config, options)
        if core.new_parameters:
            print(f"newly initialised, not in {config.init}: {', '.join(core.new_parameters)}", flush=True)
    accelerator.wait_for_everyone()
    report = None
    if config.report_to:
        accelerator.init_trackers("saccade", config={key: str(value) for key, value in options.items()})
        report = _make_tracker_callback(accelerator)
    result = train(
        core,
        dataset,
        config.loop,
        config.out,
        save=make_checkpoint_writer(core, dataset, config, skill),
        accelerator=accelerator,
        resume=config.resume,
        progress=progress,
        report=report,
    )
    if config.report_to:
        accelerator.end_training()
    return result


def _make_accelerator(config: TrainConfig) -> Accelerator:
    """Set up device, threads, precision, seed and trackers; raises InputError for a tracker that is not installed."""
    for tracker in config.report_to:
        # Accelerate skips trackers that are not installed without a message.
        if importlib.util.find_spec(tracker) is None:
            raise InputError(
                "--report-to",
                got=f"{tracker}, which is not installed",
                expected="an installed tracker",
                fix=f"Install lerobot_policy_saccade[{tracker}].",
            )
    import torch
    from accelerate import Accelerator

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        log_with=list(config.report_to) or None,
        project_dir=str(config.out),
    )
    # Every rank draws its own random numbers. Accelerate copies the initial weights from rank 0 to all others.
    torch.manual_seed(config.loop.seed + 1000 * accelerator.process_index)
    return accelerator


def _chunk_length(config: TrainConfig) -> int:
    """Return the steps of an action chunk, T: --chunk, or those of the checkpoint to start from."""
    if config.init is None:
        return config.chunk
    from ...policy.checkpoint.folder import find_checkpoint, read_contract

    return read_contract(find_checkpoint(config.init)).chunk


def _make_tracker_callback(accelerator: Accelerator) -> Callable[[dict[str, Any]], None]:
    """Return the function that sends a line of the log to the trackers."""

    def report(line: dict[str, Any]) -> None:
        accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    return report
