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
from ...perception.pruning import CogVLARouter, PruningRouter, gather_and_normalize, select_top_tokens
from .attention import (
    DECODER_ATTENTION,
    AttentionPattern,
    check_head_size,
    decoder_attention,
    mask_by_levels,
    plan_by_levels,
)
from .layout import TokenLayout


@dataclass
class TrunkOutput:
    """Hidden states after every layer, each [B, S, D], and which visual tokens each layer worked on, [B, kept]."""

    hidden: list[torch.Tensor]
    kept: list[torch.Tensor | None]


@dataclass(frozen=True)
class AttentionContext:
    """Some tokens of the sequence as a decoder layer must know them: where they stand, and who sees whom.

    `positions` [B, n]; `rotation`: cosine and sine [B, n, d] of the rotary embedding; `attention_pattern`: what they see of one
    another and of the remembered text.
    """

    positions: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor]
    attention_pattern: AttentionPattern


@dataclass(frozen=True)
class TextKeyValueCache:
    """Keys and values of the remembered text, each [B, groups, L, d], of every layer that has run so far.

    It stands in for the library's cache: a layer hands its keys and values over and gets those to attend to.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values with those of the text before them."""
        return _concatenate_cached(self.keys[layer], key), _concatenate_cached(self.values[layer], value)


