"""Skills on disk: opened without reading them whole, checked against each other before anything is merged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...errors import InputError
from ..checkpoint.contents import PREFIX, architecture_from_dict, read_tokenizer_text
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
    """A skill's checkpoint: `tensors` are read one by one, by the names they have in the file.

    `unadapted_names` maps the names of a policy without factors to those in the file.
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
        """The plain names of the weights that have factors beside them."""
        ending = DOWN
        return sorted(
            name.removeprefix(PREFIX).removesuffix(ending) + ".weight" for name in self.tensors if name.endswith(ending)
        )

    def delta(self, name: str) -> TaskVector:
        """Return what the skill added to a factored weight, from its factors in float32.

        A convolution's kernel counts as a matrix of its outputs. Raises InputError for a factor that is not finite.
        """
        layer = PREFIX + name.removesuffix(".weight")
        down, up = (self.tensors[layer + each].float().flatten(1) for each in (DOWN, UP))
        try:
            return TaskVector(up * (self.adaptation.alpha / self.adaptation.rank), down)
        except InputError as error:
            what = f"skill {self.name}: {name}"
            raise InputError(what, got=error.got, expected=error.expected, fix=error.fix) from None

    def weight(self, name: str) -> torch.Tensor:
        """Return a tensor of the policy by its plain name: without what factors add to it."""
        return self.tensors[self.unadapted_names[name]]

    def profile(self) -> SkillProfile:
        """Return how the beginning sees the skill's demonstrations."""
        return SkillProfile.read(self.tensors, self.name)


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())
        self._known = set(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._known:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_skill(folder: str, name: str) -> SkillCheckpoint:
    """Open a skill's checkpoint; raises InputError for a damaged one, and for one that is no skill."""
    path = find_checkpoint(folder)
    checkpoint = verify_checkpoint(path, weights=False)
    adaptation = read_lora_adaptation(checkpoint.config, f"{path}/config.json")
    base_digests = checkpoint.provenance.get("skill")
    if adaptation is None or not adaptation.skill or not isinstance(base_digests, dict):
        raise InputError(
            f"skill {folder}",
            got="a policy that was trained as a whole" if adaptation is None else "a policy with other factors",
            expected="a skill: factors beside the weights of a recorded beginning",
            fix="Train it with `saccade train --init CHECKPOINT --lora 16`.",
        )
    architecture = architecture_from_dict(checkpoint.config["architecture"], f"{path}/config.json")
    tensors = LazyTensors(path / MODEL_FILE)
    _verify_learned(path, checkpoint, tensors)
    unadapted_names = {
        name.removeprefix(PREFIX).replace(BASE, ""): name
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
    """Verify what merging reads of a skill, or the whole file where that was not recorded by itself."""
    recorded = checkpoint.provenance.get("learned")
    if recorded is None:
        verify_checkpoint(path)
        return
    found = learned_digest(tensors)
    if found != recorded:
        got, expected = f"factors and expert with sha256 {found[:12]}", f"{str(recorded)[:12]}, as recorded"
        raise InputError(str(path / MODEL_FILE), got=got, expected=expected, fix=COPY_AGAIN)


def check_compatible(skills: Sequence[SkillCheckpoint]) -> None:
    """Raise InputError unless the skills can be merged: two or more, all different, of one beginning and one kind."""
    if len(skills) < 2:
        fix = "Name another one."
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
                fix="Merge skills that were trained from one checkpoint.",
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
        found.append(("beginning", got, want))
    if set(first.factored) != set(other.factored):
        found.append(("factors", f"beside {len(other.factored)} weights", f"beside {len(first.factored)}"))
    return found
