"""Run a merged policy: one network, whose weights are changed to those of the skill that the router selects.

    weight of skill k = base weight + scale_k * mask_k * merged change
                   or = base weight + up_k @ down_k, where each skill has factors

Tensors that each skill keeps (the last expert blocks) and its normalisation statistics are swapped with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError, unknown_name
from ..checkpoint.contents import SKILLS_FILE, load_tensors, network_tensors
from ..checkpoint.folder import Checkpoint
from ..contract import Contract, Normalization
from ..core import PolicyCore
from ..network.architecture import Architecture
from ..normalization import Normalizer
from .masks import unpack_bits
from .quantisation import dequantise
from .router import Router, RoutingDecision

DELTA_PREFIX, STEP_PREFIX, MASK_PREFIX, SCALE_PREFIX, OWN_PREFIX, FACTOR_PREFIX = (
    "change.",
    "step.",
    "mask.",
    "scale.",
    "own.",
    "factor.",
)
"""Prefixes of tensor names: entries and steps of a merged change, mask and kept tensors of skill k (`mask.k.NAME`),
scales of all skills [K], and entries and steps of the factors of skill k (`factor.k.up.NAME`)."""

FACTOR_BITS = 8
FACTOR_PARTS = ("up", "up_step", "down", "down_step")

SWITCHES = ("instruction", "chunk")


@dataclass(frozen=True)
class SkillTable:
    """Content of `skills.json`, written by `merge_skills`.

    Attributes:
        names: Names of the skills.
        normalization: Statistics of each skill.
        changed: Names of the weights with a merged change.
        factored: Names of the weights with factors, with the rank of each skill.
        own: Names of the tensors that each skill keeps.
        bits: Bits per entry of the merged change.
        masked: Whether each skill has masks.
        switch: When the router selects the skill, one of `SWITCHES`.
        router: Numbers of the router, see `Router.settings`.
        options: The options of the merge.
    """

    names: tuple[str, ...]
    normalization: tuple[Normalization, ...]
    changed: tuple[str, ...]
    factored: Mapping[str, Sequence[int]]
    own: tuple[str, ...]
    bits: int
    masked: bool
    switch: str
    router: Mapping[str, float]
    options: Mapping[str, Any]

    @classmethod
    def read(cls, text: str, source: str) -> SkillTable:
        """Read the table from the text of `skills.json`; raises InputError if it is damaged."""
        values = json.loads(text)
        field_names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != field_names:
            got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
            fix = "Use the version that merged the skills, or merge them again."
            raise InputError(f"{source}/{SKILLS_FILE}", got=got, expected=", ".join(sorted(field_names)), fix=fix)
        ranks = values["factored"]
        skills = len(values["names"])
        if not isinstance(ranks, dict) or not all(isinstance(r, list) and len(r) == skills for r in ranks.values()):
            expected = "for every weight with factors a rank of each skill"
            raise InputError(
                f"{source}/{SKILLS_FILE}: factored", got="others", expected=expected, fix="Merge the skills again."
            )
        values |= {name: tuple(values[name]) for name in ("names", "changed", "own")}
        values["normalization"] = tuple(Normalization(**each) for each in values["normalization"])
        return cls(**values)


class MergedCore(PolicyCore):
    """The policy of a merged checkpoint: `route` selects a skill, `select` activates it, then it decides as any other.

    Attributes:
        skills: Names of the skills.
        switch: When the router selects the skill: at a new "instruction" or episode, or before every "chunk".
        active: Number of the active skill; None while the weights are those of the base policy.
    """

    def __init__(
        self,
        architecture: Architecture,
        contract: Contract,
        tokenizer_text: str | None,
        table: SkillTable,
        tensors: Mapping[str, torch.Tensor],
        source: str,
    ) -> None:
        super().__init__(architecture, contract, tokenizer_text)
        self.skills, self.switch = table.names, table.switch
        self.active: int | None = None
        self._table = table
        self._router = Router.read(tensors, table.router, source)
        self._skill_tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_SKILL_PREFIXES)}
        self._base_weights: dict[str, torch.Tensor] = {}
        self._check(source)

    def _check(self, source: str) -> None:
        count = len(self.skills)
        wanted = {f"{kind}{name}" for name in self._table.changed for kind in (DELTA_PREFIX, STEP_PREFIX, SCALE_PREFIX)}
        wanted |= {f"{OWN_PREFIX}{skill}.{name}" for name in self._table.own for skill in range(count)}
        wanted |= {
            f"{FACTOR_PREFIX}{skill}.{part}.{name}"
            for name in self._table.factored
            for part in FACTOR_PARTS
            for skill in range(count)
        }
        if self._table.masked:
            wanted |= {f"{MASK_PREFIX}{skill}.{name}" for name in self._table.changed for skill in range(count)}
        if wanted != set(self._skill_tensors) or self._router.skills != count:
            odd = sorted(wanted ^ set(self._skill_tensors)) or [f"a router of {self._router.skills} skills"]
            fix = "Merge the skills again."
            raise InputError(f"{source}", got=f"{odd[0]} missing or left over", expected="a complete merge", fix=fix)

    def load(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        """Load the base weights; raises InputError if they do not fit the network."""
        load_tensors(self.model, tensors, source)
        own = self.model.state_dict()
        self._base_weights = {
            name: own[name].clone() for name in (*self._table.changed, *self._table.factored, *self._table.own)
        }

    def route(self, images: torch.Tensor, instruction: str, state: torch.Tensor) -> RoutingDecision:
        """Select the skill for one observation, with one forward pass of the base policy.

        Args:
            images: uint8 [1, V, 3, H, W].
            instruction: The instruction.
            state: [1, S].
        """
        self.select(None)
        return self._router.route(self.routing_features(images, [instruction], state)[0].cpu(), self.skills)

    def number(self, skill: str) -> int:
        """Return the number of a skill by name; raises InputError that suggests the nearest name if it is unknown."""
        if skill not in self.skills:
            raise unknown_name("skill", skill, self.skills)
        return self.skills.index(skill)

    @torch.no_grad()
    def select(self, skill: int | None) -> None:
        """Activate a skill, or the base policy with None; nothing is read from the disk."""
        if skill == self.active:
            return
        # In place, so that a captured CUDA graph uses the new weights.
        weights = self.model.state_dict()
        for name in (*self._table.changed, *self._table.factored):
            weights[name].copy_(self._base_weights[name])
            if skill is not None:
                weights[name].add_(self._delta(name, skill).to(weights[name].device, weights[name].dtype))
        for name in self._table.own:
            weights[name].copy_(
                self._base_weights[name] if skill is None else self._skill_tensors[f"{OWN_PREFIX}{skill}.{name}"]
            )
        number = 0 if skill is None else skill
        self.normalizer = Normalizer(self._table.normalization[number])
        self.active = skill

    def _delta(self, name: str, skill: int) -> torch.Tensor:
        """Return the change of a weight by a skill, in the shape of the weight."""
        shape = self._base_weights[name].shape
        if FACTOR_PREFIX + f"{skill}.up.{name}" in self._skill_tensors:
            return self._factor_product(name, skill).view(shape)
        delta = dequantise(
            self._skill_tensors[DELTA_PREFIX + name], self._skill_tensors[STEP_PREFIX + name], shape, self._table.bits
        )
        delta = delta * self._skill_tensors[SCALE_PREFIX + name][skill]
        return (
            delta * unpack_bits(self._skill_tensors[f"{MASK_PREFIX}{skill}.{name}"], shape)
            if self._table.masked
            else delta
        )

    def _factor_product(self, name: str, skill: int) -> torch.Tensor:
        """Return the product up @ down of a skill's factors, [m, n]."""
        up, up_step, down, down_step = (
            self._skill_tensors[f"{FACTOR_PREFIX}{skill}.{part}.{name}"] for part in FACTOR_PARTS
        )
        rows = len(self._base_weights[name])
        columns = self._base_weights[name].numel() // rows
        rank = self._table.factored[name][skill]
        return dequantise(up, up_step, (rows, rank), FACTOR_BITS) @ dequantise(
            down, down_step, (rank, columns), FACTOR_BITS
        )


_SKILL_PREFIXES = (DELTA_PREFIX, STEP_PREFIX, MASK_PREFIX, SCALE_PREFIX, OWN_PREFIX, FACTOR_PREFIX)


def load_merged(
    folder: str | Path,
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokenizer_text: str | None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MergedCore:
    """Build the policy of a merged checkpoint.

    Args:
        folder: Folder of the checkpoint.
        checkpoint: Its content.
        architecture: Architecture of the network.
        tokenizer_text: Text of tokenizer.json, if there is one.
        device: Device of the network.
        dtype: dtype of its weights.

    Raises:
        InputError: The checkpoint is damaged.
    """
    table = SkillTable.read((Path(folder) / SKILLS_FILE).read_text(encoding="utf-8"), str(folder))
    with torch.device("meta"):
        core = MergedCore(architecture, checkpoint.contract, tokenizer_text, table, checkpoint.tensors, str(folder))
    weights = network_tensors(checkpoint)
    core.load({name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}, str(folder))
    core.model.eval()
    return core
