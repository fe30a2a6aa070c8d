"""`saccade train`: a policy from demonstrations."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from ..policy.architecture import Architecture, find_preset
from ..training.configuration import LoopConfig

if TYPE_CHECKING:
    import torch

    from ..policy.contract import Contract
    from ..policy.core import Core
    from ..training.dataset import DemonstrationDataset
    from ..training.loop import TrainingResult


@dataclass(frozen=True)
class TrainConfig:
    """Train a policy on one or more LeRobotDataset folders.

    The folder --out holds checkpoint/ (what eval, serve and LeRobot's commands take), training_state/ (what --resume
    goes on from, exactly), log.jsonl and train.json (the options). For several GPUs start it with
    `accelerate launch -m saccade.scripts.main train ...`.
    """

    data: tuple[Path, ...]
    """Folders of demonstrations, as `saccade collect` or LeRobot's recorder write them."""
    out: Path
    """Folder of this training."""
    init: str | None = None
    """Checkpoint folder to start from, or `starter`; otherwise from scratch."""
    preset: str = "tiny"
    """Shape of a policy trained from scratch."""
    chunk: int = 16
    """Steps decided at once, T; a policy that is fine-tuned keeps its own."""
    execute: int = 8
    """Steps of a chunk that are executed before the next decision."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    precision: Literal["bf16", "no"] = "bf16"
    """Mixed precision; it is faster on most CPUs of the last years too."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train: a GPU when there is one, or the CPU."""
    threads: int | None = None
    """CPU threads; all cores when left out."""
    report_to: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Where else to send the log; wandb and tensorboard are optional extras of the package."""
    resume: bool = False
    """Go on from the last saved state of --out, with the same options."""
    overwrite: bool = False
    """Throw an earlier training in --out away."""


OPTIONS_FILE = "train.json"


def run(config: TrainConfig) -> int:
    """Train as configured; the command's entry."""
    result = train_policy(config)
    print(
        f"trained to step {result.steps} in {result.seconds / 60:.1f} min; loss {result.loss:.4f}; "
        f"checkpoint in {result.checkpoint}"
    )
    return 0


def train_policy(config: TrainConfig, *, progress: bool = True) -> TrainingResult:
    """Train as configured and return where it ended.

    Raises InputError for whatever does not fit, before anything is written.
    """
    resuming = _claim_folder(config)
    import torch
    from accelerate import Accelerator

    from ..policy.checkpoint import collect_provenance, write_checkpoint
    from ..policy.core import PREFIX
    from ..policy.lerobot_files import lerobot_files
    from ..training.dataset import DemonstrationDataset
    from ..training.loop import train

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        log_with=list(config.report_to) or None,
        project_dir=str(config.out),
    )
    # Ranks draw apart; the weights at the start are rank 0's, which Accelerate hands to all.
    torch.manual_seed(config.loop.seed + 1000 * accelerator.process_index)
    dataset = DemonstrationDataset(config.data, _chunk(config), progress=progress)
    core = make_core(config, dataset)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / OPTIONS_FILE).write_text(json.dumps(_plain(config), indent=2) + "\n")
    provenance = collect_provenance(sys.argv, {"seed": config.loop.seed}, dataset.fingerprint)
    provenance |= {"options": _plain(config), "init": config.init}
    described, texts = lerobot_files(core.architecture, core.contract)

    def save(folder: Path, tensors: dict[str, torch.Tensor], step: int) -> None:
        named = {PREFIX + name: tensor for name, tensor in tensors.items()}
        write_checkpoint(folder, named, described, core.contract, {**provenance, "step": step}, texts)

    if config.report_to:
        accelerator.init_trackers("saccade", config={key: str(value) for key, value in _plain(config).items()})
    result = train(
        core,
        dataset,
        config.loop,
        config.out,
        save=save,
        accelerator=accelerator,
        resume=resuming,
        progress=progress,
        report=_reporter(accelerator) if config.report_to else None,
    )
    if config.report_to:
        accelerator.end_training()
    return result


def make_core(config: TrainConfig, dataset: DemonstrationDataset) -> Core:
    """Build the policy to train: from scratch, or with the weights and conventions of a checkpoint.

    A fine-tuned policy keeps the normalisation that it has learned with; its contract is checked against the world
    that the demonstrations come from.
    """
    from ..policy.checkpoint import find_checkpoint
    from ..policy.core import Core, load_core

    offer = dataset.sources[0].offer
    if offer is None:
        raise InputError(
            f"{config.data[0]}/meta/offer.json",
            got="nothing",
            expected="the conventions that the demonstrations were recorded under",
            fix="Record with `saccade collect`, or describe the dataset with such a file.",
        )
    if config.init is not None:
        core = load_core(find_checkpoint(config.init))
        core.contract.check(offer)
        core.model.train()
        return core
    architecture: Architecture = find_preset(config.preset)
    return Core(architecture, fit_contract(config, dataset))


def fit_contract(config: TrainConfig, dataset: DemonstrationDataset) -> Contract:
    """Make the contract of a policy trained from scratch: the world's offer and exact statistics.

    Joint targets are learned relative to the joints measured at the decision; the gripper's are absolute, as a hand
    that holds something stands still far from its target.
    """
    from ..policy.contract import Contract
    from ..training.statistics import demonstration_normalization

    offer = dataset.sources[0].offer
    gripper = offer.action.gripper.name if offer.action.gripper else None
    relative = tuple(
        name != gripper and index < len(offer.state.names) and offer.state.names[index] == name
        for index, name in enumerate(offer.action.names)
    )
    normalization = demonstration_normalization(
        dataset.state, dataset.action, dataset.ends, chunk=config.chunk, relative=relative, least_span=1e-3
    )
    return Contract(
        cameras=offer.cameras,
        state=offer.state,
        action=offer.action,
        control_hz=offer.control_hz,
        normalization=normalization,
        chunk=config.chunk,
        execute=config.execute,
    )


def _chunk(config: TrainConfig) -> int:
    if config.init is None:
        return config.chunk
    from ..policy.checkpoint import find_checkpoint, read_contract

    return read_contract(find_checkpoint(config.init)).chunk


def _claim_folder(config: TrainConfig) -> bool:
    """Make sure that --out may be written to; return whether to resume."""
    import shutil

    options = config.out / OPTIONS_FILE
    if config.resume:
        if not options.exists():
            raise InputError(
                "resume", got=f"no training in {config.out}", expected="a folder that a training was started in",
                fix="Leave --resume out to start one.",
            )  # fmt: skip
        before, now = json.loads(options.read_text()), _plain(config)
        changed = sorted(key for key in before if before[key] != now.get(key) and key not in ("resume", "threads"))
        if changed:
            raise InputError(
                f"resume: {changed[0]}", got=now.get(changed[0]), expected=before[changed[0]],
                fix="Resume with the options of the first run, or train into a new folder.",
            )  # fmt: skip
        return True
    if config.out.exists() and any(config.out.iterdir()):
        if not config.overwrite or not options.exists():
            raise InputError(
                "out", got=f"{config.out}, which is not empty", expected="a new folder",
                fix="Use --resume to go on, --overwrite to start again, or another folder.",
            )  # fmt: skip
        for name in ("checkpoint", "training_state"):
            shutil.rmtree(config.out / name, ignore_errors=True)
        (config.out / "log.jsonl").unlink(missing_ok=True)
    return False


def _plain(config: TrainConfig) -> dict:
    return json.loads(json.dumps(asdict(config), default=os.fspath))


def _reporter(accelerator: object) -> Callable[[dict], None]:
    def report(line: dict) -> None:
        accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    return report
