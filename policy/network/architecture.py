"""The architecture of a policy as data: its sizes and its choices of method.

The defaults are this project's. The other values of a choice are those of CogVLA (arXiv 2508.21046), OpenVLA-OFT
(arXiv 2502.19645), VLA-Adapter or MergeVLA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ...errors import InputError, unknown_name
from .sequence import MASKS, check_order

CHOICES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("bytes", "trunk"),
    "instruction_features": ("ordered", "mean", "mean_padded"),
    "fusion": ("gated", "concatenated"),
    "mask": MASKS,
    "positions": ("fixed", "counted", "renumbered"),
    "router": ("direction", "original"),
    "router_signal": ("kept", "straight_through"),
    "kernels": ("torch", "saccade"),
    "slot_queries": ("learned", "zero"),
    "slot_unit": ("step", "element"),
    "readout": ("expert", "slots", "mergevla", "vla_adapter"),
    "expert_rotation": ("paired", "mixed", "none"),
    "expert_start": ("learned", "zero"),
}
"""The values of the fields that choose a method."""

ZERO_ALLOWED_FIELDS = (
    *("prune_from", "aggregation_tokens", "trunk_key_value_heads", "trunk_head_size", "extra_slots", "padding"),
    *("history", "history_selected"),
)
"""Numbers that may be 0, which turns something off or stands for a default; all others are above 0."""

ENABLEABLE_FIELDS = ("history", "history_selected", "kernels")
"""Fields that may change in a trained policy, because its actions stay the same: `history` and `history_selected` add a
part that starts as the identity, `kernels` changes no weight."""


@dataclass(frozen=True)
class Architecture:
    """The sizes and choices of the network; those of the contract (cameras, state, action, chunk) are not part of it.

    Raises:
        InputError: Values do not fit together.
    """

    text_length: int = 56
    """Text tokens of the instruction, its start token included."""
    tokenizer: str = "bytes"
    """"bytes", or "trunk": the tokenizer of the trunk's weights, which the checkpoint keeps."""
    prompt: str = "{instruction}"
    """What the trunk reads; {instruction} is replaced. Byte tokens always read the instruction alone."""
    instruction_features: str = "ordered"
    """The vector that modulates towers and routers: "ordered" depends on word order and ignores padding. CogVLA takes
    the "mean" of the token embeddings, and in training includes padding ("mean_padded")."""
    condition_width: int = 128
    """Width of the instruction's vector; equal to the trunk's width where it is a mean."""
    stem_width: int = 64
    stem_blocks: int = 2
    points: int = 8
    """Pointing maps of a view; labels can supervise the first two."""
    tower_width: int = 128
    tower_blocks: int = 2
    tower_heads: int = 4
    towers: tuple[str, ...] = ()
    """Pretrained towers by their names in timm; empty for one small tower of the sizes above, trained from scratch."""
    tower_film: bool = True
    """Whether the instruction modulates the blocks of pretrained towers (FiLM)."""
    aggregation_tokens: int = 9
    """Tokens that a view becomes, M; 0 passes every patch of a pretrained tower on."""
    fusion: str = "gated"
    """How several towers become one sequence: "gated" by the instruction into a weighted sum, as in CogVLA, or
    "concatenated", as in OpenVLA."""
    trunk_family: str = "llama"
    """The decoder's model type in transformers."""
    trunk_width: int = 128
    trunk_layers: int = 4
    trunk_heads: int = 4
    trunk_key_value_heads: int = 0
    """Heads of keys and values; 0 means as many as heads."""
    trunk_head_size: int = 0
    """Width of a head; 0 means trunk_width / trunk_heads."""
    trunk_feed_forward: int = 256
    vocabulary: int = 258
    """Rows of the trunk's token embeddings."""
    padding: int = 256
    """The token that pads an instruction."""
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-6
    sequence: tuple[str, ...] = ("visual", "text", "state", "slots")
    """The order of the trunk's spans, see `layout.TokenLayout`. With the text first, visual tokens attend to the
    instruction, and the text passes the trunk once for all decisions under it."""
    mask: str = "coupled"
    """The attention mask of the trunk, see `layout.TokenLayout.levels`; "coupled" is CogVLA's CAtten."""
    positions: str = "fixed"
    """Rotary positions: "fixed" by the layout, "counted" over tokens that are not padding, or, as in CogVLA, also
    "renumbered" in every layer that prunes."""
    prune_from: int = 1
    """First trunk layer that prunes; trunk_layers turns pruning off."""
    keep_floor: float = 0.4
    """Minimum fraction of the visual tokens that a layer keeps."""
    prune_per_view: bool = True
    """Whether every camera keeps its share; CogVLA selects among all tokens, so that a camera may vanish."""
    router: str = "direction"
    """How visual tokens are scored: along a "direction" that depends on the instruction, or by CogVLA's "original"
    router (LFP-Routing)."""
    router_signal: str = "kept"
    """Which tokens train the router: "kept" ones, as in CogVLA, or by a "straight_through" estimate also dropped
    ones."""
    slot_queries: str = "learned"
    """Input of the action slots: "learned" queries, or "zero", as in CogVLA."""
    slot_unit: str = "step"
    """What a slot stands for: a "step" of the chunk, or, as in CogVLA, an "element" of a step."""
    extra_slots: int = 0
    """Slots beyond those of the chunk: registers, in which vision and language can meet. A head on the slots does not
    read them, an expert does. CogVLA has one, its stop token; VLA-Adapter has 64 slots for a chunk of 8."""
    read_shifted: bool = False
    """Whether hidden states are read one position early, where a language model predicts the token; CogVLA does."""
    readout: str = "expert"
    """The action head: a cross-attention "expert", a head on the "slots", or the experts of "mergevla" and
    "vla_adapter"."""
    history: int = 0
    """Frames of past decisions that the policy remembers; 0 decides by the present alone. See `history`."""
    history_selected: int = 0
    """Remembered frames that each head attends to token by token; of the others it attends to the mean."""
    expert_width: int = 128
    expert_blocks: int = 4
    """Blocks of the expert, one for each of the trunk's last layers, or residual blocks of the slot head."""
    expert_heads: int = 4
    expert_rotation: str = "paired"
    """Rotary embedding of the released experts: a true rotation, or "mixed" or "none", as they were released."""
    expert_start: str = "learned"
    """Initial actions of the released experts: a learned row for each step, or, as released, "zero"."""
    kernels: str = "torch"
    """Implementation of attention in trunk and expert and of the gather of kept tokens: "torch" with masks, or this
    package's operators with plans ("saccade"). It changes no weight and, but for rounding, no action."""

    def __post_init__(self) -> None:
        # JSON and command lines give lists.
        for name in ("towers", "sequence"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            self._check_value(field.name, str(field.type))
        check_order(self.sequence)
        self._check_pruning()
        self._check_widths()
        self._check_vision()
        self._check_history()
        self._check_readout()

    def _check_value(self, name: str, kind: str) -> None:
        value = getattr(self, name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise unknown_name(f"architecture.{name}", str(value), CHOICES[name])
        elif kind in ("int", "float"):
            kinds, wanted = ((int, float), "a number") if kind == "float" else ((int,), "a whole number")
            above = type(value) in kinds and (0 < value < math.inf or (name in ZERO_ALLOWED_FIELDS and value == 0))
            if not above:
                raise InputError(
                    f"architecture.{name}", got=value, expected=f"{wanted} above 0", fix=f"Set {name} to such a number."
                )
        elif kind == "bool" and type(value) is not bool:
            raise InputError(
                f"architecture.{name}", got=value, expected="true or false", fix=f"Set {name} to true or false."
            )
        elif kind.startswith("tuple") and not (
            isinstance(value, tuple) and all(isinstance(each, str) for each in value)
        ):
            raise InputError(
                f"architecture.{name}",
                got=value,
                expected="names",
                fix='Give a list of names, such as ["visual", "text"].',
            )

    def _check_pruning(self) -> None:
        if not (self.keep_floor <= 1.0 and self.prune_from <= self.trunk_layers):
            raise InputError(
                "architecture: pruning",
                got=f"keep_floor {self.keep_floor} from layer {self.prune_from}",
                expected=f"keep_floor at most 1, prune_from at most trunk_layers ({self.trunk_layers})",
                fix="Lower the one that is too large; prune_from = trunk_layers turns pruning off.",
            )

        if self.router == "original" and self.sequence[0] == "text" and self.mask != "full":
            raise InputError(
                "architecture.router",
                got="original, with the text first in the sequence",
                expected="the text after the visual tokens: that router depends on the text's hidden states",
                fix="Choose the router direction, or another order.",
            )

    def _check_widths(self) -> None:
        pairs = [("tower_width", "tower_heads"), ("expert_width", "expert_heads")]
        if not self.trunk_head_size:
            pairs.append(("trunk_width", "trunk_heads"))
        for width, heads in pairs:
            if getattr(self, width) % getattr(self, heads):
                raise InputError(
                    f"architecture.{width}",
                    got=f"{getattr(self, width)} with {getattr(self, heads)} heads",
                    expected="a multiple of the heads",
                    fix=f"Change {width} or {heads}.",
                )
        head_size = self.trunk_head_size or self.trunk_width // self.trunk_heads
        if head_size % 2:
            raise InputError(
                "architecture.trunk_head_size",
                got=head_size,
                expected="an even number: rotary positions rotate pairs of channels",
                fix="Set trunk_head_size to an even number, or change trunk_width or trunk_heads.",
            )
        if self.trunk_key_value_heads and self.trunk_heads % self.trunk_key_value_heads:
            raise InputError(
                "architecture.trunk_key_value_heads",
                got=self.trunk_key_value_heads,
                expected=f"a divisor of trunk_heads ({self.trunk_heads})",
                fix="Choose a divisor, or 0 for as many as heads.",
            )
        if self.instruction_features != "ordered" and self.condition_width != self.trunk_width:
            raise InputError(
                "architecture.condition_width",
                got=self.condition_width,
                expected=f"trunk_width ({self.trunk_width}): a mean of token embeddings has their width",
                fix=f"Set condition_width={self.trunk_width}, or use ordered instruction features.",
            )

    def _check_vision(self) -> None:
        if self.points < 2:
            raise InputError(
                "architecture.points",
                got=self.points,
                expected="2 or more",
                fix="Set points to 2 or more: labels supervise two.",
            )
        if self.stem_width % 16:
            raise InputError(
                "architecture.stem_width", got=self.stem_width, expected="a multiple of 16", fix="Set stem_width=64."
            )
        if not self.towers and self.aggregation_tokens < 2:
            raise InputError(
                "architecture.aggregation_tokens",
                got=self.aggregation_tokens,
                expected="2 or more without pretrained towers",
                fix="Set aggregation_tokens to 2 or more: the first one carries where the pointing maps point.",
            )
        if self.tokenizer == "bytes" and self.vocabulary < 258:
            raise InputError(
                "architecture.vocabulary",
                got=self.vocabulary,
                expected="258 or more: bytes, padding and start",
                fix="Raise vocabulary, or set tokenizer=trunk.",
            )
        if self.padding >= self.vocabulary:
            raise InputError(
                "architecture.padding",
                got=self.padding,
                expected=f"a token below {self.vocabulary}, the vocabulary",
                fix="Set padding to the tokenizer's padding token.",
            )
        if "{instruction}" not in self.prompt:
            raise InputError(
                "architecture.prompt",
                got=repr(self.prompt),
                expected="{instruction} in it",
                fix="Put {instruction} where the instruction goes.",
            )

    def _check_history(self) -> None:
        if not (0 < self.history_selected <= self.history or self.history == self.history_selected == 0):
            raise InputError(
                "architecture.history_selected",
                got=f"{self.history_selected}, with a history of {self.history}",
                expected="1 to history; 0 without one",
                fix="Set history_selected to a third of history: history=12 history_selected=4.",
            )
        if self.history and self.trunk_width % self.trunk_heads:
            raise InputError(
                "architecture.history",
                got=f"{self.history}, with trunk_width {self.trunk_width} and {self.trunk_heads} heads",
                expected="a trunk_width that is a multiple of the heads, which attend to the history",
                fix="Change trunk_width or trunk_heads, or set history=0 history_selected=0.",
            )

    def _check_readout(self) -> None:
        if self.readout != "slots" and not 1 <= self.expert_blocks <= self.trunk_layers:
            raise InputError(
                "architecture.expert_blocks",
                got=self.expert_blocks,
                expected=f"1 to trunk_layers ({self.trunk_layers})",
                fix="Lower expert_blocks: each block reads one trunk layer.",
            )
        if self.readout in ("expert", "slots") and "state" not in self.sequence:
            raise InputError(
                "architecture.sequence",
                got=" ".join(self.sequence),
                expected=f"state in it: the readout {self.readout!r} gets the state from the trunk alone",
                fix="Add state before slots.",
            )
        # Text that comes first is cached: it is not part of the sequence that the head reads.
        first = self.sequence[1:] if self.sequence[0] == "text" and self.mask != "full" else self.sequence
        if self.read_shifted and self.readout != "slots" and first[0] == "visual":
            raise InputError(
                "architecture.read_shifted",
                got=f"true, with the sequence {' '.join(self.sequence)}",
                expected="a token before the visual tokens, where the first of them is read",
                fix="Put start first, or set read_shifted=false.",
            )
        if self.readout in ("mergevla", "vla_adapter") and self.expert_width != self.trunk_width:
            raise InputError(
                "architecture.expert_width",
                got=self.expert_width,
                expected=f"trunk_width ({self.trunk_width}), which that expert reads without a projection",
                fix=f"Set expert_width={self.trunk_width}, or choose the readout expert.",
            )
