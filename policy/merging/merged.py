"""A merged policy at work: one set of weights, which become a skill's when the router has chosen it.

    weight of skill k = weight of the beginning + scale_k * mask_k * merged change
                   or = weight of the beginning + up_k @ down_k, where it kept factors

What belongs to a skill alone (the end of its expert, its statistics) is put in place with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError, unknown_name
from ..checkpoint.contents import SKILLS, load_tensors, network_tensors
from ..checkpoint.folder import Checkpoint
from ..contract import Contract, Normalization
from ..core import Core
from ..network.architecture import Architecture
from ..normalization import Normalizer
from .masks import unpack
from .quantisation import restore
from .router import Route, Router

CHANGE, STEP, MASK, SCALE, OWN, FACTOR = "change.", "step.", "mask.", "scale.", "own.", "factor."
"""How the names of tensors begin: of a merged change its entries and steps, of skill k mask and own tensors
(`mask.k.NAME`), every skill's scales [K], and of kept factors entries and steps (`factor.k.up.NAME`)."""

FACTOR_BITS = 8
FACTOR_PARTS = ("up", "up_step", "down", "down_step")

SWITCHES = ("instruction", "chunk")


@dataclass(frozen=True)
class SkillTable:
    """What `skills.json` says: see `merge_skills`. Raises InputError for a damaged one."""

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
        values = json.loads(text)
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
            fix = "Use the version that merged the skills, or merge them again."
            raise InputError(f"{source}/{SKILLS}", got=got, expected=", ".join(sorted(known)), fix=fix)
        ranks = values["factored"]
        skills = len(values["names"])
        if not isinstance(ranks, dict) or not all(isinstance(r, list) and len(r) == skills for r in ranks.values()):
            expected = "for every weight with factors a rank of each skill"
            raise InputError(f"{source}/{SKILLS}: factored", got="others", expected=expected, fix="Merge them again.")
        values |= {name: tuple(values[name]) for name in ("names", "changed", "own")}
        values["normalization"] = tuple(Normalization(**each) for each in values["normalization"])
        return cls(**values)


class MergedCore(Core):
    """The policy of a merged checkpoint: `route` to find the skill, `select` to become it, then decide as any other.

    `switch`: when a skill is looked for, at a new "instruction" or episode, or before every "chunk".
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
        self._stored = {name: tensor for name, tensor in tensors.items() if name.startswith(_STORED)}
        self._beginning: dict[str, torch.Tensor] = {}
        self._check(source)

    def _check(self, source: str) -> None:
        count = len(self.skills)
        wanted = {f"{kind}{name}" for name in self._table.changed for kind in (CHANGE, STEP, SCALE)}
        wanted |= {f"{OWN}{skill}.{name}" for name in self._table.own for skill in range(count)}
        wanted |= {
            f"{FACTOR}{skill}.{part}.{name}"
            for name in self._table.factored
            for part in FACTOR_PARTS
            for skill in range(count)
        }
        if self._table.masked:
            wanted |= {f"{MASK}{skill}.{name}" for name in self._table.changed for skill in range(count)}
        if wanted != set(self._stored) or self._router.skills != count:
            odd = sorted(wanted ^ set(self._stored)) or [f"a router of {self._router.skills} skills"]
            fix = "Merge the skills again."
            raise InputError(f"{source}", got=f"{odd[0]} missing or left over", expected="a whole merge", fix=fix)

    def load(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        """Put the weights of the beginning in place; raises InputError for those that do not fit."""
        load_tensors(self.model, tensors, source)
        own = self.model.state_dict()
        self._beginning = {
            name: own[name].clone() for name in (*self._table.changed, *self._table.factored, *self._table.own)
        }

    def route(self, images: torch.Tensor, instruction: str, state: torch.Tensor) -> Route:
        """Return which skill one observation [1, ...] under an instruction asks for, in one pass for all of them."""
        self.select(None)
        return self._router.route(self.describe(images, [instruction], state)[0].cpu(), self.skills)

    def number(self, skill: str) -> int:
        """Return a skill's number; an unknown name is an InputError with the nearest one."""
        if skill not in self.skills:
            raise unknown_name("skill", skill, self.skills)
        return self.skills.index(skill)

    @torch.no_grad()
    def select(self, skill: int | None) -> None:
        """Become a skill, or, with None, what all of them began as; nothing is read from the disk."""
        if skill == self.active:
            return
        # In place, so that a captured decision goes on with the new weights.
        weights = self.model.state_dict()
        for name in (*self._table.changed, *self._table.factored):
            weights[name].copy_(self._beginning[name])
            if skill is not None:
                weights[name].add_(self._change(name, skill).to(weights[name].device, weights[name].dtype))
        for name in self._table.own:
            weights[name].copy_(self._beginning[name] if skill is None else self._stored[f"{OWN}{skill}.{name}"])
        number = 0 if skill is None else skill
        self.normalizer = Normalizer(self._table.normalization[number])
        self.active = skill

    def _change(self, name: str, skill: int) -> torch.Tensor:
        """Return what a skill adds to a weight."""
        shape = self._beginning[name].shape
        if FACTOR + f"{skill}.up.{name}" in self._stored:
            return self._product(name, skill).view(shape)
        change = restore(self._stored[CHANGE + name], self._stored[STEP + name], shape, self._table.bits)
        change = change * self._stored[SCALE + name][skill]
        return change * unpack(self._stored[f"{MASK}{skill}.{name}"], shape) if self._table.masked else change

    def _product(self, name: str, skill: int) -> torch.Tensor:
        """Return the product of a skill's factors for a weight, [m, n]."""
        up, up_step, down, down_step = (self._stored[f"{FACTOR}{skill}.{part}.{name}"] for part in FACTOR_PARTS)
        rows = len(self._beginning[name])
        columns = self._beginning[name].numel() // rows
        rank = self._table.factored[name][skill]
        return restore(up, up_step, (rows, rank), FACTOR_BITS) @ restore(down, down_step, (rank, columns), FACTOR_BITS)


_STORED = (CHANGE, STEP, MASK, SCALE, OWN, FACTOR)


def load_merged(
    folder: str | Path,
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokenizer_text: str | None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MergedCore:
    """Build the policy of a merged checkpoint; raises InputError for a damaged one."""
    table = SkillTable.read((Path(folder) / SKILLS).read_text(encoding="utf-8"), str(folder))
    with torch.device("meta"):
        core = MergedCore(architecture, checkpoint.contract, tokenizer_text, table, checkpoint.tensors, str(folder))
    weights = network_tensors(checkpoint)
    core.load({name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}, str(folder))
    core.model.eval()
    return core
