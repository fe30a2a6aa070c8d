"""The shape of a policy as data: every size, and every choice of method with the original's as the other value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

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

ENABLEABLE_FIELDS = ("history", "history_selected", "kernels")
"""Fields that may be changed in a trained policy: what they add starts as the identity, or they change no weight."""


@dataclass(frozen=True)
class Architecture:
    """Every size of the network and every choice in it; the contract's sizes (cameras, state, action, chunk) are not.

    Raises InputError when values do not fit together.
    """

    text_length: int = 56
    """Text tokens of the instruction, its start included."""
    tokenizer: str = "bytes"
    """"bytes", or "trunk": the tokenizer that came with the trunk's weights, kept in the checkpoint."""
    prompt: str = "{instruction}"
    """What the trunk reads; {instruction} is replaced. Byte tokens always read the instruction alone."""
    instruction_features: str = "ordered"
    """What steers towers and pruning: "ordered" knows word order and ignores padding; the original takes the "mean" of
    the word embeddings, and in training counts padding among them ("mean_padded")."""
    condition_width: int = 128
    """Width of the instruction's vector; the trunk's width where it is a mean."""
    stem_width: int = 64
    stem_blocks: int = 2
    points: int = 8
    """Pointing maps of a view; the first two can be taught with labels."""
    tower_width: int = 128
    tower_blocks: int = 2
    tower_heads: int = 4
    towers: tuple[str, ...] = ()
    """Pretrained towers by their names in timm; none: one small tower of the sizes above, trained from scratch."""
    tower_film: bool = True
    """Whether the instruction modulates the blocks of pretrained towers."""
    aggregation_tokens: int = 9
    """Tokens that leave a view, M; 0 lets every patch of a pretrained tower pass."""
    fusion: str = "gated"
    """How several towers become one sequence: weighed by an instruction "gated" sum, or "concatenated" as OpenVLA's."""
    trunk_family: str = "llama"
    """The decoder's model type in transformers."""
    trunk_width: int = 128
    trunk_layers: int = 4
    trunk_heads: int = 4
    trunk_key_value_heads: int = 0
    """Groups of keys and values; 0 means as many as heads."""
    trunk_head_size: int = 0
    """Width of a head; 0 means trunk_width / trunk_heads."""
    trunk_feed_forward: int = 256
    vocabulary: int = 258
    """Rows of the trunk's token embeddings."""
    padding: int = 256
    """The token that fills an instruction up."""
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-6
    sequence: tuple[str, ...] = ("visual", "text", "state", "slots")
    """The order of the trunk's spans, see `layout.TokenLayout`. With the text first, what is seen is seen knowing the
    instruction, and the text passes the trunk once for all decisions under it."""
    mask: str = "coupled"
    """Who sees whom in the trunk, see `layout.TokenLayout.levels`."""
    positions: str = "fixed"
    """Rotary positions: "fixed" by the layout, "counted" over what is no padding, or, the original, also "renumbered"
    in every layer that prunes."""
    prune_from: int = 1
    """First trunk layer that prunes."""
    keep_floor: float = 0.4
    """Least fraction of the visual tokens that a layer keeps."""
    prune_per_view: bool = True
    """Whether every camera keeps its share; the original picks among all, so that a camera may vanish."""
    router: str = "direction"
    """How tokens are scored: by a "direction" that the instruction sets, or by CogVLA's "original" router."""
    router_signal: str = "kept"
    """From which tokens the router learns: from "kept" ones, as the original, or by a "straight_through" estimate from
    dropped ones too."""
    slot_queries: str = "learned"
    """What stands at the action slots: "learned" queries, or "zero", as the original."""
    slot_unit: str = "step"
    """What a slot stands for: a "step" of the chunk, or, the original, an "element" of a step."""
    extra_slots: int = 0
    """Slots beyond those of the chunk: registers, in which what is seen and said can meet. A head on the slots does not
    read them, an expert does. The original has one, its stop token; VLA-Adapter has 64 slots for a chunk of 8."""
    read_shifted: bool = False
    """Whether read-outs stand one place early, as a language model predicts its next token; the original does."""
    readout: str = "expert"
    """How actions leave: cross-attention "expert", a head on the "slots", or the experts of published policies."""
    history: int = 0
    """Frames that are remembered, those of the last decisions; 0 decides by the present alone. See `history`."""
    history_selected: int = 0
    """Remembered frames that each head of a decision attends to token by token; of the others it sees the mean."""
    expert_width: int = 128
    expert_blocks: int = 4
    """Blocks of the expert, one for each of the trunk's last layers, or residual blocks of the slots' head."""
    expert_heads: int = 4
    expert_rotation: str = "paired"
    """Rotary embedding of the published experts: a true rotation, or "mixed" or "none", as they were released."""
    expert_start: str = "learned"
    """What the published experts start from: a learned row for each step, or, as released, "zero"."""
    kernels: str = "torch"
    """What computes attention in trunk and expert and gathers the tokens that pruning keeps: "torch", with masks, or
    the package's own operators ("saccade"), with plans. It changes no weight and, but for rounding, no action."""

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
                raise InputError(f"architecture.{name}", got=value, expected=f"{wanted} above 0", fix="Set it.")
        elif kind == "bool" and type(value) is not bool:
            raise InputError(f"architecture.{name}", got=value, expected="true or false", fix="Set it.")
        elif kind.startswith("tuple") and not all(isinstance(each, str) for each in value):
            raise InputError(f"architecture.{name}", got=value, expected="names", fix="Give a list of names.")

    def _check_pruning(self) -> None:
        if not (self.keep_floor <= 1.0 and self.prune_from <= self.trunk_layers):
            raise InputError(
                "architecture: pruning",
                got=f"keep_floor {self.keep_floor} from layer {self.prune_from}",
                expected=f"keep_floor at most 1, prune_from at most trunk_layers ({self.trunk_layers})",
                fix="prune_from = trunk_layers turns pruning off.",
            )

        if self.router == "original" and self.sequence[0] == "text" and self.mask != "full":
            raise InputError(
                "architecture.router",
                got="original, with the text first in the sequence",
                expected="the text behind what is seen: that router is steered by what it becomes there",
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
                expected="an even number: rotary positions turn pairs",
                fix="Change it, or trunk_width and trunk_heads.",
            )
        if self.trunk_key_value_heads and self.trunk_heads % self.trunk_key_value_heads:
            raise InputError(
                "architecture.trunk_key_value_heads",
                got=self.trunk_key_value_heads,
                expected=f"a divisor of trunk_heads ({self.trunk_heads})",
                fix="0 means as many as heads.",
            )
        if self.instruction_features != "ordered" and self.condition_width != self.trunk_width:
            raise InputError(
                "architecture.condition_width",
                got=self.condition_width,
                expected=f"trunk_width ({self.trunk_width}): a mean of word embeddings is as wide as they are",
                fix="Set it to that, or use ordered instruction features.",
            )

    def _check_vision(self) -> None:
        if self.points < 2:
            raise InputError("architecture.points", got=self.points, expected="2 or more", fix="Two can be taught.")
        if self.stem_width % 16:
            raise InputError(
                "architecture.stem_width", got=self.stem_width, expected="a multiple of 16", fix="64 is usual."
            )
        if not self.towers and self.aggregation_tokens < 2:
            raise InputError(
                "architecture.aggregation_tokens",
                got=self.aggregation_tokens,
                expected="2 or more without pretrained towers",
                fix="The small tower's first token carries what the pointing maps found.",
            )
        if self.tokenizer == "bytes" and self.vocabulary < 258:
            raise InputError(
                "architecture.vocabulary",
                got=self.vocabulary,
                expected="258 or more: bytes, padding and start",
                fix="Raise it, or use the trunk's tokenizer.",
            )
        if self.padding >= self.vocabulary:
            raise InputError(
                "architecture.padding",
                got=self.padding,
                expected=f"a token below {self.vocabulary}, the vocabulary",
                fix="Take the tokenizer's own padding token.",
            )
        if "{instruction}" not in self.prompt:
            raise InputError(
                "architecture.prompt", got=repr(self.prompt), expected="{instruction} in it", fix="Say where it goes."
            )

    def _check_history(self) -> None:
        if not (0 < self.history_selected <= self.history or self.history == self.history_selected == 0):
            raise InputError(
                "architecture.history_selected",
                got=f"{self.history_selected}, with a history of {self.history}",
                expected="1 to history; 0 without one",
                fix="A third of the history is usual: history=12 history_selected=4.",
            )
        if self.history and self.trunk_width % self.trunk_heads:
            raise InputError(
                "architecture.history",
                got=f"{self.history}, with trunk_width {self.trunk_width} and {self.trunk_heads} heads",
                expected="a trunk_width that is a multiple of the heads, which attend to the history",
                fix="Change trunk_width or trunk_heads, or do without history.",
            )

    def _check_readout(self) -> None:
        if self.readout != "slots" and not 1 <= self.expert_blocks <= self.trunk_layers:
            raise InputError(
                "architecture.expert_blocks",
                got=self.expert_blocks,
                expected=f"1 to trunk_layers ({self.trunk_layers})",
                fix="Each block reads one trunk layer.",
            )
        if self.readout in ("expert", "slots") and "state" not in self.sequence:
            raise InputError(
                "architecture.sequence",
                got=" ".join(self.sequence),
                expected=f"state in it: the readout {self.readout!r} knows the state from the trunk alone",
                fix="Add state before slots.",
            )
        # Text that comes first is remembered, and stands before nothing.
        first = self.sequence[1:] if self.sequence[0] == "text" and self.mask != "full" else self.sequence
        if self.read_shifted and self.readout != "slots" and first[0] == "visual":
            raise InputError(
                "architecture.read_shifted",
                got=f"true, with the sequence {' '.join(self.sequence)}",
                expected="something before the visual tokens, where the first of them is read",
                fix="Put start first, or read every token at its own place.",
            )
        if self.readout in ("mergevla", "vla_adapter") and self.expert_width != self.trunk_width:
            raise InputError(
                "architecture.expert_width",
                got=self.expert_width,
                expected=f"trunk_width ({self.trunk_width}), which that expert reads without a projection",
                fix="Set it to that, or choose the readout expert.",
            )


_TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224.webli")

PRESETS = {
    "tiny": Architecture(),
    "small": Architecture(
        tokenizer="trunk",
        prompt="<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n"
        "<|im_start|>assistant\n",
        condition_width=512,
        towers=_TOWERS,
        aggregation_tokens=64,
        trunk_family="qwen2",
        trunk_width=896,
        trunk_layers=24,
        trunk_heads=14,
        trunk_key_value_heads=2,
        trunk_feed_forward=4864,
        vocabulary=151936,
        rotary_base=1_000_000.0,
        sequence=("text", "visual", "state", "slots"),
        positions="counted",
        prune_from=6,
        keep_floor=0.15,
        extra_slots=32,
        expert_width=512,
        expert_blocks=12,
        expert_heads=8,
    ),
    "large": Architecture(
        tokenizer="trunk",
        prompt="In: What action should the robot take to {instruction}?\nOut:",
        condition_width=1024,
        towers=_TOWERS,
        aggregation_tokens=64,
        trunk_family="llama",
        trunk_width=4096,
        trunk_layers=32,
        trunk_heads=32,
        trunk_feed_forward=11008,
        vocabulary=32064,
        norm_epsilon=1e-5,
        sequence=("text", "visual", "state", "slots"),
        positions="counted",
        prune_from=8,
        keep_floor=0.15,
        extra_slots=16,
        readout="slots",
        expert_width=4096,
        expert_blocks=2,
    ),
}