class _KeyValueRecorder:
    """Stand in for the library's cache to catch what one layer hands over."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.key_value = key, value
        return key, value


@dataclass(frozen=True)
class TrunkPlan:
    """What layers need that follows from the instruction alone, so that it is computed once for all its decisions.

    `unpruned` serves layers that do not prune, `pruned` those that do, by how many visual tokens they keep;
    `directions` are the routers', by layer; `text_cache` is that of the text where it comes first; `preceding_indices` are the
    layout's.
    """

    text_valid: torch.Tensor
    preceding_indices: torch.Tensor
    unpruned: AttentionContext
    pruned: dict[int, AttentionContext]
    directions: dict[int, torch.Tensor]
    text_cache: TextKeyValueCache | None


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
        self.uses_plan = kernels == "saccade"
        # Layers that are built in another way are gathered first and then run as they are.
        self.fused = self.uses_plan and _is_llama_layer(self.decoder.layers[0])
        if self.uses_plan:
            head = getattr(configuration, "head_dim", None)
            check_head_size("trunk", head or configuration.hidden_size // configuration.num_attention_heads)
        self.checkpointing = False
        width = configuration.hidden_size
        self.routers = nn.ModuleDict(
            {
                str(layer): CogVLARouter(width) if router == "original" else PruningRouter(width, condition)
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
        layout, before = self.layout, self.layout.cached_text_length
        high, level = layout.levels(text_valid)
        positions = layout.positions(text_valid, counted=self.positions != "fixed")
        rotation = self._rotation(positions, condition.dtype)
        text_cache = None
        if before:
            attention_pattern = self._attention_pattern(high[:before], level[:, :before])
            text_cache = self._cache_text(
                text,
                AttentionContext(positions[:, :before], _slice_rotation(rotation, slice(before)), attention_pattern),
            )
        after_text = slice(before, None)
        high = high[after_text]
        attention_pattern = self._attention_pattern(high, level)
        unpruned = AttentionContext(positions[:, after_text], _slice_rotation(rotation, after_text), attention_pattern)
        visual = layout.span("visual")
        pruned = {}
        for kept in {self.keep[int(layer)] * self.groups for layer in self.routers}:
            remaining = _indices_except(visual.start + kept, visual.stop, layout.length, high.device)
            indices, pruned_rotation = unpruned.positions, unpruned.rotation
            if self.positions == "renumbered":
                start = layout.valid(text_valid)[:, :before].long().sum(1, keepdim=True)
                indices = start + layout.valid(text_valid)[:, before:][:, remaining].long().cumsum(1) - 1
                pruned_rotation = self._rotation(indices, condition.dtype)
            visible_indices = torch.cat([torch.arange(before, device=remaining.device), remaining + before])
            attention_pattern = self._attention_pattern(high[remaining], level[:, visible_indices])
            pruned[kept] = AttentionContext(indices, pruned_rotation, attention_pattern)
        directions = {
            int(layer): router.direction(condition)
            for layer, router in self.routers.items()
            if isinstance(router, PruningRouter)
        }
        return TrunkPlan(text_valid, layout.preceding_indices(text_valid), unpruned, pruned, directions, text_cache)

    def _attention_pattern(self, high: torch.Tensor, level: torch.Tensor) -> AttentionPattern:
        return plan_by_levels(high, level) if self.uses_plan else mask_by_levels(high, level)

    def _cache_text(self, text: torch.Tensor, tokens: AttentionContext) -> TextKeyValueCache:
        """Run the decoder over the text [B, L, D] alone and return the keys and values of every layer."""
        text_cache = TextKeyValueCache()
        for layer in self.decoder.layers:
            if self.checkpointing and torch.is_grad_enabled():
                text, key, value = checkpoint(_run_text_layer, layer, text, tokens, use_reentrant=False)
            else:
                text, key, value = _run_text_layer(layer, text, tokens)
            text_cache.keys.append(key)
            text_cache.values.append(value)
        return text_cache

    def _rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decoder.rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), position_ids=positions)

    def forward(self, sequence: torch.Tensor, plan: TrunkPlan) -> TrunkOutput:
        """Run over the sequence [B, S, D]."""
        hidden, kept = [], []
        for number in range(len(self.decoder.layers)):
            if self.checkpointing and torch.is_grad_enabled():
                sequence, indices = checkpoint(self._layer, number, sequence, plan, use_reentrant=False)
            else:
                sequence, indices = self._layer(number, sequence, plan)
            hidden.append(sequence)
            kept.append(indices)
        hidden[-1] = self.decoder.norm(hidden[-1])
        return TrunkOutput(hidden, kept)

    def _layer(self, number: int, sequence: torch.Tensor, plan: TrunkPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one layer; return the sequence and the places of the visual tokens that it worked on, None for all."""
        layer = self.decoder.layers[number]
        if str(number) not in self.routers:
            return _run(layer, sequence, plan.unpruned, plan.text_cache), None
        router = self.routers[str(number)]
        visual = self.layout.span("visual")
        if isinstance(router, CogVLARouter):
            normed = layer.input_layernorm(sequence)
            gates = router(normed, visual, self._pooled_text_state(normed, plan.text_valid))
            scores = gates[:, visual]
        else:
            scores = router(sequence[:, visual], plan.directions[number])
            gates = None
            if self.signal == "straight_through" and torch.is_grad_enabled():
                # Scored anew off the graph of the tokens: the estimate is for the router, not for what is seen.
                heard = router(sequence[:, visual].detach(), plan.directions[number])
                sequence = _straight_through(sequence, heard, visual)
        indices = select_top_tokens(scores, self.groups, self.keep[number])
        active_indices = self._active_indices(indices)
        index = active_indices[..., None].expand(-1, -1, sequence.shape[-1])
        tokens = self._attention_context(active_indices, indices.shape[1], plan)
        if self.fused:
            layer_input, normed = gather_and_normalize(sequence, active_indices, layer.input_layernorm)
        else:
            layer_input, normed = sequence.gather(1, index), None
        if gates is not None:
            result = _run(layer, layer_input, tokens, normed=normed, gates=gates.gather(1, active_indices))
        else:
            result = _run(layer, layer_input, tokens, plan.text_cache, normed=normed)
            gain = torch.ones(*active_indices.shape, 1, dtype=result.dtype, device=result.device)
            gain[:, visual.start : visual.start + indices.shape[1], 0] = 2 * scores.gather(1, indices).sigmoid()
            result = layer_input + gain * (result - layer_input)
        return sequence.scatter(1, index, result.to(sequence.dtype)), indices

    def _active_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the places in the sequence [B, n] of the visual tokens at `indices` [B, kept] and of all others."""
        visual, batch = self.layout.span("visual"), len(indices)
        before = torch.arange(visual.start, device=indices.device).expand(batch, -1)
        after = torch.arange(visual.stop, self.layout.length, device=indices.device).expand(batch, -1)
        return torch.cat([before, indices + visual.start, after], dim=1)

    def _attention_context(self, active_indices: torch.Tensor, kept: int, plan: TrunkPlan) -> AttentionContext:
        """Return what a layer must know of the working tokens [B, n], of which `kept` are visual."""
        tokens = plan.pruned[kept]
        if self.positions == "renumbered":
            return tokens
        rotation = tuple(
            table.expand(len(active_indices), -1, -1).gather(
                1, active_indices[..., None].expand(-1, -1, table.shape[-1])
            )
            for table in tokens.rotation
        )
        return AttentionContext(tokens.positions.gather(1, active_indices), rotation, tokens.attention_pattern)

    def _pooled_text_state(self, normed: torch.Tensor, text_valid: torch.Tensor) -> torch.Tensor:
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
        raise _unsupported_decoder(configuration, f"{type(error).__name__}: {error}") from error
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
        raise _unsupported_decoder(configuration, f"without {', '.join(missing)}")
    return decoder


def _unsupported_decoder(configuration: PretrainedConfig, why: str) -> InputError:
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


def _is_llama_layer(layer: nn.Module) -> bool:
    """Tell whether a layer computes as Llama's: RMS norm and attention, RMS norm and feed-forward, both just added."""
    norm = layer.input_layernorm
    # Gemma's norm has its epsilon under another name and adds one to its weight; Granite's layers scale what they add.
    scales = any(isinstance(value, float) for value in vars(layer).values())
    return not _unusual_parts(layer) and hasattr(norm, "weight") and hasattr(norm, "variance_epsilon") and not scales


