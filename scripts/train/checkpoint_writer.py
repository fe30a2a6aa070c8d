"""Write the checkpoints of a training, with their provenance."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .folder import to_json_values

if TYPE_CHECKING:
    import torch

    from ...policy.core import PolicyCore
    from ...training.dataset import DemonstrationDataset
    from ...training.skill import SkillRecord
    from .options import TrainConfig


def make_checkpoint_writer(
    core: PolicyCore, dataset: DemonstrationDataset, config: TrainConfig, skill: SkillRecord | None
) -> Callable[[Path, dict[str, torch.Tensor], int], object]:
    """Return the function that writes a checkpoint from its folder, the weights by name, and the steps done.

    Args:
        core: The policy that is trained.
        dataset: Its demonstrations; the provenance holds their fingerprint.
        config: The options; the provenance holds them, too.
        skill: The record of a skill, stored for `saccade merge`; None for any other policy.
    """
    from ...policy.checkpoint.contents import MODEL_PREFIX
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
        named = {MODEL_PREFIX + name: tensor for name, tensor in tensors.items()} | profile
        learned = {} if skill is None else {"learned": learned_digest(named)}
        write_checkpoint(folder, named, config_json, core.contract, {**provenance, **learned, "step": step}, text_files)

    return save
