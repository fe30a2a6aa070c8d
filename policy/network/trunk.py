"""The trunk: a Hugging Face decoder that runs layer by layer and prunes visual tokens on the way.

Pruning is CogVLA's LFP-Routing (arXiv 2508.21046, section 3.3), a Mixture-of-Depths variant: a layer works on the
visual tokens that its router keeps and on all other tokens; the dropped tokens skip the layer unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from ...errors import InputError
from ...perception.pruning import CogVLARouter, PruningRouter, gather_and_normalize, select_top_tokens
from .attention import AttentionPattern, check_head_size, mask_by_levels, plan_by_levels
from .decoder import (
    AttentionContext,
    Rotation,
    TextKeyValueCache,
    build_decoder,
    is_llama_layer,
    run_layer,
    run_text_layer,
    unusual_parts,
)
from .layout import TokenLayout


@dataclass
class TrunkOutput:
    """What the trunk computed.

    Attributes:
        hidden: Hidden states after every layer, each [B, S, D]; the last ones are normalized.
        kept_indices: For every layer the indices [B, kept] of the visual tokens that it worked on; None for all.
    """

    hidden: list[torch.Tensor]
    kept_indices: list[torch.Tensor | None]


@dataclass(frozen=True)
class TrunkPlan:
    """What the layers need that depends on the instruction alone: computed once, it serves all its decisions.

    Attributes:
        text_valid: Boolean [B, L], false for padding.
        preceding_indices: See `TokenLayout.preceding_indices`, [B, slots].
        unpruned: Context of the whole sequence, for layers that do not prune.
        pruned: Context of the layers that prune, by the number of visual tokens that they keep.
        directions: The routers' directions [B, D], by layer.
        text_cache: Keys and values of the cached text; None unless the text comes first in the sequence.
    """

    text_valid: torch.Tensor
    preceding_indices: torch.Tensor
    unpruned: AttentionContext
    pruned: dict[int, AttentionContext]
    directions: dict[int, torch.Tensor]
    text_cache: TextKeyValueCache | None


class Trunk(nn.Module):
    """Run a decoder over the sequence of a `TokenLayout`, with visual tokens pruned in some layers.

    A layer that prunes works on the visual tokens that its router keeps and on all other tokens. Dropped tokens skip
    the layer and may be kept again by the next one. The residual update of a kept token is scaled by its gate, so that
    the router learns from the loss.

    Args:
        configuration: The decoder's configuration in transformers.
        layout: The spans of the sequence.
        groups: Groups of visual tokens that each keep an equal share: one for each view, or one for all.
        keep: Visual tokens of a group that each layer keeps; see `perception.pruning.keep_schedule`.
        condition: Width of the instruction's vector.
        router: `Architecture.router`.
        signal: `Architecture.router_signal`.
        positions: `Architecture.positions`.
        kernels: `Architecture.kernels`.

    Raises:
        InputError: `groups` or `keep` do not fit the layout, or the decoder does not fit the router or the kernels.
    """

    # Any: the library's families of decoders share attributes, but no class that declares them.
    decoder: Any
    routers: nn.ModuleDict

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
        tokens = _check_groups(configuration, layout, groups, keep)
        self.decoder = build_decoder(configuration)
        if router == "original" and (others := unusual_parts(self.decoder.layers[0])):
            raise InputError(
                "architecture.router",
                got=f"original, with layers of {configuration.model_type} that have {', '.join(others)}",
                expected="layers of attention, feed-forward and a norm before each",
                fix="Choose the router direction, or a trunk such as llama or qwen2.",
            )
        self.layout, self.groups, self.keep = layout, groups, tuple(keep)
        self.signal, self.positions = signal, positions
        self.uses_plan = kernels == "saccade"
        # Other layers than Llama's gather their tokens first and then run as they are.
        self.fused = self.uses_plan and is_llama_layer(self.decoder.layers[0])
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
        """Compute the rotary frequencies again, on the weights' device: checkpoints do not hold them."""
        device = self.decoder.embed_tokens.weight.device
        self.decoder.rotary_emb = type(self.decoder.rotary_emb)(self.decoder.config, device=device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed text tokens [B, L] as [B, L, D]."""
        return self.decoder.embed_tokens(tokens)

    def plan(self, text: torch.Tensor, text_valid: torch.Tensor, condition: torch.Tensor) -> TrunkPlan:
        """Compute what depends on the instruction alone.

        Which visual tokens a layer keeps is not known yet, but the attention pattern is: kept tokens stay in order, and
        the pattern makes no other difference between visual tokens.

        Args:
            text: Embedded instruction [B, L, D].
            text_valid: Boolean [B, L], false for padding.
            condition: The instruction's vector [B, C].
        """
        layout, before = self.layout, self.layout.cached_text_length
        high, level = layout.levels(text_valid)  # [R], [B, R]; R = before + S
        positions = layout.positions(text_valid, counted=self.positions != "fixed")  # [B, R]
        rotation = self._rotation(positions, condition.dtype)  # 2 x [B, R, d]
        text_cache = None
        if before:
            pattern = self._attention_pattern(high[:before], level[:, :before])
            context = AttentionContext(positions[:, :before], _slice_rotation(rotation, slice(before)), pattern)
            text_cache = self._cache_text(text, context)
        after_text = slice(before, None)
        pattern = self._attention_pattern(high[after_text], level)
        unpruned = AttentionContext(positions[:, after_text], _slice_rotation(rotation, after_text), pattern)
        pruned = {
            kept: self._pruned_context(kept, unpruned, high, level, text_valid)
            for kept in {self.keep[int(layer)] * self.groups for layer in self.routers}
        }
        directions = {
            int(layer): router.direction(condition)  # [B, D]
            for layer, router in self.routers.items()
            if isinstance(router, PruningRouter)
        }
        return TrunkPlan(text_valid, layout.preceding_indices(text_valid), unpruned, pruned, directions, text_cache)

    def _pruned_context(
        self, kept: int, unpruned: AttentionContext, high: torch.Tensor, level: torch.Tensor, text_valid: torch.Tensor
    ) -> AttentionContext:
        """Return the context of a layer that keeps `kept` visual tokens.

        Positions and rotation are those of the whole sequence, to be gathered, unless they are renumbered.
        """
        layout, before = self.layout, self.layout.cached_text_length
        visual = layout.span("visual")
        remaining = _indices_except(visual.start + kept, visual.stop, layout.length, high.device)  # [n]
        positions, rotation = unpruned.positions, unpruned.rotation
        if self.positions == "renumbered":
            valid = layout.valid(text_valid)  # [B, R]
            start = valid[:, :before].long().sum(1, keepdim=True)
            positions = start + valid[:, before:][:, remaining].long().cumsum(1) - 1  # [B, n]
            rotation = self._rotation(positions, unpruned.rotation[0].dtype)
        visible_indices = torch.cat([torch.arange(before, device=remaining.device), remaining + before])
        pattern = self._attention_pattern(high[before:][remaining], level[:, visible_indices])
        return AttentionContext(positions, rotation, pattern)

    def _attention_pattern(self, high: torch.Tensor, level: torch.Tensor) -> AttentionPattern:
        return plan_by_levels(high, level) if self.uses_plan else mask_by_levels(high, level)

    def _cache_text(self, text: torch.Tensor, context: AttentionContext) -> TextKeyValueCache:
        """Run the decoder over the text [B, L, D] alone and return the keys and values of every layer."""
        text_cache = TextKeyValueCache()
        for layer in self.decoder.layers:
            text, key, value = self._checkpointed(run_text_layer, layer, text, context)
            text_cache.keys.append(key)
            text_cache.values.append(value)
        return text_cache

    def _checkpointed(self, run: Any, *arguments: Any) -> Any:
        """Call `run`; with checkpointing the backward pass computes its activations again, to save memory."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)

    def _rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        return self.decoder.rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), position_ids=positions)

    def forward(self, sequence: torch.Tensor, plan: TrunkPlan) -> TrunkOutput:
        """Run over the sequence [B, S, D]."""
        hidden, kept_indices = [], []
        for number in range(len(self.decoder.layers)):
            sequence, indices = self._checkpointed(self._layer, number, sequence, plan)
            hidden.append(sequence)
            kept_indices.append(indices)
        hidden[-1] = self.decoder.norm(hidden[-1])
        return TrunkOutput(hidden, kept_indices)

    def _layer(self, number: int, sequence: torch.Tensor, plan: TrunkPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one layer; return the sequence and the indices [B, kept] of the visual tokens kept, None for all."""
        layer = self.decoder.layers[number]
        if str(number) not in self.routers:
            return run_layer(layer, sequence, plan.unpruned, plan.text_cache), None
        router = self.routers[str(number)]
        if isinstance(router, CogVLARouter):
            return self._original_layer(number, router, sequence, plan)
        visual = self.layout.span("visual")
        scores = router(sequence[:, visual], plan.directions[number])  # [B, N]
        if self.signal == "straight_through" and torch.is_grad_enabled():
            # Scores of detached tokens: the estimate trains the router, not what produced the tokens.
            detached_scores = router(sequence[:, visual].detach(), plan.directions[number])
            sequence = _straight_through(sequence, detached_scores, visual)
        indices = select_top_tokens(scores, self.groups, self.keep[number])  # [B, kept]
        active = self._active_indices(indices)  # [B, n]
        layer_input, normed = self._gather(layer, sequence, active)  # [B, n, D]
        context = self._attention_context(active, indices.shape[1], plan)
        result = run_layer(layer, layer_input, context, plan.text_cache, normed=normed)
        gain = torch.ones(*active.shape, 1, dtype=result.dtype, device=result.device)  # [B, n, 1]
        gain[:, visual.start : visual.start + indices.shape[1], 0] = 2 * scores.gather(1, indices).sigmoid()
        result = layer_input + gain * (result - layer_input)
        return _scatter(sequence, active, result), indices

    def _original_layer(
        self, number: int, router: CogVLARouter, sequence: torch.Tensor, plan: TrunkPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one layer as CogVLA does: its router reads normalized tokens, and its gates scale the MLP alone."""
        layer, visual = self.decoder.layers[number], self.layout.span("visual")
        normed = layer.input_layernorm(sequence)
        gates = router(normed, visual, self._pooled_text_state(normed, plan.text_valid))  # [B, S]
        indices = select_top_tokens(gates[:, visual], self.groups, self.keep[number])  # [B, kept]
        active = self._active_indices(indices)  # [B, n]
        layer_input, active_normed = self._gather(layer, sequence, active)
        context = self._attention_context(active, indices.shape[1], plan)
        result = run_layer(layer, layer_input, context, normed=active_normed, gates=gates.gather(1, active))
        return _scatter(sequence, active, result), indices

    def _gather(
        self, layer: Any, sequence: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the active tokens [B, n, D] and, where the kernel computes both at once, their normalized states."""
        if self.fused:
            return gather_and_normalize(sequence, active, layer.input_layernorm)
        return sequence.gather(1, active[..., None].expand(-1, -1, sequence.shape[-1])), None

    def _active_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the indices in the sequence [B, n] of the visual tokens at `indices` [B, kept] and of all others."""
        visual, batch = self.layout.span("visual"), len(indices)
        before = torch.arange(visual.start, device=indices.device).expand(batch, -1)
        after = torch.arange(visual.stop, self.layout.length, device=indices.device).expand(batch, -1)
        return torch.cat([before, indices + visual.start, after], dim=1)

    def _attention_context(self, active: torch.Tensor, kept: int, plan: TrunkPlan) -> AttentionContext:
        """Return the context of the active tokens [B, n], of which `kept` are visual."""
        context = plan.pruned[kept]
        if self.positions == "renumbered":
            return context
        cosine, sine = (
            table.expand(len(active), -1, -1).gather(1, active[..., None].expand(-1, -1, table.shape[-1]))
            for table in context.rotation
        )  # each [B, n, d]
        return AttentionContext(context.positions.gather(1, active), (cosine, sine), context.attention_pattern)

    def _pooled_text_state(self, normed: torch.Tensor, text_valid: torch.Tensor) -> torch.Tensor:
        """Return the mean [B, D] over state and text without padding, which conditions CogVLA's router."""
        valid = self.layout.valid(text_valid)  # [B, S]: the original router is never used with cached text
        spans = [self.layout.span(name) for name in ("state", "text")]
        states = torch.cat([normed[:, span] for span in spans], dim=1)  # [B, 1 + L, D]
        weight = torch.cat([valid[:, span] for span in spans], dim=1)[..., None].to(normed.dtype)
        return (states * weight).sum(1) / weight.sum(1)


def _check_groups(configuration: PretrainedConfig, layout: TokenLayout, groups: int, keep: Sequence[int]) -> int:
    """Return how many visual tokens a group has; InputError unless `groups` and `keep` fit."""
    tokens = layout.visual // groups
    if tokens * groups != layout.visual:
        raise InputError(
            "trunk: groups",
            got=groups,
            expected=f"a divisor of {layout.visual}",
            fix="Use one group for each view, or one for all.",
        )
    if len(keep) != configuration.num_hidden_layers or not all(1 <= kept <= tokens for kept in keep):
        raise InputError(
            "trunk: keep",
            got=tuple(keep),
            expected=f"1 to {tokens} tokens of a group for each of {configuration.num_hidden_layers} layers",
            fix="Take it from keep_schedule.",
        )
    return tokens


def _scatter(sequence: torch.Tensor, active: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return the sequence [B, S, D] with `result` [B, n, D] at the indices `active` [B, n]."""
    return sequence.scatter(1, active[..., None].expand(-1, -1, sequence.shape[-1]), result.to(sequence.dtype))


def _straight_through(sequence: torch.Tensor, scores: torch.Tensor, visual: slice) -> torch.Tensor:
    """Return the sequence unchanged, with a gradient for the score of every visual token, kept or dropped.

    A straight-through estimate (Bengio et al., 2013): the value is that of the token, the gradient that of the token
    scaled by its gate. Without it the router gets no gradient from the tokens that it drops.
    """
    gate = scores.sigmoid()
    zero_gate = (gate - gate.detach())[..., None].to(sequence.dtype)  # [B, N, 1], zero with a gradient
    visual_tokens = sequence[:, visual] + zero_gate * sequence[:, visual].detach()
    return torch.cat([sequence[:, : visual.start], visual_tokens, sequence[:, visual.stop :]], dim=1)


def _slice_rotation(rotation: Rotation, indices: slice) -> Rotation:
    return rotation[0][:, indices], rotation[1][:, indices]


def _indices_except(first: int, last: int, length: int, device: torch.device) -> torch.Tensor:
    """Return the indices from 0 to `length`, without those from `first` to `last`."""
    return torch.cat([torch.arange(first, device=device), torch.arange(last, length, device=device)])