def _run_text_layer(
    layer: nn.Module, text: torch.Tensor, tokens: AttentionContext
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a layer over the text; return what becomes of it, with the layer's keys and values."""
    catch = _KeyValueRecorder()
    text = _run(layer, text, tokens, catch)
    return text, *catch.key_value


def _run(
    layer: nn.Module,
    hidden: torch.Tensor,
    tokens: AttentionContext,
    text_cache: TextKeyValueCache | _KeyValueRecorder | None = None,
    *,
    normed: torch.Tensor | None = None,
    gates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a decoder layer on hidden states [B, n, D].

    It is run part by part where these are `normed` [B, n, D] already, and where its feed-forward is scaled by `gates`
    [B, n], as in CogVLA: only layers without unusual parts may be.
    """
    arguments = {
        "attention_mask": tokens.attention_pattern,
        "position_ids": tokens.positions,
        "position_embeddings": tuple(table.to(hidden.dtype) for table in tokens.rotation),
        "past_key_values": text_cache,
    }
    if normed is None and gates is None:
        return layer(hidden, **arguments)
    attended, _ = layer.self_attn(layer.input_layernorm(hidden) if normed is None else normed, **arguments)
    hidden = hidden + attended
    feed_forward_output = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + (feed_forward_output if gates is None else gates[..., None].to(hidden.dtype) * feed_forward_output)


def _straight_through(sequence: torch.Tensor, scores: torch.Tensor, visual: slice) -> torch.Tensor:
    """Return the sequence as it is, through which every visual token's score hears whether more of it were better.

    A straight-through estimate (Bengio et al., 2013): the value is untouched, the gradient is that of a token scaled by
    its gate. Without it the router never hears of the tokens that it drops.
    """
    gate = scores.sigmoid()
    zero_gate = (gate - gate.detach())[..., None].to(sequence.dtype)
    heard = sequence[:, visual] + zero_gate * sequence[:, visual].detach()
    return torch.cat([sequence[:, : visual.start], heard, sequence[:, visual.stop :]], dim=1)


def _concatenate_cached(before: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return [B, groups, n, d] behind [B, groups, L, d], token by token in memory, as both of them lie there."""
    both = [before.to(part.dtype).transpose(1, 2), part.transpose(1, 2)]
    return torch.cat(both, dim=1).transpose(1, 2)


def _slice_rotation(rotation: tuple[torch.Tensor, torch.Tensor], indices: slice) -> tuple[torch.Tensor, torch.Tensor]:
    return rotation[0][:, indices], rotation[1][:, indices]


def _indices_except(first: int, last: int, length: int, device: torch.device) -> torch.Tensor:
    """Return the places 0 to `length` but those from `first` to `last`."""
    return torch.cat([torch.arange(first, device=device), torch.arange(last, length, device=device)])
