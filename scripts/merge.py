"""`saccade merge`: merge several skills into one policy, which selects the skill for each instruction."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..policy.merging.merge import MergeResult, StorageOptions
    from ..policy.merging.operators.methods import MergeOptions
    from ..policy.merging.skills import SkillCheckpoint

type MethodName = Literal[
    "mean", "task_arithmetic", "ties", "dare", "emr", "consensus", "tsv", "knots", "wudi", "iso", "iso_own"
]
type MaskKind = Literal["task", "agreement", "consensus", "none"]


@dataclass(frozen=True)
class MergeConfig:
    """Merge skills that were fine-tuned from one checkpoint into one policy.

    A skill is a checkpoint of `saccade train --init CHECKPOINT --lora RANK`. The result is a checkpoint folder for
    eval, serve and run. At a new instruction the policy selects the skill from the instruction and the first
    observation. If no skill fits, or several do, it abstains: it holds the robot still and reports the reason.

    The base weights are stored once. Every skill keeps the last blocks of its expert, and low-rank factors in 8 bits
    for all other changes. With --merge all, the changes are merged into one by --method, and every skill gets a bit
    mask and a scale. This is the method of other papers, for comparison.
    """

    skills: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Checkpoint or training folders of two or more skills."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the merged checkpoint. Optional with --explain."""
    merge: Literal["nothing", "expert", "all"] = "nothing"
    """Which changes are merged: nothing (every skill keeps low-rank factors), expert (the first expert blocks, which
    were trained fully), or all (as in MergeVLA). With four skills, factors need no more space than masks and merged
    changes, and lose much less success."""
    method: MethodName = "ties"
    """Merge method. This option, the next nine and --bits need --merge expert or --merge all."""
    masks: MaskKind | None = None
    """Mask of the merged change for each skill. task: where it is nearer to the change of the skill than zero is;
    agreement: where the signs agree; consensus: where two or more skills would use it; none: no mask. Default: the mask
    of the method."""
    scale: float = 1.0
    """Scale of the merged change. With masks a fitted scale is applied after it."""
    strictness: float = 1.0
    """Threshold of task masks: 1 gives the mask that is nearest to the change of the skill; MergeVLA uses 0.6."""
    keep: float = 1.0
    """For ties and knots: fraction of entries that are kept, largest first."""
    aggregate: Literal["mean", "sum", "max"] = "mean"
    """For ties and knots: how entries that agree are combined: mean, sum or max."""
    drop: float = 0.5
    """For dare: drop rate."""
    ridge: float = 1.0
    """For wudi: strength of the regularisation towards the sum of the changes; 0 gives the exact minimum, which may be
    very large."""
    common: float = 0.8
    """For iso_own: fraction of singular directions that come from the sum (common subspace)."""
    seed: int = 0
    """For dare: random seed."""
    keep_blocks: int = 2
    """Last expert blocks that are not merged and are kept per skill, with norm and head."""
    bits: Literal[8, 4] = 8
    """Quantisation of the merged change, in bits per entry."""
    switch: Literal["instruction", "chunk"] = "instruction"
    """When the router selects the skill: at a new instruction or episode (instruction), or before every chunk."""
    margin: float = 0.5
    """Minimum difference in probability between the two most likely skills. Below it the policy abstains."""
    reach: float = 1.5
    """Maximum distance of an observation from the demonstrations, as a multiple of the usual distance. Above it the
    policy abstains."""
    names: tuple[str, ...] = ()
    """Names of the skills, in order. Default: the folder names."""
    init: str | None = None
    """Base checkpoint of the skills. Default: the path in their provenance."""
    explain: bool = False
    """Show where the skills overlap and conflict, and what merging loses: prints a table, writes explain.png and
    explain.json to OUT_explained."""

    def __post_init__(self) -> None:
        options = self.options()
        self.storage()
        defaults = {name: field.default for name, field in type(self).__dataclass_fields__.items()}
        unused = [name for name in (*vars(options), "bits") if getattr(self, name) != defaults[name]]
        if self.merge == "nothing" and unused:
            got, expected = f"{getattr(self, unused[0])}, while nothing is merged", "--merge expert or --merge all"
            fix = f"Add --merge expert or --merge all, or leave out --{unused[0]}."
            raise InputError(unused[0], got=got, expected=expected, fix=fix)
        if self.out is None and not self.explain:
            fix = "Give the folder with -o, or use --explain."
            raise InputError("out", got="none", expected="the folder of the merged checkpoint", fix=fix)
        if self.names and len(self.names) != len(self.skills):
            got, expected = f"{len(self.names)} names", f"{len(self.skills)}, one for each skill"
            raise InputError(
                "names", got=got, expected=expected, fix="Give one name for each skill, or leave out --names."
            )

    def options(self) -> MergeOptions:
        """Return method and masks; raises InputError for values out of range."""
        from ..policy.merging.operators.methods import MergeOptions

        return MergeOptions(**{field.name: getattr(self, field.name) for field in fields(MergeOptions)})

    def storage(self) -> StorageOptions:
        """Return which changes are merged and how they are stored; raises InputError for values out of range."""
        from ..policy.merging.merge import StorageOptions

        return StorageOptions(**{field.name: getattr(self, field.name) for field in fields(StorageOptions)})


