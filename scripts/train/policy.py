"""Build the policy that is trained: new, with pretrained parts, from a checkpoint, and with LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from ...policy.contract import Contract, Offer
    from ...policy.core import PolicyCore
    from ...training.dataset import DemonstrationDataset
    from ...training.skill import SkillRecord
    from .options import TrainConfig


def make_core(config: TrainConfig, dataset: DemonstrationDataset) -> tuple[PolicyCore, SkillRecord | None]:
    """Build the policy to train.

    A policy from a checkpoint keeps its contract, its normalisation and its LoRA. The contract is checked against the
    environment that the demonstrations come from.

    Args:
        config: The options of `saccade train`.
        dataset: The demonstrations; a new contract is fitted to them.

    Returns:
        The policy, and the record that a skill's checkpoint holds for `saccade merge`; None for any other policy.

    Raises:
        InputError: The checkpoint does not fit the demonstrations, or an option does not fit the checkpoint.
    """
    from ...policy.datasets.dataset_contract import dataset_offer, fit_contract

    offers = [dataset_offer(source) for source in dataset.sources]
    if config.init is None:
        contract = fit_contract(
            offers[0], dataset.state, dataset.action, dataset.ends, chunk=config.chunk, execute=config.execute
        )
        core = _new_core(config, contract)
    else:
        core = _load_core(config.init, config.change, offers)
    return core, _add_lora(core, config, dataset)


def _new_core(config: TrainConfig, contract: Contract) -> PolicyCore:
    """Build a policy with pretrained weights where --trunk and --towers name some, and random ones elsewhere."""
    from ...policy.core import PolicyCore

    architecture, tokenizer_text = config.architecture(), None
    if config.trunk is None and not config.towers:
        return PolicyCore(architecture, contract)

    from ...policy.pretrained.backbones import load_towers, load_trunk, read_tokenizer

    if config.trunk is not None and architecture.tokenizer == "trunk":
        tokenizer_text, _ = read_tokenizer(config.trunk)
    core = PolicyCore(architecture, contract, tokenizer_text)
    if config.trunk is not None:
        load_trunk(core.model.trunk, config.trunk)
    if config.towers:
        load_towers(core.model.tower, config.towers)
    return core


def _load_core(init: str, change: Sequence[str], offers: Sequence[Offer]) -> PolicyCore:
    """Load the policy to fine-tune, and check its contract against the environments of the demonstrations."""
    from ...policy.checkpoint.folder import find_checkpoint
    from ...policy.loading import load_policy

    core = load_policy(find_checkpoint(init), fold_lora=False, change=change)
    if core.skills:
        raise InputError(
            "--init",
            got=f"{init}, merged of {', '.join(core.skills)}",
            expected="a policy that is not merged",
            fix="Train one of the skills, then merge again.",
        )
    for offer in offers:
        core.contract.check(offer)
    return core


def _add_lora(core: PolicyCore, config: TrainConfig, dataset: DemonstrationDataset) -> SkillRecord | None:
    """Add the LoRA of --lora to the policy; return a skill's record, None for any other policy."""
    from ...policy.checkpoint.folder import find_checkpoint
    from ...training.skill import new_skill_record, read_skill_record

    adaptation = config.adaptation()
    if adaptation is None or adaptation == core.adaptation:
        continues_skill = core.adaptation is not None and core.adaptation.skill
        return read_skill_record(find_checkpoint(config.init)) if continues_skill and config.init else None
    if core.adaptation is not None and not core.adaptation.skill:
        core.fold_lora()
    if core.adaptation is not None:
        raise InputError(
            "--lora",
            got=f"rank {adaptation.rank}, alpha {adaptation.alpha:g}",
            expected=f"rank {core.adaptation.rank}, alpha {core.adaptation.alpha:g}, which the checkpoint has",
            fix="Leave out --lora to continue with the LoRA of the checkpoint.",
        )
    skill = new_skill_record(core, dataset) if adaptation.skill else None
    core.add_lora(adaptation)
    return skill
