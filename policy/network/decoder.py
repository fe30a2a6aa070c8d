"""Decoder layers of Hugging Face transformers: build a decoder, check its layers, run them one by one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel, PretrainedConfig

from ...errors import InputError
from .attention import DECODER_ATTENTION, AttentionPattern, decoder_attention

type Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of the rotary embedding, each [B, n, d]."""


@dataclass(frozen=True)
class AttentionContext:
    """What a decoder layer needs to know about the tokens that it works on.

    Attributes:
        positions: Rotary positions [B, n].
        rotation: Cosine and sine of the rotary embedding, each [B, n, d].
        attention_pattern: Which of these tokens and of the cached text each token attends to.
    """

    positions: torch.Tensor
    rotation: Rotation
    attention_pattern: AttentionPattern


@dataclass(frozen=True)
class TextKeyValueCache:
    """Keys and values of the cached text, each [B, groups, L, d], one for every layer that has run.

    It takes the place of the library's cache: a layer passes its keys and values to `update` and attends to the result.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values [B, groups, L + n, d] with those of the text before them."""
        return _concatenate_cached(self.keys[layer], key), _concatenate_cached(self.values[layer], value)


class _KeyValueRecorder:
    """Take the place of the library's cache and keep the keys and values of one layer."""

    key: torch.Tensor
    value: torch.Tensor

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.key, self.value = key, value
        return key, value


def build_decoder(configuration: PretrainedConfig) -> Any:
    """Build a decoder with random weights whose layers can run one by one.

    Args:
        configuration: A configuration of transformers, of a decoder built like Llama.

    Returns:
        The decoder. The library's families share attributes but no class, so its type is open.

    Raises:
        InputError: The sizes do not fit, or the layers cannot run one by one.
    """
    AttentionInterface.register(DECODER_ATTENTION, decoder_attention)
    try:
        decoder: Any = AutoModel.from_config(configuration, attn_implementation=DECODER_ATTENTION)
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
        fix="Choose llama, qwen2, qwen3 or smollm3.",
    )


def unusual_parts(layer: nn.Module) -> list[str]:
    """Return the names of the parts of a decoder layer that Llama's layers do not have."""
    usual = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    return sorted(name for name, _ in layer.named_children() if name not in usual)


def is_llama_layer(layer: Any) -> bool:
    """Tell whether a layer computes as Llama's: RMS norm and attention, RMS norm and MLP, both with plain residuals."""
    norm = layer.input_layernorm
    # Gemma's norm names its epsilon differently and adds one to its weight; Granite's layers scale their residuals.
    scales = any(isinstance(value, float) for value in vars(layer).values())
    return not unusual_parts(layer) and hasattr(norm, "weight") and hasattr(norm, "variance_epsilon") and not scales


def run_text_layer(
    layer: nn.Module, text: torch.Tensor, context: AttentionContext
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a layer over the text [B, L, D]; return its output and the layer's keys and values [B, groups, L, d]."""
    recorder = _KeyValueRecorder()
    text = run_layer(layer, text, context, recorder)
    return text, recorder.key, recorder.value


def run_layer(
    layer: Any,
    hidden: torch.Tensor,
    context: AttentionContext,
    text_cache: TextKeyValueCache | _KeyValueRecorder | None = None,
    *,
    normed: torch.Tensor | None = None,
    gates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a decoder layer on hidden states.

    Args:
        layer: A layer of the decoder. With `normed` or `gates` it runs part by part and must have no unusual parts.
        hidden: Hidden states [B, n, D].
        context: Positions and attention pattern of these tokens.
        text_cache: Keys and values of the cached text.
        normed: The normalized hidden states [B, n, D], if they are computed already.
        gates: Factors [B, n] of the MLP's output, as in CogVLA's LFP-Routing.

    Returns:
        Hidden states [B, n, D].
    """
    arguments = {
        "attention_mask": context.attention_pattern,
        "position_ids": context.positions,
        "position_embeddings": tuple(table.to(hidden.dtype) for table in context.rotation),
        "past_key_values": text_cache,
    }
    if normed is None and gates is None:
        return layer(hidden, **arguments)
    attention_output, _ = layer.self_attn(layer.input_layernorm(hidden) if normed is None else normed, **arguments)
    hidden = hidden + attention_output  # [B, n, D]
    mlp_output = layer.mlp(layer.post_attention_layernorm(hidden))  # [B, n, D]
    return hidden + (mlp_output if gates is None else gates[..., None].to(hidden.dtype) * mlp_output)


def _concatenate_cached(cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return [B, groups, L + n, d] from [B, groups, L, d] and [B, groups, n, d], in memory token by token."""
    both = [cached.to(new.dtype).transpose(1, 2), new.transpose(1, 2)]  # each [B, tokens, groups, d]
    return torch.cat(both, dim=1).transpose(1, 2)
