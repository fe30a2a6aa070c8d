"""Measure time and memory of merging skills of the `small` preset, with random weights of the true shapes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....errors import InputError, WorldError
from ....ranges import require_at_least
from ..metrics import Metrics

if TYPE_CHECKING:
    import torch

    from ....policy.contract import Contract
    from ....policy.core import PolicyCore

INSTRUCTIONS = ("open the drawer", "pick the cube", "pour the ball", "press the button", "close the door", "stack them")

_MEASURE_SCRIPT = """
import json, resource, sys, time
from saccade.scripts.main import main
began = time.perf_counter()
code = main(sys.argv[1:])
print(json.dumps([code, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@dataclass(frozen=True)
class MergeCostBenchConfig:
    """Merge skills of the size of the `small` preset, with random weights, and measure time and memory.

    Needs about 30 GB of disk in --folder, which are deleted at the end.
    """

    folder: Path = Path("runs/merge_small")
    """Folder of the skills and of the merged checkpoint."""
    count: int = 4
    """Number of skills."""
    rank: int = 32
    """LoRA rank."""
    merge: Literal["nothing", "expert", "all"] = "nothing"
    """Which changes are merged (see `saccade merge --merge`)."""
    method: str = "ties"
    """Merge method, unless nothing is merged."""
    bits: Literal[4, 8] = 4
    """Quantisation of the merged change, in bits per entry."""
    keep: bool = False
    """Keep the skills and the merged checkpoint."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        if not 2 <= self.count <= len(INSTRUCTIONS):
            raise InputError("count", got=self.count, expected=f"2 to {len(INSTRUCTIONS)}", fix="Use 4.")
        require_at_least(self, 1, "rank", fix="Use 32.")


def bench_merge_small(config: MergeCostBenchConfig) -> tuple[Metrics, list[str]]:
    """Run the measurement; return metrics and lines for the terminal. Raises WorldError when the merge fails."""
    folder = config.folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            "folder", got=f"{folder}, which is not empty", expected="a new folder", fix="Choose another --folder."
        )
    try:
        skills = write_skills(config)
        out = folder / "merged"
        command = ["merge", *map(str, skills), "-o", str(out), "--merge", config.merge]
        if config.merge != "nothing":
            command += ["--method", config.method, "--bits", str(config.bits)]
        process = subprocess.run(
            [sys.executable, "-c", _MEASURE_SCRIPT, *command], capture_output=True, text=True, check=False
        )
        if process.returncode or not process.stdout.strip():
            raise WorldError(f"merging failed: {process.stderr.strip().splitlines()[-1:] or process.returncode}")
        *merge_lines, last = process.stdout.strip().splitlines()
        code, seconds, kib = json.loads(last)
        if code:
            raise WorldError(f"merging failed: {process.stderr.strip().splitlines()[-1]}")
        metrics: Metrics = {
            "merge_small_seconds": round(seconds, 1),
            "merge_small_peak_gib": round(kib / 2**20, 2),
            "merge_small_skills": config.count,
            "merge_small_rank": config.rank,
            "merge_small_bytes": (out / "model.safetensors").stat().st_size,
            "merge_small_skill_bytes": (skills[0] / "model.safetensors").stat().st_size,
        }
        gib = metrics["merge_small_skill_bytes"] / 2**30
        line = f"{config.count} skills of {gib:.2f} GiB: {seconds:.0f} s, {kib / 2**20:.1f} GiB at most"
        return metrics, [line, *merge_lines]
    finally:
        if not config.keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_skills(config: MergeCostBenchConfig) -> list[Path]:
    """Write the base checkpoint and the skills; return the folders of the skills.

    The LoRA factors are random, the experts are those of the base checkpoint with noise, the profiles are far apart.
    """
    import torch

    from ....policy.checkpoint.contents import MODEL_PREFIX
    from ....policy.checkpoint.folder import STARTER_FOLDER, read_contract, write_checkpoint
    from ....policy.core import PolicyCore
    from ....policy.lerobot_files import lerobot_files
    from ....policy.merging.digests import base_digests, learned_digest
    from ....policy.merging.skills import BASE
    from ....policy.network.tokenizer import TOKENIZER_FILE
    from ....policy.pretrained.adaptation import EXPERT_PREFIX, LoraAdaptation

    torch.manual_seed(0)
    contract = _resize_cameras(read_contract(STARTER_FOLDER))
    architecture, text = _architecture_and_tokenizer()
    with torch.device("meta"):
        base_core = PolicyCore(architecture, contract, text)
        skill_core = PolicyCore(architecture, contract, text)
        skill_core.add_lora(LoraAdaptation(config.rank, float(config.rank), skill=True))
    base_weights = {name: _random_like(tensor) for name, tensor in base_core.model.state_dict().items()}
    config_json, text_files = lerobot_files(architecture, contract)
    text_files |= {TOKENIZER_FILE: text}
    config.folder.mkdir(parents=True, exist_ok=True)
    start = config.folder / "base"
    write_checkpoint(start, _add_prefix(base_weights, MODEL_PREFIX), config_json, contract, {}, text_files)
    record = {"skill": base_digests(base_weights), "init": str(start)}
    folders = []
    for number in range(config.count):
        config_json, text_files = lerobot_files(architecture, contract, skill_core.adaptation)
        text_files |= {TOKENIZER_FILE: text}
        tensors = {}
        for name, tensor in skill_core.model.state_dict().items():
            base_tensor = base_weights.get(name.replace(BASE, ""))
            if base_tensor is None or name.startswith(EXPERT_PREFIX):
                tensors[name] = (
                    _random_like(tensor) if base_tensor is None else base_tensor + 0.01 * torch.randn_like(base_tensor)
                )
            else:
                tensors[name] = base_tensor
        profile = _random_profile(base_core, number)
        folders.append(config.folder / f"skill{number}")
        named = _add_prefix(tensors, MODEL_PREFIX) | profile
        provenance = record | {"learned": learned_digest(named)}
        write_checkpoint(folders[-1], named, config_json, contract, provenance, text_files)
    return folders


def _random_like(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.empty(tensor.shape).uniform_(-0.03, 0.03)


def _add_prefix(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _resize_cameras(contract: Contract) -> Contract:
    return replace(contract, cameras=tuple(replace(camera, height=224, width=224) for camera in contract.cameras))


def _architecture_and_tokenizer() -> tuple[Any, str]:
    """Return the preset and a byte tokenizer instead of the trunk's, which is on the Hugging Face hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from ....policy.network.presets import find_preset

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    return replace(find_preset("small"), text_length=128), tokenizer.to_str()


def _random_profile(core: PolicyCore, number: int) -> dict[str, torch.Tensor]:
    import torch

    from ....policy.merging.profile import SkillProfile

    width = core.architecture.condition_width + core.architecture.trunk_width
    features = torch.randn(40, width) + 30 * torch.nn.functional.one_hot(torch.tensor(number), width)
    return SkillProfile.from_features(features, [0] * 40, [frame // 4 for frame in range(40)]).tensors()
