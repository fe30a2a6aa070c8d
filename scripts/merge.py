"""`saccade merge`: several skills become one policy, which finds out which of them is asked for."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..policy.merging.merge import MergeResult
    from ..policy.merging.skills import SkillCheckpoint

type MethodName = Literal[
    "mean", "task_arithmetic", "ties", "dare", "emr", "consensus", "tsv", "knots", "wudi", "iso", "iso_own"
]


@dataclass(frozen=True)
class MergeConfig:
    """Merge skills that began as one checkpoint into one policy, which routes by looking.

    A skill is what `saccade train --init CHECKPOINT --lora RANK` leaves. The result is a checkpoint folder that eval,
    serve and run take like any other: at a new instruction it looks once, becomes the skill that is asked for, and
    holds still, with the reason, when it is none that it knows or could be several.

    What the skills began as is stored once. Every skill keeps the end of its expert, and of all else that it changed
    low-rank factors in 8 bits. With --merge all their changes become one instead, by --method, of which every skill
    takes what a mask in bits and a scale leave it: as others do it, for comparison.
    """

    skills: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of two or more skills, or of their trainings."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the merged checkpoint; needed unless --explain is all that is wanted."""
    merge: Literal["nothing", "expert", "all"] = "nothing"
    """Which changes become one: none, as every skill keeps factors of its own (nothing); those of the expert's first
    blocks, which were trained whole (expert); or all, as by MergeVLA (all). With four skills factors take no more room
    than masks and merged changes, and lose far less."""
    method: MethodName = "ties"
    """How the skills' changes of a weight become one; this, the next nine options and --bits are for --merge
    expert or all."""
    masks: Literal["task", "agreement", "consensus", "none"] | None = None
    """What a skill takes of the merged change: where that is nearer to its own change than nothing (task), where it has
    its sign (agreement), where two skills or more would (consensus), or everything (none). The method's own when left
    out."""
    scale: float = 1.0
    """Factor of the merged change; where there are masks a fitted scale follows it."""
    strictness: float = 1.0
    """Of task masks: with 1 what a skill gets is as near to its own change as a mask allows; MergeVLA takes 0.6."""
    keep: float = 1.0
    """Of ties and knots: the fraction of a skill's entries that take part, the largest first."""
    aggregate: Literal["mean", "sum", "max"] = "mean"
    """Of ties and knots: mean, sum or max of the entries that agree."""
    drop: float = 0.5
    """Of dare: the chance with which an entry is dropped."""
    ridge: float = 1.0
    """Of wudi: how near it stays to the sum of the changes; 0 is the exact minimiser, whose changes may be huge."""
    common: float = 0.8
    """Of iso_own: the part of the directions that comes from the sum."""
    seed: int = 0
    """Of dare: draws what is dropped."""
    keep_blocks: int = 2
    """Last blocks of the expert that stay every skill's own, with norm and head."""
    bits: Literal[8, 4] = 8
    """Bits of an entry of the merged change."""
    switch: Literal["instruction", "chunk"] = "instruction"
    """When the policy looks for its skill: at a new instruction or episode (instruction), or before every chunk."""
    margin: float = 0.5
    """Least difference in probability between the two most likely skills; below it the policy abstains."""
    reach: float = 1.5
    """How many times farther than usual an observation may be from all demonstrations; beyond, the policy abstains."""
    names: tuple[str, ...] = ()
    """Names of the skills, in their order; those of their folders when left out."""
    init: str | None = None
    """Checkpoint that the skills began as; where their trainings found it when left out."""
    explain: bool = False
    """Show where the skills overlap, contradict each other and lose: a table here, explain.png and explain.json in
    OUT_explained."""

    def __post_init__(self) -> None:
        options = self.options()
        self.storage()
        defaults = {name: field.default for name, field in type(self).__dataclass_fields__.items()}
        unused = [name for name in (*vars(options), "bits") if getattr(self, name) != defaults[name]]
        if self.merge == "nothing" and unused:
            got, expected = f"{getattr(self, unused[0])}, while nothing is merged", "--merge expert or --merge all"
            raise InputError(unused[0], got=got, expected=expected, fix=f"Add one of them, or leave {unused[0]} out.")
        if self.out is None and not self.explain:
            fix = "Name it with -o, or ask for --explain alone."
            raise InputError("out", got="none", expected="the folder of the merged checkpoint", fix=fix)
        if self.names and len(self.names) != len(self.skills):
            got, expected = f"{len(self.names)} names", f"{len(self.skills)}, one for each skill"
            raise InputError("names", got=got, expected=expected, fix="Name all of them, or none.")

    def options(self) -> Any:
        """Return how to merge, checked."""
        from ..policy.merging.operators.methods import MergeOptions

        return _make_options(MergeOptions, self)

    def storage(self) -> Any:
        """Return what is shared and how it is kept, checked."""
        from ..policy.merging.merge import StorageOptions

        return _make_options(StorageOptions, self)


def _make_options(kind: type, config: MergeConfig) -> Any:
    return kind(**{name: getattr(config, name) for name in kind.__dataclass_fields__})


