"""Open the checkpoints of skills without reading all weights, and check that they can be merged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...errors import InputError
from ..checkpoint.contents import MODEL_PREFIX, architecture_from_dict, read_tokenizer_text
from ..checkpoint.folder import COPY_AGAIN, MODEL_FILE, Checkpoint, find_checkpoint, verify_checkpoint
from ..contract import Contract
from ..network.architecture import Architecture
from ..pretrained.adaptation import LoraAdaptation, read_lora_adaptation
from .digests import learned_digest
from .operators.task_vector import TaskVector
from .profile import ROUTING_PREFIX, SkillProfile

BASE, DOWN, UP = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class SkillCheckpoint:
    """The checkpoint of a skill.

    Attributes:
        name: Name of the skill.
        folder: Folder of the checkpoint.
        architecture: Architecture of the network.
        adaptation: Rank and alpha of the LoRA factors.
        contract: Contract of the policy.
        tokenizer_text: Text of tokenizer.json, if there is one.
        base_digests: Digests of the base weights, see `digests.base_digests`.
        init: Path of the base checkpoint at training time.
        digest: sha256 of the weights file.
        tensors: The tensors by their names in the file, each read on request.
        unadapted_names: Maps the names of a network without LoRA factors to those in the file.
    """

    name: str
    folder: Path
    architecture: Architecture
    adaptation: LoraAdaptation
    contract: Contract
    tokenizer_text: str | None
    base_digests: Mapping[str, str]
    init: str
    digest: str
    tensors: Mapping[str, torch.Tensor]
    unadapted_names: Mapping[str, str]

    @property
    def factored(self) -> list[str]:
        """Names (without LoRA) of the weights that have LoRA factors."""
        return sorted(
            name.removeprefix(MODEL_PREFIX).removesuffix(DOWN) + ".weight"
            for name in self.tensors
            if name.endswith(DOWN)
        )

    def delta(self, name: str) -> TaskVector:
        """Return the task vector of a weight, from its LoRA factors in float32.

        Args:
            name: Name of the weight without LoRA. A convolution [m, channels, height, width] counts as a matrix [m, n].

        Raises:
            InputError: A value is not finite.
        """
        layer = MODEL_PREFIX + name.removesuffix(".weight")
        down, up = (self.tensors[layer + each].float().flatten(1) for each in (DOWN, UP))  # [r, n], [m, r]
        try:
            return TaskVector(up * (self.adaptation.alpha / self.adaptation.rank), down)
        except InputError as error:
            what = f"skill {self.name}: {name}"
            raise InputError(what, got=error.got, expected=error.expected, fix=error.fix) from None

    def weight(self, name: str) -> torch.Tensor:
        """Return a tensor by its name without LoRA; LoRA factors are not added."""
        return self.tensors[self.unadapted_names[name]]

    def profile(self) -> SkillProfile:
        """Return the features of the skill's demonstrations for the router."""
        return SkillProfile.read(self.tensors, self.name)


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each read on request."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())
        self._name_set = set(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._name_set:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_skill(folder: str, name: str) -> SkillCheckpoint:
    """Open the checkpoint of a skill.

    Args:
        folder: Folder of the checkpoint or of its training.
        name: Name that the skill gets.

    Raises:
        InputError: The checkpoint is damaged, or not a skill.
    """
    path = find_checkpoint(folder)
    checkpoint = verify_checkpoint(path, weights=False)
    adaptation = read_lora_adaptation(checkpoint.config, f"{path}/config.json")
    base_digests = checkpoint.provenance.get("skill")
    if adaptation is None or not adaptation.skill or not isinstance(base_digests, dict):
        raise InputError(
            f"skill {folder}",
            got="a policy without LoRA factors" if adaptation is None else "a policy whose LoRA factors are no skill",
            expected="a skill: LoRA factors next to recorded base weights",
            fix="Train it with `saccade train --init CHECKPOINT --lora 16`.",
        )
    architecture = architecture_from_dict(checkpoint.config["architecture"], f"{path}/config.json")
    tensors = LazyTensors(path / MODEL_FILE)
    _verify_learned(path, checkpoint, tensors)
    unadapted_names = {
        name.removeprefix(MODEL_PREFIX).replace(BASE, ""): name
        for name in tensors
        if not name.startswith(ROUTING_PREFIX) and not re.search(r"\.lora_[AB]\.", name)
    }
    return SkillCheckpoint(
        name=name,
        folder=path,
        architecture=architecture,
        adaptation=adaptation,
        contract=checkpoint.contract,
        tokenizer_text=read_tokenizer_text(path, checkpoint, architecture),
        base_digests=base_digests,
        init=str(checkpoint.provenance.get("init")),
        digest=checkpoint.provenance["files"][MODEL_FILE]["sha256"],
        tensors=tensors,
        unadapted_names=unadapted_names,
    )


def _verify_learned(path: Path, checkpoint: Checkpoint, tensors: LazyTensors) -> None:
    """Verify the tensors that merging reads, or the whole file if no digest of them was recorded."""
    recorded = checkpoint.provenance.get("learned")
    if recorded is None:
        verify_checkpoint(path)
        return
    digest = learned_digest(tensors)
    if digest != recorded:
        got, expected = f"factors and expert with sha256 {digest[:12]}", f"{str(recorded)[:12]}, as recorded"
        raise InputError(str(path / MODEL_FILE), got=got, expected=expected, fix=COPY_AGAIN)


def check_compatible(skills: Sequence[SkillCheckpoint]) -> None:
    """Raise InputError unless there are two or more different skills with one base checkpoint and architecture."""
    if len(skills) < 2:
        fix = "Give two or more skills."
        raise InputError("skills", got=f"{len(skills)}", expected="two or more to merge", fix=fix)
    first = skills[0]
    for number, skill in enumerate(skills):
        for other in skills[:number]:
            if skill.digest == other.digest:
                got = f"{skill.folder}, with the same weights as {other.folder}"
                raise InputError("skills", got=got, expected="every skill once", fix="Leave one of them out.")
            if skill.name == other.name:
                got, fix = f"the name {skill.name} twice", "Give them names with --names."
                raise InputError("skills", got=got, expected="every name once", fix=fix)
    for skill in skills[1:]:
        differences = _differences(first, skill)
        if differences:
            raise InputError(
                f"skill {skill.name}",
                got="; ".join(f"{what} {got}" for what, got, _ in differences),
                expected=f"what {first.name} has: " + "; ".join(f"{what} {want}" for what, _, want in differences),
                fix="Merge skills that were fine-tuned from one checkpoint.",
            )


def _differences(first: SkillCheckpoint, other: SkillCheckpoint) -> list[tuple[str, str, str]]:
    found = []
    one, two = asdict(first.architecture), asdict(other.architecture)
    found += [(f"architecture.{key}", str(two[key]), str(one[key])) for key in one if one[key] != two[key]]
    if first.tokenizer_text != other.tokenizer_text:
        found.append(("tokenizer", "another one", "one"))
    one, two = (json.loads(each.contract.to_json()) for each in (first, other))
    names = [key for key in one if key != "normalization" and one[key] != two[key]]
    found += [(f"contract.{key}", json.dumps(two[key])[:80], json.dumps(one[key])[:80]) for key in names]
    if first.base_digests != other.base_digests:
        got, want = (f"{each.init} ({str(each.base_digests.get('weights'))[:12]})" for each in (other, first))
        found.append(("base weights", got, want))
    if set(first.factored) != set(other.factored):
        found.append(("LoRA factors", f"of {len(other.factored)} weights", f"of {len(first.factored)}"))
    return found
