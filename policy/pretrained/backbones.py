"""Load pretrained parts: sizes, tokenizer and weights of a trunk, weights of towers.

A source is the name of a repository on the Hugging Face hub, or a local folder. Only safetensors and JSON are read:
nothing is unpickled, and no code of a model is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.utils import logging

from ...errors import InputError
from ..network.architecture import Architecture
from ..network.build import trunk_configuration
from ..network.tokenizer import TOKENIZER_FILE, find_padding
from ..network.trunk import Trunk

ARCHITECTURE_FIELDS = {
    "model_type": "trunk_family",
    "hidden_size": "trunk_width",
    "num_hidden_layers": "trunk_layers",
    "num_attention_heads": "trunk_heads",
    "num_key_value_heads": "trunk_key_value_heads",
    "head_dim": "trunk_head_size",
    "intermediate_size": "trunk_feed_forward",
    "vocab_size": "vocabulary",
    "rms_norm_eps": "norm_epsilon",
    "rope_parameters": "rotary_base",
}
"""The architecture's fields by their names in transformers, in the order of comparison."""

IGNORED_CONFIG_FIELDS = {
    *("max_position_embeddings", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("pretraining_tp", "tie_word_embeddings", "max_window_layers", "no_rope_layer_interval", "_attn_implementation"),
    *PretrainedConfig().to_dict(),
} - {"model_type"}
"""Fields of transformers that do not change a decoder's hidden states, or that follow from other fields."""


def trunk_fields(source: str, *, padding: bool = True) -> dict[str, Any]:
    """Return the architecture's fields that follow from a trunk's source.

    Args:
        source: A repository on the Hugging Face hub, or a folder.
        padding: Whether to include the padding token, which needs the tokenizer.

    Raises:
        InputError: The source cannot be read, the trunk cannot express its decoder, or its tokenizer declares no
            padding token.
    """
    source_config = _configuration(source)
    heads = source_config.num_attention_heads
    fields: dict[str, Any] = {
        "tokenizer": "trunk",
        "trunk_family": source_config.model_type,
        "trunk_width": source_config.hidden_size,
        "trunk_layers": source_config.num_hidden_layers,
        "trunk_heads": heads,
        "trunk_key_value_heads": getattr(source_config, "num_key_value_heads", None) or heads,
        "trunk_head_size": getattr(source_config, "head_dim", None) or source_config.hidden_size // heads,
        "trunk_feed_forward": source_config.intermediate_size,
        "vocabulary": source_config.vocab_size,
        "rotary_base": _rotary_base(source, source_config.rope_parameters),
        "norm_epsilon": source_config.rms_norm_eps,
    }
    # Only the trunk's fields matter here; the others fit any trunk.
    shape = Architecture(**fields, padding=0, prune_from=1, expert_blocks=1)
    for name, got, expected in _differences(
        source_config, trunk_configuration(shape, source_config.max_position_embeddings)
    ):
        raise _unsupported_decoder(source, name, got, expected)
    if padding:
        fields["padding"] = find_padding(*read_tokenizer(source))
    return fields


def read_tokenizer(source: str) -> tuple[str, dict[str, Any]]:
    """Return a source's `tokenizer.json` as text, and its settings, which name the special tokens.

    Raises:
        InputError: The source has no such file, or its settings are damaged.
    """
    text = _read_file(source, TOKENIZER_FILE)
    if text is None:
        fix = "Save the tokenizer with transformers' save_pretrained, which writes it, or use tokenizer=bytes."
        raise InputError(f"tokenizer of {source}", got=f"no {TOKENIZER_FILE}", expected="a fast tokenizer", fix=fix)
    settings: dict[str, Any] = {}
    # Older tokenizers have a separate file of special tokens; the newer file has priority.
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = _parse_object(_read_file(source, name) or "{}", f"{name} of {source}")
        settings |= {key: value for key, value in found.items() if value is not None}
    return text, settings


def load_trunk(trunk: Trunk, source: str) -> None:
    """Copy all of a source's weights into the trunk's decoder, without its output layer.

    Raises:
        InputError: The decoder has other sizes or another family, or weights are missing or damaged. The trunk is
            unchanged then.
    """
    what, own = f"weights of the trunk from {source}", trunk.decoder
    for name, got, expected in _differences(_configuration(source), own.config):
        field = f"architecture.{ARCHITECTURE_FIELDS[name]}" if name in ARCHITECTURE_FIELDS else name
        fix = f"Set {field}, or choose other weights." if name in ARCHITECTURE_FIELDS else "Choose other weights."
        raise InputError(f"{what}: {field}", got=got, expected=expected, fix=fix)
    try:
        with _silence_transformers():
            decoder, info = AutoModel.from_pretrained(
                source,
                attn_implementation="eager",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # the library raises any type for a damaged index or weight
        fix = "Check the name and the connection, or give a folder with its safetensors."
        raise InputError(what, got=_first_line(error), expected="whole safetensors", fix=fix) from error
    missing = sorted(info["missing_keys"])
    if missing:
        got, fix = f"{len(missing)} missing ({missing[0]}, ...)", "Choose the weights of a whole model."
        raise InputError(what, got=got, expected="every weight of the decoder", fix=fix)
    with torch.no_grad():
        found = decoder.state_dict()
        for name, tensor in own.state_dict().items():
            tensor.copy_(found[name])


def load_towers(towers: torch.nn.Module, sources: Sequence[str]) -> None:
    """Load the weights of pretrained towers.

    Args:
        towers: The network's towers.
        sources: For each tower `hub`, a safetensors file, or a folder with one.

    Raises:
        InputError: The architecture has no pretrained towers, or the weights do not fit.
    """
    # timm takes seconds to import: only who loads towers needs it.
    from ...perception.tower_set import PretrainedTowers

    if not isinstance(towers, PretrainedTowers):
        fix = "Name towers of timm: --change towers=NAME,NAME; or leave the weights out."
        raise InputError("weights of the towers", got="no pretrained tower", expected="one for each", fix=fix)
    towers.load_pretrained(sources)


def _configuration(source: str) -> PretrainedConfig:
    what = f"trunk {source}"
    text = _read_file(source, "config.json", what)
    if text is None:
        fix = "Give the name of a repository on the Hugging Face hub, or a folder that save_pretrained wrote."
        raise InputError(what, got="no config.json", expected="a model's config", fix=fix)
    if (quantization := _parse_object(text, f"{what}: config.json").get("quantization_config")) is not None:
        fix = "Choose the weights without quantization."
        raise InputError(f"{what}: quantization_config", got=quantization, expected="plain weights", fix=fix)
    try:
        source_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each family checks its fields in its own way
        fix = "Repair its config.json, or choose another model."
        raise InputError(what, got=_single_line(error), expected="a model's config", fix=fix) from error
    for name in ARCHITECTURE_FIELDS:
        value = getattr(source_config, name, None)
        # These two have defaults.
        if value is None and name in ("num_key_value_heads", "head_dim"):
            continue
        if name == "rope_parameters":
            _rotary_base(source, value)
        elif name != "model_type" and not _is_positive(value):
            got = "nothing" if value is None else repr(value)
            raise _unsupported_decoder(source, name, got, "a number above 0, as decoders like Llama and Qwen have it")
    return source_config


def _rotary_base(source: str, rotary: object) -> float:
    base = rotary.get("rope_theta") if isinstance(rotary, dict) else None
    if base is None or not _is_positive(base):
        raise _unsupported_decoder(source, "rope_parameters", rotary, "one rope_theta above 0 for all layers")
    return float(base)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Silence transformers during a load; the caller checks the result and reports errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _differences(
    source_config: PretrainedConfig, trunk_config: PretrainedConfig
) -> Iterator[tuple[str, object, object]]:
    """Yield the differences of a source's configuration from the trunk's: field, the source's value, the trunk's."""
    wanted, found = trunk_config.to_dict(), source_config.to_dict()
    if source_config.model_type != trunk_config.model_type:
        yield "model_type", source_config.model_type, trunk_config.model_type
    # Families with a sliding window by default have it in the trunk's configuration, too.
    if found.get("sliding_window"):
        yield "sliding_window", found["sliding_window"], None
    # The decoder does not use fields that the trunk's configuration does not have.
    for name in sorted(wanted.keys() - IGNORED_CONFIG_FIELDS, key=lambda name: (name not in ARCHITECTURE_FIELDS, name)):
        got, expected = found.get(name), wanted[name]
        if name in ("num_key_value_heads", "head_dim") and got is None:
            usual = source_config.num_attention_heads
            got = usual if name == "num_key_value_heads" else source_config.hidden_size // usual
        if got != expected:
            yield name, got, expected


def _unsupported_decoder(source: str, name: str, got: object, expected: object) -> InputError:
    fix = "Choose a decoder with plain rotary positions and attention over the whole sequence."
    return InputError(f"trunk {source}: {name}", got=got, expected=expected, fix=fix)


def _read_file(source: str, name: str, what: str | None = None) -> str | None:
    """Return the text of a source's file, None if it does not exist; errors name it `what`."""
    what = what or f"{name} of {source}"
    try:
        path = Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name))
        return path.read_text(encoding="utf-8")
    except LocalEntryNotFoundError as error:
        # A subclass of the errors below, raised when the file is not cached and the hub was not reached.
        fix = "Check the connection, or give a folder with its files."
        got = "no connection to the Hugging Face hub, and no cached copy"
        raise InputError(what, got=got, expected="a file", fix=fix) from error
    except (FileNotFoundError, EntryNotFoundError):
        return None
    except (OSError, ValueError) as error:
        fix = "Check the name and the connection, or give a folder with its files."
        raise InputError(what, got=_first_line(error), expected="a file", fix=fix) from error


def _parse_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(what, got="a damaged file", expected="a JSON object", fix="Copy the file again.")
    return value


def _single_line(error: Exception) -> str:
    """Return an error on one line: a field's validation has its name on the first line, the fault on the next."""
    return " ".join(str(error).split()) or type(error).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
