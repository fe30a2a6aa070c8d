"""Options of `saccade train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError
from ...policy.network.architecture import Architecture, find_preset, with_changes
from ...training.configuration import LoopConfig

if TYPE_CHECKING:
    from ...policy.pretrained.adaptation import LoraAdaptation


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
    change: tuple[str, ...] = ()
    """Fields of the preset to change, as FIELD=VALUE: `--change router=original mask=mutual`. All fields and their
    values stand in policy/network/architecture.py. With --init only those that leave what the policy decides as it
    was, at first: `--change history=12 history_selected=4` gives it a memory."""
    trunk: str | None = None
    """Pretrained decoder, a name on the Hugging Face hub or a folder: sizes, tokenizer and weights of the trunk come
    from it. Random weights at the preset's sizes when left out."""
    towers: tuple[str, ...] = ()
    """Weights of the preset's pretrained towers, one source for each: `hub`, a safetensors file or a folder with one.
    Random weights when left out."""
    lora: int = 0
    """Rank of low-rank factors beside frozen weights; 0 trains all weights, and a policy that has factors keeps them.
    With --trunk and --towers the pretrained parts get factors. With --init it is a skill that is learned, to be merged
    with others of the same beginning by `saccade merge`: factors everywhere but in the expert, which learns as a
    whole."""
    lora_alpha: float | None = None
    """Scale of the factors, alpha; the rank when left out."""
    checkpointing: bool = False
    """Compute activations of trunk and pretrained towers again in the backward pass: less memory, more time."""
    chunk: int = 16
    """Steps decided at once, T; a policy that is fine-tuned keeps its own."""
    execute: int = 8
    """Steps of a chunk that are executed before the next decision; a policy that is fine-tuned keeps its own."""
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

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.chunk:
            raise InputError("execute", got=self.execute, expected=f"1 to chunk ({self.chunk})", fix="Change either.")
        if self.threads is not None and self.threads < 1:
            raise InputError("threads", got=self.threads, expected="1 or more", fix="Leave it out for all cores.")
        if self.resume and self.overwrite:
            raise InputError("resume", got="overwrite too", expected="one of the two", fix="Leave one of them out.")
        self._check_pretrained()
        # What follows from a trunk's source takes a look at it, which may be far away; so may a checkpoint be.
        if self.trunk is None and self.init is None:
            self.architecture()
        find_preset(self.preset)

    def _check_pretrained(self) -> None:
        for name in ("trunk", "towers"):
            if self.init is not None and getattr(self, name):
                fix = "Leave one of them out: a checkpoint brings its weights."
                raise InputError(name, got="init too", expected="one of the two", fix=fix)
        if self.init is not None and self.preset != "tiny":
            fix = "Leave it out: a checkpoint keeps its shape."
            raise InputError("init", got="preset too", expected="a checkpoint alone", fix=fix)
        if self.lora < 0:
            raise InputError("lora", got=self.lora, expected="a rank above 0, or 0 for none", fix="16 is usual.")
        if self.lora and self.init is None:
            named = [change for change in self.change if change.startswith("towers=")]
            has_towers = named[-1] != "towers=" if named else bool(find_preset(self.preset).towers)
            missing_options = ["--trunk"] * (self.trunk is None) + ["--towers"] * (has_towers and not self.towers)
            if missing_options:
                fix = "Name them, go on from a checkpoint with --init, or train all weights."
                raise InputError(
                    "lora", got=f"no {' and no '.join(missing_options)}", expected="pretrained weights", fix=fix
                )
        if self.lora_alpha is not None and not (self.lora and 0 < self.lora_alpha < float("inf")):
            got = f"{self.lora_alpha} with rank {self.lora}"
            fix = "Set --lora too, or leave it out."
            raise InputError("lora_alpha", got=got, expected="a number above 0, and a rank", fix=fix)

    def architecture(self) -> Architecture:
        """Return the preset with what follows from the trunk's source, then with its changes.

        Raises InputError for those that do not fit, and for a source that cannot be read.
        """
        found: dict[str, Any] = {}
        if self.trunk is not None:
            from ...policy.pretrained.backbones import trunk_fields

            found = trunk_fields(self.trunk, padding=not any(each.startswith("padding=") for each in self.change))
        return with_changes(
            find_preset(self.preset), [*(f"{name}={value}" for name, value in found.items()), *self.change]
        )

    def adaptation(self) -> LoraAdaptation | None:
        """Return how pretrained parts learn, None for as a whole."""
        from ...policy.pretrained.adaptation import LoraAdaptation

        if not self.lora:
            return None
        return LoraAdaptation(self.lora, self.lora_alpha or float(self.lora), skill=self.init is not None)
