"""`saccade train`: a policy from demonstrations."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .folder import check_unchanged, prepare_folder, read_earlier_options, to_json_values
from .options import TrainConfig

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ...policy.contract import Contract
    from ...policy.core import PolicyCore
    from ...training.dataset import DemonstrationDataset
    from ...training.loop import TrainingResult
    from ...training.skill import SkillRecord


def run(config: TrainConfig) -> int:
    """Train as configured; the command's entry."""
    result = train_policy(config)

    from accelerate import PartialState

    if PartialState().is_main_process:
        print(
            f"trained to step {result.steps} in {result.seconds / 60:.1f} min; loss {result.loss:.4f}; "
            f"checkpoint in {result.checkpoint}"
        )
    return 0


def train_policy(config: TrainConfig, *, progress: bool = True) -> TrainingResult:
    """Train as configured and return where it ended.

    Raises InputError for whatever does not fit, before anything is written or thrown away.
    """
    earlier = read_earlier_options(config)
    accelerator = _accelerator(config)

    from ...policy.pretrained.adaptation import set_checkpointing
    from ...training.dataset import DemonstrationDataset
    from ...training.loop import train

    dataset = DemonstrationDataset(config.data, _chunk_length(config), progress=progress)
    core, skill = make_core(config, dataset)
    dataset.set_history(core.architecture.history, core.contract.execute)
    # All of them, before anything is thrown away: one that is too long would end a training in the middle.
    core.tokenizer(dataset.instructions)
    set_checkpointing(core.model, config.checkpointing)
    options = to_json_values(config) | {
        "dataset_fingerprint": dataset.fingerprint,
        "processes": accelerator.num_processes,
    }
    if config.resume:
        check_unchanged(config, earlier, options)
    if accelerator.is_main_process:
        prepare_folder(config, options)
        if core.new_parameters:
            print(f"new beside what {config.init} has learned: {', '.join(core.new_parameters)}", flush=True)
    accelerator.wait_for_everyone()
    report = None
    if config.report_to:
        accelerator.init_trackers("saccade", config={key: str(value) for key, value in options.items()})
        report = _tracker_callback(accelerator)
    result = train(
        core,
        dataset,
        config.loop,
        config.out,
        save=_checkpoint_writer(core, dataset, config, skill),
        accelerator=accelerator,
        resume=config.resume,
        progress=progress,
        report=report,
    )
    if config.report_to:
        accelerator.end_training()
    return result


def make_core(config: TrainConfig, dataset: DemonstrationDataset) -> tuple[PolicyCore, SkillRecord | None]:
    """Build the policy to train, new or with the weights and conventions of a checkpoint, and a skill's record.

    A fine-tuned policy keeps the normalisation that it has learned with, and its factors; its contract is checked
    against the world that the demonstrations come from.
    """
    from ...policy.checkpoint.folder import find_checkpoint
    from ...policy.datasets.dataset_contract import dataset_offer, fit_contract
    from ...policy.loading import load_policy

    offers = [dataset_offer(source) for source in dataset.sources]
    if config.init is None:
        contract = fit_contract(
            offers[0], dataset.state, dataset.action, dataset.ends, chunk=config.chunk, execute=config.execute
        )
        core = _new_core(config, contract)
    else:
        core = load_policy(find_checkpoint(config.init), fold_lora=False, change=config.change)
        if core.skills:
            got, fix = (
                f"{config.init}, merged of {', '.join(core.skills)}",
                "Go on with one of the skills, and merge again.",
            )
            raise InputError("init", got=got, expected="a policy of one piece", fix=fix)
        for offer in offers:
            core.contract.check(offer)
    from ...training.skill import new_skill_record, read_skill_record

    adaptation = config.adaptation()
    if adaptation is None or adaptation == core.adaptation:
        continues_skill = core.adaptation is not None and core.adaptation.skill
        return core, read_skill_record(find_checkpoint(config.init)) if continues_skill else None
    if core.adaptation is not None and not core.adaptation.skill:
        core.fold_lora()
    if core.adaptation is not None:
        raise InputError(
            "lora",
            got=f"rank {adaptation.rank}, alpha {adaptation.alpha:g}",
            expected=f"rank {core.adaptation.rank}, alpha {core.adaptation.alpha:g}, which the checkpoint has",
            fix="Leave --lora out to go on with its factors.",
        )
    skill = new_skill_record(core, dataset) if adaptation.skill else None
    core.add_lora(adaptation)
    return core, skill


def _new_core(config: TrainConfig, contract: Contract) -> PolicyCore:
    """Build a policy with the pretrained weights that were named, and random ones elsewhere."""
    from ...policy.core import PolicyCore

    architecture, text = config.architecture(), None
    if config.trunk is None and not config.towers:
        return PolicyCore(architecture, contract)

    from ...policy.pretrained.backbones import load_towers, load_trunk, read_tokenizer

    if config.trunk is not None and architecture.tokenizer == "trunk":
        text, _ = read_tokenizer(config.trunk)
    core = PolicyCore(architecture, contract, text)
    if config.trunk is not None:
        load_trunk(core.model.trunk, config.trunk)
    if config.towers:
        load_towers(core.model.tower, config.towers)
    return core


def _accelerator(config: TrainConfig) -> Accelerator:
    """Set torch up as configured: device, threads, precision, random numbers and trackers."""
    for tracker in config.report_to:
        # Accelerate leaves out in silence what is not installed.
        if importlib.util.find_spec(tracker) is None:
            raise InputError(
                "report_to",
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
    # Ranks draw apart; the weights at the start are rank 0's, which Accelerate hands to all.
    torch.manual_seed(config.loop.seed + 1000 * accelerator.process_index)
    return accelerator


def _chunk_length(config: TrainConfig) -> int:
    if config.init is None:
        return config.chunk
    from ...policy.checkpoint.folder import find_checkpoint, read_contract

    return read_contract(find_checkpoint(config.init)).chunk


def _checkpoint_writer(
    core: PolicyCore, dataset: DemonstrationDataset, config: TrainConfig, skill: SkillRecord | None
) -> Callable[[Path, dict[str, torch.Tensor], int], object]:
    """Return what writes a checkpoint: folder, weights, steps done."""
    from ...policy.checkpoint.contents import PREFIX
    from ...policy.checkpoint.folder import collect_provenance, write_checkpoint
    from ...policy.lerobot_files import lerobot_files
    from ...policy.merging.digests import learned_digest
    from ...policy.network.tokenizer import TOKENIZER_FILE

    config_json, text_files = lerobot_files(core.architecture, core.contract, core.adaptation)
    if core.tokenizer_text is not None:
        text_files |= {TOKENIZER_FILE: core.tokenizer_text}
    provenance = collect_provenance(["saccade", *sys.argv[1:]], {"seed": config.loop.seed}, dataset.fingerprint)
    provenance |= {"options": to_json_values(config), "init": config.init, "fresh": list(core.new_parameters)}
    profile: dict[str, torch.Tensor] = {}
    if skill is not None:
        provenance["skill"], profile = skill.base_digests, skill.profile.tensors()

    def save(folder: Path, tensors: dict[str, torch.Tensor], step: int) -> None:
        named = {PREFIX + name: tensor for name, tensor in tensors.items()} | profile
        learned = {} if skill is None else {"learned": learned_digest(named)}
        write_checkpoint(folder, named, config_json, core.contract, {**provenance, **learned, "step": step}, text_files)

    return save


def _tracker_callback(accelerator: Accelerator) -> Callable[[dict[str, Any]], None]:
    def report(line: dict[str, Any]) -> None:
        accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    return report