def run(config: MergeConfig) -> int:
    """Merge as configured; the command's entry."""
    from ..policy.checkpoint.folder import MODEL_FILE
    from ..policy.merging.explain import as_json, format_table, plot

    began = time.perf_counter()
    skills = open_skills(config)
    merged = merge(config, skills)
    names = [skill.name for skill in skills]
    method_text = (
        "each with factors of its own" if config.merge == "nothing" else f"{config.merge} merged by {config.method}"
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
        print(f"a picture of it: {folder / 'explain.png'}")
    return 0


def open_skills(config: MergeConfig) -> list[SkillCheckpoint]:
    """Open the skills and check that they can be merged; raises InputError for whatever does not fit."""
    from ..policy.merging.skills import check_compatible, open_skill

    folders = [Path(folder).resolve() for folder in config.skills]
    names = config.names or tuple(
        folder.parent.name if folder.name == "checkpoint" else folder.name for folder in folders
    )
    skills = [open_skill(folder, name) for folder, name in zip(config.skills, names, strict=True)]
    check_compatible(skills)
    return skills


def merge(config: MergeConfig, skills: list[SkillCheckpoint], *, progress: bool = True) -> MergeResult:
    """Merge opened skills; raises InputError, also, beforehand, for want of memory."""
    from tqdm import tqdm

    from ..policy.merging.merge import merge_skills

    _require_memory(skills)
    base_weights = read_base_weights(config.init or skills[0].init)
    bar = partial(tqdm, desc="merging", unit="weight", disable=not progress)
    return merge_skills(skills, base_weights, config.options(), config.storage(), explain=config.explain, progress=bar)


def read_base_weights(init: str) -> Mapping[str, torch.Tensor]:
    """Return the weights of the checkpoint that skills began as, by their names in the network.

    Factors that it had itself are folded in, as they were when the skills began. Raises InputError without it.
    """
    from ..policy.checkpoint.contents import PREFIX
    from ..policy.checkpoint.folder import MODEL_FILE, find_checkpoint, verify_checkpoint
    from ..policy.loading import load_policy
    from ..policy.merging.skills import LazyTensors
    from ..policy.pretrained.adaptation import read_lora_adaptation

    folder = find_checkpoint(init)
    if not folder.is_dir():
        raise InputError(
            "init",
            got=f"{init}, which is not there",
            expected="the checkpoint that the skills began as",
            fix="Tell with --init where it is now.",
        )
    # Its weights are verified by the digest that the skills have recorded, once they are read.
    checkpoint = verify_checkpoint(folder, weights=False)
    if read_lora_adaptation(checkpoint.config, str(folder)) is not None:
        return load_policy(folder).model.state_dict()
    tensors = LazyTensors(folder / MODEL_FILE)
    return {name.removeprefix(PREFIX): tensors[name] for name in tensors if name.startswith(PREFIX)}


def write(config: MergeConfig, skills: list[SkillCheckpoint], merged: MergeResult) -> None:
    """Write the merged checkpoint, whole or not at all."""
    from ..policy.checkpoint.contents import SKILLS_FILE
    from ..policy.checkpoint.folder import collect_provenance, write_checkpoint
    from ..policy.lerobot_files import lerobot_files
    from ..policy.network.tokenizer import TOKENIZER_FILE

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
    """Return where the bytes of a merged checkpoint go, and how they compare, as lines for people."""
    sizes = stored_bytes(merged.tensors)
    separate_bytes = sum((skill.folder / "model.safetensors").stat().st_size for skill in skills)
    rows = [
        ("the beginning", "beginning"),
        ("the merged change", "change"),
        ("masks and scales", "masks"),
        ("kept of every skill", "own"),
        ("their factors", "factors"),
        ("the router", "router"),
    ]
    lines = [f"{label:<20} {sizes[key] / 2**20:9.2f} MiB" for label, key in rows if sizes[key]]
    lines.append(
        f"{'all':<20} {size / 2**20:9.2f} MiB, {100 * size / separate_bytes:.0f} % of the {len(skills)} skills' own"
    )
    return lines


def stored_bytes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the bytes of a merged checkpoint's tensors by what they are."""
    from ..policy.checkpoint.contents import PREFIX
    from ..policy.merging.merged import DELTA_PREFIX, FACTOR_PREFIX, MASK_PREFIX, OWN_PREFIX, SCALE_PREFIX, STEP_PREFIX

    kinds = {
        PREFIX: "beginning",
        DELTA_PREFIX: "change",
        STEP_PREFIX: "change",
        MASK_PREFIX: "masks",
        SCALE_PREFIX: "masks",
        OWN_PREFIX: "own",
    }
    kinds[FACTOR_PREFIX] = "factors"
    sizes = dict.fromkeys([*dict.fromkeys(kinds.values()), "router"], 0)
    for name, tensor in tensors.items():
        kind = next((kind for prefix, kind in kinds.items() if name.startswith(prefix)), "router")
        sizes[kind] += tensor.numel() * tensor.element_size()
    return sizes


def _require_memory(skills: list[SkillCheckpoint]) -> None:
    """Raise InputError unless there is memory for the merge: the beginning, what is stored, and the copy to write."""
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
    """Return how many bytes of memory can be had; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