def run(config: MergeConfig) -> int:
    """Run the command and return its exit code."""
    from ..policy.checkpoint.folder import MODEL_FILE
    from ..policy.merging.explain import as_json, format_table, plot

    began = time.perf_counter()
    skills = open_skills(config)
    merged = merge(config, skills)
    names = [skill.name for skill in skills]
    method_text = (
        "each with its own factors" if config.merge == "nothing" else f"{config.merge} merged by {config.method}"
    )
    if config.out is not None:
        write(config, skills, merged)
        size = (config.out / MODEL_FILE).stat().st_size
        print("\n".join(size_table(skills, merged, size)))
        print(f"merged {', '.join(names)} into {config.out}, {method_text}, in {time.perf_counter() - began:.1f} s")
    if config.explain:
        folder = Path(f"{config.out}_explained") if config.out is not None else Path("merge_explained")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "explain.json").write_text(json.dumps(as_json(merged.report, names), indent=1) + "\n")
        plot(merged.report, names, f"{', '.join(names)}: {method_text}", folder / "explain.png")
        print("\n".join(format_table(merged.report, names)))
        print(f"plot: {folder / 'explain.png'}")
    return 0


def open_skills(config: MergeConfig) -> list[SkillCheckpoint]:
    """Open the skills and check that they can be merged; raises InputError if they cannot."""
    from ..policy.merging.skills import check_compatible, open_skill

    folders = [Path(folder).resolve() for folder in config.skills]
    names = config.names or tuple(
        folder.parent.name if folder.name == "checkpoint" else folder.name for folder in folders
    )
    skills = [open_skill(folder, name) for folder, name in zip(config.skills, names, strict=True)]
    check_compatible(skills)
    return skills


def merge(config: MergeConfig, skills: list[SkillCheckpoint], *, progress: bool = True) -> MergeResult:
    """Merge opened skills.

    Args:
        config: Options of the command.
        skills: The skills, see `open_skills`.
        progress: Show a progress bar.

    Raises:
        InputError: There is too little memory (checked first), or the skills cannot be merged.
    """
    from tqdm import tqdm

    from ..policy.merging.merge import merge_skills

    _require_memory(skills)
    base_weights = read_base_weights(config.init or skills[0].init)
    bar = partial(tqdm, desc="merging", unit="weight", disable=not progress)
    return merge_skills(skills, base_weights, config.options(), config.storage(), explain=config.explain, progress=bar)


def read_base_weights(init: str) -> Mapping[str, torch.Tensor]:
    """Return the weights of the base checkpoint, by their names in the network.

    If it has LoRA factors, they are folded in, as in the training of the skills.

    Args:
        init: Folder of the base checkpoint.

    Raises:
        InputError: There is no such folder, or the checkpoint is damaged.
    """
    from ..policy.checkpoint.contents import MODEL_PREFIX
    from ..policy.checkpoint.folder import MODEL_FILE, find_checkpoint, verify_checkpoint
    from ..policy.loading import load_policy
    from ..policy.merging.skills import LazyTensors
    from ..policy.pretrained.adaptation import read_lora_adaptation

    folder = find_checkpoint(init)
    if not folder.is_dir():
        raise InputError(
            "init",
            got=f"{init}, which does not exist",
            expected="the base checkpoint of the skills",
            fix="Give its folder with --init.",
        )
    # `merge_skills` verifies its weights by the digest that the skills recorded.
    checkpoint = verify_checkpoint(folder, weights=False)
    if read_lora_adaptation(checkpoint.config, str(folder)) is not None:
        return load_policy(folder).model.state_dict()
    tensors = LazyTensors(folder / MODEL_FILE)
    return {name.removeprefix(MODEL_PREFIX): tensors[name] for name in tensors if name.startswith(MODEL_PREFIX)}


