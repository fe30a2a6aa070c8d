"""The shape of a policy as data, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import InputError, unknown_name


@dataclass(frozen=True)
class Architecture:
    """Every size of the network; the contract's sizes (cameras, state, action, chunk) are not here.

    Raises InputError when numbers do not fit together.
    """

    text_length: int = 56
    """Text tokens of the instruction, its start included."""
    condition_width: int = 128
    """Width of the instruction's vector."""
    stem_width: int = 64
    stem_blocks: int = 2
    points: int = 8
    """Pointing maps of a view; the first two can be taught with labels."""
    tower_width: int = 128
    tower_blocks: int = 2
    tower_heads: int = 4
    aggregation_tokens: int = 9
    """Tokens that leave a view, M."""
    trunk_width: int = 128
    trunk_layers: int = 4
    trunk_heads: int = 4
    trunk_feed_forward: int = 256
    prune_from: int = 1
    """First trunk layer that prunes."""
    keep_floor: float = 0.4
    """Least fraction of a view's tokens that a layer keeps."""
    expert_width: int = 128
    expert_blocks: int = 4
    expert_heads: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds, wanted = ((int, float), "a number") if field.type == "float" else ((int,), "a whole number")
            if type(value) not in kinds or not (value > 0 or (field.name == "prune_from" and value == 0)):
                raise InputError(f"architecture.{field.name}", got=value, expected=f"{wanted} above 0", fix="Set it.")
        if not (self.keep_floor <= 1.0 and self.prune_from <= self.trunk_layers):
            raise InputError(
                "architecture: pruning",
                got=f"keep_floor {self.keep_floor} from layer {self.prune_from}",
                expected=f"keep_floor at most 1, prune_from at most trunk_layers ({self.trunk_layers})",
                fix="prune_from = trunk_layers turns pruning off.",
            )
        for width, heads in (
            ("tower_width", "tower_heads"),
            ("trunk_width", "trunk_heads"),
            ("expert_width", "expert_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise InputError(
                    f"architecture.{width}",
                    got=f"{getattr(self, width)} with {getattr(self, heads)} heads",
                    expected="a multiple of the heads",
                    fix=f"Change {width} or {heads}.",
                )
        if self.points < 2:
            raise InputError("architecture.points", got=self.points, expected="2 or more", fix="Two can be taught.")
        if self.stem_width % 16:
            raise InputError(
                "architecture.stem_width", got=self.stem_width, expected="a multiple of 16", fix="64 is usual."
            )
        if not 1 <= self.expert_blocks <= self.trunk_layers:
            raise InputError(
                "architecture.expert_blocks",
                got=self.expert_blocks,
                expected=f"1 to trunk_layers ({self.trunk_layers})",
                fix="Each block reads one trunk layer.",
            )


PRESETS = {"tiny": Architecture()}


def find_preset(name: str) -> Architecture:
    """Return a preset; an unknown name is an InputError with the nearest one."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
