"""The trunk: a Hugging Face decoder run layer by layer, with visual tokens pruned on the way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModel, PretrainedConfig

from ...errors import InputError
from ...perception.pruning import OriginalRouter, PruningRouter, gather_normed, select
from .attention import DECODER_ATTENTION, Visible, check_head_size, decoder_attention, mask_by_levels, plan_by_levels
from .layout import TokenLayout


@dataclass
class TrunkOutput:
    """Hidden states after every layer, each [B, S, D], and which visual tokens each layer worked on, [B, kept]."""

    hidden: list[torch.Tensor]
    kept: list[torch.Tensor | None]


@dataclass(frozen=True)
class Tokens:
    """Some tokens of the sequence as a decoder layer must know them: where they stand, and who sees whom.

    `positions` [B, n]; `rotation`: cosine and sine [B, n, d] of the rotary embedding; `visible`: what they see of one
    another and of the remembered text.
    """

    positions: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor]
    visible: Visible


@dataclass(frozen=True)
class Memory:
    """Keys and values of the remembered text, each [B, groups, L, d], of every layer that has run so far.

    It stands in for the library's cache: a layer hands its keys and values over and gets those to attend to.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values with those of the text before them."""
        return _behind(self.keys[layer], key), _behind(self.values[layer], value)


class _Catch:
    """Stand in for the library's cache to catch what one layer hands over."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.caught = key, value
        return key, value


@dataclass(frozen=True)
class TrunkPlan:
    """What layers need that follows from the instruction alone, so that it is computed once for all its decisions.

    `whole` serves layers that do not prune, `pruned` those that do, by how many visual tokens they keep;
    `directions` are the routers', by layer; `memory` is that of the text where it comes first; `early_places` are the
    layout's.
    """

    text_valid: torch.Tensor
    early_places: torch.Tensor
    whole: Tokens
    pruned: dict[int, Tokens]
    directions: dict[int, torch.Tensor]
    memory: Memory | None


class Trunk(nn.Module):
    """Run a decoder over the layout's sequence; `keep` says how many visual tokens each of its layers works on.

    They are picked in `groups` equal shares: one for each view, or one for all. A layer that prunes works on the tokens
    that its router picks and on everything else; the others pass by unchanged and may return in the next layer. What a
    picked token gains is scaled by its gate, so that the router learns from the loss. `router`, `signal`, `positions`
    and `kernels` are the architecture's choices. Raises InputError when `groups` or `keep` do not fit.
    """

    def __init__(
        self,
        configuration: PretrainedConfig,
        layout: TokenLayout,
        *,
        groups: int,
        keep: Sequence[int],
        condition: int,
        router: str = "direction",
        signal: str = "kept",
        positions: str = "fixed",
        kernels: str = "torch",
    ) -> None:
        super().__init__()
        tokens = layout.visual // groups
        if tokens * groups != layout.visual:
            raise InputError(
                "trunk: groups", got=groups, expected=f"a divisor of {layout.visual}", fix="Change either."
            )
        if len(keep) != configuration.num_hidden_layers or not all(1 <= kept <= tokens for kept in keep):
            raise InputError(
                "trunk: keep",
                got=tuple(keep),
                expected=f"1 to {tokens} tokens of a group for each of {configuration.num_hidden_layers} layers",
                fix="Take it from keep_schedule.",
            )
        AttentionInterface.register(DECODER_ATTENTION, decoder_attention)
        self.decoder = _decoder(configuration)
        if router == "original" and (others := _unusual_parts(self.decoder.layers[0])):
            raise InputError(
                "architecture.router",
                got=f"original, with layers of {configuration.model_type} that have {', '.join(others)}",
                expected="layers of attention, feed-forward and a norm before each",
                fix="Choose the router direction, or a trunk such as llama or qwen2.",
            )
        self.layout, self.groups, self.keep = layout, groups, tuple(keep)
        self.signal, self.positions = signal, positions
        self.planned = kernels == "saccade"
        # Layers that are built in another way are gathered first and then run as they are.
        self.fused = self.planned and _is_plain(self.decoder.layers[0])
        if self.planned:
            head = getattr(configuration, "head_dim", None)
            check_head_size("trunk", head or configuration.hidden_size // configuration.num_attention_heads)
        self.checkpointing = False
        width = configuration.hidden_size
        self.routers = nn.ModuleDict(
            {
                str(layer): OriginalRouter(width) if router == "original" else PruningRouter(width, condition)
                for layer, kept in enumerate(keep)
                if kept < tokens
            }
        )

    def restore_rotation(self) -> None:
        """Compute the rotary frequencies anew, on the weights' device: no checkpoint holds them."""
        device = self.decoder.embed_tokens.weight.device
        self.decoder.rotary_emb = type(self.decoder.rotary_emb)(self.decoder.config, device=device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed text tokens [B, L] as [B, L, D]."""
        return self.decoder.embed_tokens(tokens)

    def plan(self, text: torch.Tensor, text_valid: torch.Tensor, condition: torch.Tensor) -> TrunkPlan:
        """Prepare for an instruction: embedded `text` [B, L, D], `text_valid` [B, L], its vector `condition` [B, C].

        Which tokens a layer keeps is not known yet, but who sees whom is: those that are kept stay in their order,
        and no other difference is made between visual tokens.
        """
        layout, before = self.layout, self.layout.remembered
        high, level = layout.levels(text_valid)
        positions = layout.positions(text_valid, counted=self.positions != "fixed")
        rotation = self._rotation(positions, condition.dtype)
        memory = None
        if before:
            visible = self._visible(high[:before], level[:, :before])
            memory = self._remember(text, Tokens(positions[:, :before], _cut(rotation, slice(before)), visible))
        behind = slice(before, None)
        high = high[behind]
        visible = self._visible(high, level)
        whole = Tokens(positions[:, behind], _cut(rotation, behind), visible)
        visual = layout.span("visual")
        pruned = {}
        for kept in {self.keep[int(layer)] * self.groups for layer in self.routers}:
            stay = _without(visual.start + kept, visual.stop, layout.length, high.device)
            places, turned = whole.positions, whole.rotation
            if self.positions == "renumbered":
                start = layout.valid(text_valid)[:, :before].long().sum(1, keepdim=True)
                places = start + layout.valid(text_valid)[:, before:][:, stay].long().cumsum(1) - 1
                turned = self._rotation(places, condition.dtype)
            seen = torch.cat([torch.arange(before, device=stay.device), stay + before])
            visible = self._visible(high[stay], level[:, seen])
            pruned[kept] = Tokens(places, turned, visible)
        directions = {
            int(layer): router.direction(condition)
            for layer, router in self.routers.items()
            if isinstance(router, PruningRouter)
        }
        return TrunkPlan(text_valid, layout.early_places(text_valid), whole, pruned, directions, memory)

    def _visible(self, high: torch.Tensor, level: torch.Tensor) -> Visible:
        return plan_by_levels(high, level) if self.planned else mask_by_levels(high, level)

    def _remember(self, text: torch.Tensor, tokens: Tokens) -> Memory:
        """Run the decoder over the text [B, L, D] alone and return the keys and values of every layer."""
        memory = Memory()
        for layer in self.decoder.layers:
            if self.checkpointing and torch.is_grad_enabled():
                text, key, value = checkpoint(_read, layer, text, tokens, use_reentrant=False)
            else:
                text, key, value = _read(layer, text, tokens)
            memory.keys.append(key)
            memory.values.append(value)
        return memory

    def _rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decoder.rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), position_ids=positions)

    def forward(self, sequence: torch.Tensor, plan: TrunkPlan) -> TrunkOutput:
        """Run over the sequence [B, S, D]."""
        hidden, kept = [], []
        for number in range(len(self.decoder.layers)):
            if self.checkpointing and torch.is_grad_enabled():
                sequence, places = checkpoint(self._layer, number, sequence, plan, use_reentrant=False)
            else:
                sequence, places = self._layer(number, sequence, plan)
            hidden.append(sequence)
            kept.append(places)
        hidden[-1] = self.decoder.norm(hidden[-1])
        return TrunkOutput(hidden, kept)

    def _layer(self, number: int, sequence: torch.Tensor, plan: TrunkPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one layer; return the sequence and the places of the visual tokens that it worked on, None for all."""
        layer = self.decoder.layers[number]
        if str(number) not in self.routers:
            return _run(layer, sequence, plan.whole, plan.memory), None
        router = self.routers[str(number)]
        visual = self.layout.span("visual")
        if isinstance(router, OriginalRouter):
            normed = layer.input_layernorm(sequence)
            gates = router(normed, visual, self._pooled(normed, plan.text_valid))
            scores = gates[:, visual]
        else:
            scores = router(sequence[:, visual], plan.directions[number])
            gates = None
            if self.signal == "straight_through" and torch.is_grad_enabled():
                # Scored anew off the graph of the tokens: the estimate is for the router, not for what is seen.
                heard = router(sequence[:, visual].detach(), plan.directions[number])
                sequence = _listening(sequence, heard, visual)
        places = select(scores, self.groups, self.keep[number])
        working = self._working(places)
        index = working[..., None].expand(-1, -1, sequence.shape[-1])
        tokens = self._tokens(working, places.shape[1], plan)
        if self.fused:
            given, normed = gather_normed(sequence, working, layer.input_layernorm)
        else:
            given, normed = sequence.gather(1, index), None
        if gates is not None:
            result = _run(layer, given, tokens, normed=normed, gates=gates.gather(1, working))
        else:
            result = _run(layer, given, tokens, plan.memory, normed=normed)
            gain = torch.ones(*working.shape, 1, dtype=result.dtype, device=result.device)
            gain[:, visual.start : visual.start + places.shape[1], 0] = 2 * scores.gather(1, places).sigmoid()
            result = given + gain * (result - given)
        return sequence.scatter(1, index, result.to(sequence.dtype)), places

    def _working(self, places: torch.Tensor) -> torch.Tensor:
        """Return the places in the sequence [B, n] of the visual tokens at `places` [B, kept] and of all others."""
        visual, batch = self.layout.span("visual"), len(places)
        before = torch.arange(visual.start, device=places.device).expand(batch, -1)
        after = torch.arange(visual.stop, self.layout.length, device=places.device).expand(batch, -1)
        return torch.cat([before, places + visual.start, after], dim=1)

    def _tokens(self, working: torch.Tensor, kept: int, plan: TrunkPlan) -> Tokens:
        """Return what a layer must know of the working tokens [B, n], of which `kept` are visual."""
        tokens = plan.pruned[kept]
        if self.positions == "renumbered":
            return tokens
        rotation = tuple(
            table.expand(len(working), -1, -1).gather(1, working[..., None].expand(-1, -1, table.shape[-1]))
            for table in tokens.rotation
        )
        return Tokens(tokens.positions.gather(1, working), rotation, tokens.visible)

    def _pooled(self, normed: torch.Tensor, text_valid: torch.Tensor) -> torch.Tensor:
        """Return the mean [B, D] over state and text without padding: what CogVLA's router is steered by."""
        valid = self.layout.valid(text_valid)  # the original router is never used with remembered text
        spans = [self.layout.span(name) for name in ("state", "text")]
        states = torch.cat([normed[:, span] for span in spans], dim=1)
        weight = torch.cat([valid[:, span] for span in spans], dim=1)[..., None].to(normed.dtype)
        return (states * weight).sum(1) / weight.sum(1)


def _decoder(configuration: PretrainedConfig) -> nn.Module:
    """Build a decoder at random; raise InputError unless its layers can be run one by one."""
    try:
        decoder = AutoModel.from_config(configuration, attn_implementation=DECODER_ATTENTION)
    # Each family of the library checks its sizes in its own way, or not at all.
    except Exception as error:
        raise _no_trunk(configuration, f"{type(error).__name__}: {error}") from error
    parts = [(decoder, name) for name in ("layers", "rotary_emb", "norm", "embed_tokens")]
    parts += [
        (layer, name)
        for layer in getattr(decoder, "layers", [])[:1]
        for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    ]
    missing = [name for module, name in parts if not hasattr(module, name)]
    if not missing:
        taken = inspect.signature(decoder.layers[0].forward).parameters
        missing = [name for name in ("position_embeddings", "past_key_values") if name not in taken]
    if missing:
        raise _no_trunk(configuration, f"without {', '.join(missing)}")
    return decoder


def _no_trunk(configuration: PretrainedConfig, why: str) -> InputError:
    return InputError(
        "architecture.trunk_family",
        got=f"{configuration.model_type}, {why}",
        expected="a decoder built like Llama, with rotary positions",
        fix="llama, qwen2, qwen3 and smollm3 are.",
    )


def _unusual_parts(layer: nn.Module) -> list[str]:
    """Return the parts of a decoder layer that Llama's do not have."""
    usual = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    return sorted(name for name, _ in layer.named_children() if name not in usual)


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer computes as Llama's: RMS norm and attention, RMS norm and feed-forward, both just added."""
    norm = layer.input_layernorm
    # Gemma's norm has its epsilon under another name and adds one to its weight; Granite's layers scale what they add.
    scales = any(isinstance(value, float) for value in vars(layer).values())
    return not _unusual_parts(layer) and hasattr(norm, "weight") and hasattr(norm, "variance_epsilon") and not scales


def _read(layer: nn.Module, text: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a layer over the text; return what becomes of it, with the layer's keys and values."""
    catch = _Catch()
    text = _run(layer, text, tokens, catch)
    return text, *catch.caught


def _run(
    layer: nn.Module,
    hidden: torch.Tensor,
    tokens: Tokens,
    memory: Memory | _Catch | None = None,
    *,
    normed: torch.Tensor | None = None,
    gates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a decoder layer on hidden states [B, n, D].

    It is run part by part where these are `normed` [B, n, D] already, and where its feed-forward is scaled by `gates`
    [B, n], as in CogVLA: only layers without unusual parts may be.
    """
    arguments = {
        "attention_mask": tokens.visible,
        "position_ids": tokens.positions,
        "position_embeddings": tuple(table.to(hidden.dtype) for table in tokens.rotation),
        "past_key_values": memory,
    }
    if normed is None and gates is None:
        return layer(hidden, **arguments)
    attended, _ = layer.self_attn(layer.input_layernorm(hidden) if normed is None else normed, **arguments)
    hidden = hidden + attended
    grown = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + (grown if gates is None else gates[..., None].to(hidden.dtype) * grown)


def _listening(sequence: torch.Tensor, scores: torch.Tensor, visual: slice) -> torch.Tensor:
    """Return the sequence as it is, through which every visual token's score hears whether more of it were better.

    A straight-through estimate (Bengio et al., 2013): the value is untouched, the gradient is that of a token scaled by
    its gate. Without it the router never hears of the tokens that it drops.
    """
    gate = scores.sigmoid()
    silent = (gate - gate.detach())[..., None].to(sequence.dtype)
    heard = sequence[:, visual] + silent * sequence[:, visual].detach()
    return torch.cat([sequence[:, : visual.start], heard, sequence[:, visual.stop :]], dim=1)


def _behind(before: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return [B, groups, n, d] behind [B, groups, L, d], token by token in memory, as both of them lie there."""
    both = [before.to(part.dtype).transpose(1, 2), part.transpose(1, 2)]
    return torch.cat(both, dim=1).transpose(1, 2)


def _cut(rotation: tuple[torch.Tensor, torch.Tensor], places: slice) -> tuple[torch.Tensor, torch.Tensor]:
    return rotation[0][:, places], rotation[1][:, places]


def _without(first: int, last: int, length: int, device: torch.device) -> torch.Tensor:
    """Return the places 0 to `length` but those from `first` to `last`."""
    return torch.cat([torch.arange(first, device=device), torch.arange(last, length, device=device)])