def write(config: MergeConfig, skills: list[SkillCheckpoint], merged: MergeResult) -> None:
    """Write the merged checkpoint; a kill or a full disk leaves no half-written one."""
    from ..policy.checkpoint.contents import SKILLS_FILE
    from ..policy.checkpoint.folder import collect_provenance, write_checkpoint
    from ..policy.lerobot_files import lerobot_files
    from ..policy.network.tokenizer import TOKENIZER_FILE

    if config.out is None:
        fix = "Give the folder with -o."
        raise InputError("out", got="none", expected="the folder of the merged checkpoint", fix=fix)
    first = skills[0]
    config_json, text_files = lerobot_files(first.architecture, first.contract)
    text_files |= {SKILLS_FILE: json.dumps(merged.table, indent=1) + "\n"}
    if first.tokenizer_text is not None:
        text_files[TOKENIZER_FILE] = first.tokenizer_text
    provenance = collect_provenance(["saccade", *sys.argv[1:]], {"seed": config.seed}, None)
    provenance |= {
        "skills": [{"name": skill.name, "sha256": skill.digest} for skill in skills],
        "init": first.init,
        "skill_origin": dict(first.base_digests),
    }
    write_checkpoint(config.out, merged.tensors, config_json, first.contract, provenance, text_files)


def size_table(skills: list[SkillCheckpoint], merged: MergeResult, size: int) -> list[str]:
    """Return a table of the sizes of the parts of a merged checkpoint; `size` is that of its weights file in bytes."""
    sizes = stored_bytes(merged.tensors)
    separate_bytes = sum((skill.folder / "model.safetensors").stat().st_size for skill in skills)
    rows = [
        ("base weights", "base"),
        ("merged change", "change"),
        ("masks and scales", "masks"),
        ("kept per skill", "own"),
        ("low-rank factors", "factors"),
        ("router", "router"),
    ]
    lines = [f"{label:<20} {sizes[key] / 2**20:9.2f} MiB" for label, key in rows if sizes[key]]
    lines.append(
        f"{'total':<20} {size / 2**20:9.2f} MiB, {100 * size / separate_bytes:.0f} % of the {len(skills)} skills"
    )
    return lines


def stored_bytes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the bytes of the tensors of a merged checkpoint by kind: base, change, masks, own, factors, router."""
    from ..policy.checkpoint.contents import MODEL_PREFIX
    from ..policy.merging.merged import DELTA_PREFIX, FACTOR_PREFIX, MASK_PREFIX, OWN_PREFIX, SCALE_PREFIX, STEP_PREFIX

    kinds = {
        MODEL_PREFIX: "base",
        DELTA_PREFIX: "change",
        STEP_PREFIX: "change",
        MASK_PREFIX: "masks",
        SCALE_PREFIX: "masks",
        OWN_PREFIX: "own",
        FACTOR_PREFIX: "factors",
    }
    sizes = dict.fromkeys([*dict.fromkeys(kinds.values()), "router"], 0)
    for name, tensor in tensors.items():
        kind = next((kind for prefix, kind in kinds.items() if name.startswith(prefix)), "router")
        sizes[kind] += tensor.numel() * tensor.element_size()
    return sizes


def _require_memory(skills: list[SkillCheckpoint]) -> None:
    """Raise InputError unless the memory is enough for the base weights, the merged tensors, and a copy to write."""
    first = skills[0].folder / "model.safetensors"
    masks = len(skills) / 32
    needed = int(first.stat().st_size * (2 + 2 * (0.25 + masks))) + 2**28
    available = _available_memory()
    if available is not None and needed > available:
        raise InputError(
            "memory",
            got=f"{available / 2**30:.1f} GiB free",
            expected=f"about {needed / 2**30:.1f} GiB to merge {len(skills)} skills of this size",
            fix="Close other programs, or merge on a larger machine.",
        )


def _available_memory() -> int | None:
    """Return the available memory in bytes; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