def find_preset(name: str) -> Architecture:
    """Return a preset; an unknown name is an InputError with the nearest one."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def with_changes(architecture: Architecture, changes: Sequence[str]) -> Architecture:
    """Return an architecture with some fields changed, each given as FIELD=VALUE; lists as words with commas.

    Raises InputError for an unknown field, a value that is no value of the field, and values that do not fit.
    """
    kinds = {field.name: str(field.type) for field in fields(Architecture)}
    values: dict[str, object] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise InputError("change", got=change, expected="FIELD=VALUE", fix="Write it like router=original.")
        if name not in kinds:
            raise unknown_name("architecture field", name, kinds)
        values[name] = _parse_value(text, kinds[name])
    return replace(architecture, **values)


def with_enabled_fields(architecture: Architecture, changes: Sequence[str]) -> Architecture:
    """Return a trained policy's architecture with some fields changed, as `with_changes` does.

    Raises InputError for a field that is not in MAY_BE_SWITCHED_ON, too.
    """
    names = [change.partition("=")[0] for change in changes]
    for name in names:
        if name in Architecture.__dataclass_fields__ and name not in ENABLEABLE_FIELDS:
            raise InputError(
                "change",
                got=f"{name}, in a policy that is trained",
                expected=f"one of {', '.join(ENABLEABLE_FIELDS)}: what they add changes nothing at first",
                fix="Leave it out, as the checkpoint keeps its shape, or train from scratch.",
            )
    return with_changes(architecture, changes)


def _parse_value(text: str, kind: str) -> object:
    """Return a field's value; a text that is none is handed on as it is, for the field's own check to refuse."""
    if kind.startswith("tuple"):
        return tuple(filter(None, text.split(",")))
    if kind == "str":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
