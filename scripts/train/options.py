"""Options of `saccade train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError
from ...policy.network.architecture import Architecture
from ...policy.network.presets import find_preset, with_changes
from ...ranges import require_at_least
from ...training.configuration import LoopConfig

if TYPE_CHECKING:
    from ...policy.pretrained.adaptation import LoraAdaptation


@dataclass(frozen=True)
class TrainConfig:
    """Train a policy on one or more LeRobotDataset folders.

    The folder --out then holds checkpoint/ (for eval, serve and LeRobot), training_state/ (for --resume), log.jsonl and
    train.json (the options). Evaluate the policy with `saccade eval OUT`. For several GPUs run `accelerate launch -m
    saccade.scripts.main train ...`.
    """

    data: tuple[Path, ...]
    """Folders of demonstrations, as `saccade collect` or LeRobot's recorder write them."""
    out: Path
    """Output folder of the training."""
    init: str | None = None
    """Checkpoint folder to start from, or `starter`. Default: train from scratch."""
    preset: str = "tiny"
    """Architecture preset of a policy that is trained from scratch."""
    change: tuple[str, ...] = ()
    """Architecture fields to change, as FIELD=VALUE: `--change router=original mask=mutual`.
    policy/network/architecture.py lists them. With --init only fields that keep the actions unchanged at the start are
    allowed: `--change history=12 history_selected=4` adds a memory."""
    trunk: str | None = None
    """Pretrained decoder for the trunk: a name on the Hugging Face hub or a folder. It gives sizes, tokenizer and
    weights. Default: random weights with the sizes of the preset."""
    towers: tuple[str, ...] = ()
    """Weights of the vision towers, one source for each: `hub`, a safetensors file or its folder. Default: random
    weights."""
    lora: int = 0
    """LoRA rank; 0 trains all weights. With --trunk and --towers the pretrained parts get LoRA. With --init the result
    is a skill for `saccade merge`: LoRA everywhere except in the expert, which is trained fully. A checkpoint that has
    LoRA keeps it."""
    lora_alpha: float | None = None
    """LoRA alpha. Default: the rank."""
    checkpointing: bool = False
    """Use activation checkpointing in trunk and pretrained towers: less memory, more time."""
    chunk: int = 16
    """Length of an action chunk, T. With --init the chunk length of the checkpoint is used."""
    execute: int = 8
    """Executed steps of a chunk before the next decision. With --init the value of the checkpoint is used."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    precision: Literal["bf16", "no"] = "bf16"
    """Mixed precision: bf16 or no. bf16 is faster on recent CPUs, too."""
    device: Literal["auto", "cpu"] = "auto"
    """Device: auto uses a GPU if there is one."""
    threads: int | None = None
    """CPU threads. Default: all cores."""
    report_to: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Experiment trackers for the log. Each needs the extra of its name: wandb, tensorboard."""
    resume: bool = False
    """Continue the training in --out with the same options."""
    overwrite: bool = False
    """Delete an earlier training in --out."""

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.chunk:
            fix = "Lower --execute or raise --chunk."
            raise InputError("--execute", got=self.execute, expected=f"1 to --chunk ({self.chunk})", fix=fix)
        require_at_least(self, 1, "threads", option=True, fix="Leave out {} for all cores.")
        if self.resume and self.overwrite:
            fix = "Leave out --resume or --overwrite."
            raise InputError("--resume", got="--resume and --overwrite", expected="one of them", fix=fix)
        self._check_pretrained()
        self._check_lora()
        # The sizes of a pretrained trunk may have to be downloaded, and a checkpoint be read: checked later.
        if self.trunk is None and self.init is None:
            self.architecture()
        find_preset(self.preset)

    def _check_pretrained(self) -> None:
        """Refuse --trunk, --towers and --preset together with a checkpoint."""
        for name in ("trunk", "towers"):
            if self.init is not None and getattr(self, name):
                fix = f"Leave out --init or --{name}: a checkpoint has its own weights."
                raise InputError(f"--{name}", got=f"--{name} and --init", expected="one of them", fix=fix)
        if self.init is not None and self.preset != "tiny":
            fix = "Leave out --preset: --init keeps the architecture of the checkpoint."
            raise InputError("--preset", got="--preset and --init", expected="one of them", fix=fix)

    def _check_lora(self) -> None:
        """Refuse LoRA options without pretrained weights, and numbers out of range."""
        require_at_least(self, 0, "lora", option=True, fix="Use {} 16, or 0 for none.")
        if self.lora and self.init is None:
            tower_changes = [change for change in self.change if change.startswith("towers=")]
            has_towers = tower_changes[-1] != "towers=" if tower_changes else bool(find_preset(self.preset).towers)
            missing_options = ["--trunk"] * (self.trunk is None) + ["--towers"] * (has_towers and not self.towers)
            if missing_options:
                fix = "Give --trunk and --towers, start from a checkpoint with --init, or leave out --lora."
                got = f"no {' and no '.join(missing_options)}"
                raise InputError("--lora", got=got, expected="pretrained weights", fix=fix)
        if self.lora_alpha is not None and not (self.lora and 0 < self.lora_alpha < float("inf")):
            got = f"{self.lora_alpha} with rank {self.lora}"
            fix = "Set --lora, too, or leave out --lora-alpha."
            raise InputError("--lora-alpha", got=got, expected="a number above 0, and a rank", fix=fix)

    def architecture(self) -> Architecture:
        """Return the preset with the fields of the pretrained trunk, then with those of --change.

        Raises:
            InputError: A change does not fit, or the trunk's source cannot be read.
        """
        found: dict[str, Any] = {}
        if self.trunk is not None:
            from ...policy.pretrained.backbones import trunk_fields

            found = trunk_fields(self.trunk, padding=not any(each.startswith("padding=") for each in self.change))
        return with_changes(
            find_preset(self.preset), [*(f"{name}={value}" for name, value in found.items()), *self.change]
        )

    def adaptation(self) -> LoraAdaptation | None:
        """Return the LoRA that --lora asks for; None if all weights are trained."""
        from ...policy.pretrained.adaptation import LoraAdaptation

        if not self.lora:
            return None
        return LoraAdaptation(self.lora, self.lora_alpha or float(self.lora), skill=self.init is not None)
