"""What it takes to merge skills of the `small` preset: time and memory, with random weights of the true shapes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....errors import InputError, WorldError
from ..figures import Figures

if TYPE_CHECKING:
    import torch

    from ....policy.contract import Contract
    from ....policy.core import Core

SENTENCES = ("open the drawer", "pick the cube", "pour the ball", "press the button", "close the door", "stack them")

_MEASURED = """
import json, resource, sys, time
from saccade.scripts.main import main
began = time.perf_counter()
code = main(sys.argv[1:])
print(json.dumps([code, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@dataclass(frozen=True)
class MergeSmallConfig:
    """Merge skills of the `small` preset's size, whose weights are random, and measure time and memory.

    Takes some 30 GB of disk below --folder, which are removed at the end.
    """

    folder: Path = Path("runs/merge_small")
    """Where skills and merged checkpoint are written."""
    count: int = 4
    """Skills to merge."""
    rank: int = 32
    """Rank of their factors."""
    merge: Literal["nothing", "expert", "all"] = "nothing"
    """Which of their changes become one."""
    method: str = "ties"
    """Method of the merge, unless nothing is merged."""
    bits: int = 4
    """Bits of an entry of the merged change."""
    keep: bool = False
    """Leave the skills and the merged checkpoint on the disk."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        if not 2 <= self.count <= len(SENTENCES):
            raise InputError("count", got=self.count, expected=f"2 to {len(SENTENCES)}", fix="4 is what is quoted.")
        if self.rank < 1:
            raise InputError("rank", got=self.rank, expected="1 or more", fix="32 is usual.")


def bench_merge_small(config: MergeSmallConfig) -> tuple[Figures, list[str]]:
    """Return the figures and lines for people; raises WorldError when the merge itself fails."""
    folder = config.folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError("folder", got=f"{folder}, which is not empty", expected="a new folder", fix="Name another.")
    try:
        skills = write_skills(config)
        out = folder / "merged"
        command = ["merge", *map(str, skills), "-o", str(out), "--merge", config.merge]
        if config.merge != "nothing":
            command += ["--method", config.method, "--bits", str(config.bits)]
        done = subprocess.run([sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout.strip():
            raise WorldError(f"merging failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        *said, last = done.stdout.strip().splitlines()
        code, seconds, kib = json.loads(last)
        if code:
            raise WorldError(f"merging failed: {done.stderr.strip().splitlines()[-1]}")
        figures: Figures = {
            "merge_small_seconds": round(seconds, 1),
            "merge_small_peak_gib": round(kib / 2**20, 2),
            "merge_small_skills": config.count,
            "merge_small_rank": config.rank,
            "merge_small_bytes": (out / "model.safetensors").stat().st_size,
            "merge_small_skill_bytes": (skills[0] / "model.safetensors").stat().st_size,
        }
        lines = [f"{config.count} skills of {figures['merge_small_skill_bytes'] / 2**30:.2f} GiB: {seconds:.0f} s, "
                 f"{kib / 2**20:.1f} GiB at most", *said]  # fmt: skip
        return figures, lines
    finally:
        if not config.keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_skills(config: MergeSmallConfig) -> list[Path]:
    """Write the beginning and the skills; return the skills' folders.

    Their factors are random and of one size, their experts the beginning's with noise, their profiles far apart.
    """
    import torch

    from ....policy.checkpoint.contents import PREFIX
    from ....policy.checkpoint.folder import STARTER, read_contract, write_checkpoint
    from ....policy.core import Core
    from ....policy.lerobot_files import lerobot_files
    from ....policy.merging.origin import learned_digest, origin
    from ....policy.merging.skills import BASE
    from ....policy.network.tokenizer import TOKENIZER
    from ....policy.pretrained.adaptation import EXPERT, Adaptation

    torch.manual_seed(0)
    contract = _contract(read_contract(STARTER))
    architecture, text = _architecture()
    with torch.device("meta"):
        plain = Core(architecture, contract, text)
        adapted = Core(architecture, contract, text)
        adapted.adapt(Adaptation(config.rank, float(config.rank), skill=True))
    beginning = {name: _random(tensor) for name, tensor in plain.model.state_dict().items()}
    described, texts = lerobot_files(architecture, contract)
    texts |= {TOKENIZER: text}
    config.folder.mkdir(parents=True, exist_ok=True)
    start = config.folder / "beginning"
    write_checkpoint(start, _prefixed(beginning, PREFIX), described, contract, {}, texts)
    record = {"skill": origin(beginning), "init": str(start)}
    folders = []
    for number in range(config.count):
        described, texts = lerobot_files(architecture, contract, adapted.adaptation)
        texts |= {TOKENIZER: text}
        tensors = {}
        for name, tensor in adapted.model.state_dict().items():
            known = beginning.get(name.replace(BASE, ""))
            if known is None or name.startswith(EXPERT):
                tensors[name] = _random(tensor) if known is None else known + 0.01 * torch.randn_like(known)
            else:
                tensors[name] = known
        profile = _profile(plain, number)
        folders.append(config.folder / f"skill{number}")
        named = _prefixed(tensors, PREFIX) | profile
        provenance = record | {"learned": learned_digest(named)}
        write_checkpoint(folders[-1], named, described, contract, provenance, texts)
    return folders


def _random(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.empty(tensor.shape).uniform_(-0.03, 0.03)


def _prefixed(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _contract(contract: Contract) -> Contract:
    return replace(contract, cameras=tuple(replace(camera, height=224, width=224) for camera in contract.cameras))


def _architecture() -> tuple[Any, str]:
    """Return the preset and a tokenizer of bytes in the place of the trunk's own, which is on the hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from ....policy.network.architecture import find_preset

    letters = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    return replace(find_preset("small"), text_length=128), tokenizer.to_str()


def _profile(core: Core, number: int) -> dict[str, torch.Tensor]:
    import torch

    from ....policy.merging.profile import Profile

    width = core.architecture.condition_width + core.architecture.trunk_width
    features = torch.randn(40, width) + 30 * torch.nn.functional.one_hot(torch.tensor(number), width)
    return Profile.of(features, [0] * 40, [place // 4 for place in range(40)]).tensors()
