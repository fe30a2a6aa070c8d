"""Where pretrained parts come from: sizes, tokenizer and weights of a trunk, weights of towers.

A source is a repository's name on the Hugging Face hub or a local folder. Only safetensors and JSON are read: nothing
is unpickled, and no code that comes with a model is run.
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
from ...perception.tower_set import PretrainedTowers
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
"""The architecture's fields by the names that transformers has for them, in the order in which they are compared."""

IGNORED_CONFIG_FIELDS = {
    *("max_position_embeddings", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("pretraining_tp", "tie_word_embeddings", "max_window_layers", "no_rope_layer_interval", "_attn_implementation"),
    *PretrainedConfig().to_dict(),
} - {"model_type"}
"""Fields of transformers on which a decoder's hidden states do not depend, or which others of the fields spell out."""


def trunk_fields(source: str, *, padding: bool = True) -> dict[str, Any]:
    """Return the architecture's fields that follow from a trunk's source; `padding=False` leaves that one out.

    Raises InputError for a source that cannot be read, for a decoder that the trunk cannot express, by the name of the
    field, and for a tokenizer that declares no padding.
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
    # Only what the trunk's configuration is made of matters here; the rest is the least that fits any trunk.
    shape = Architecture(**fields, padding=0, prune_from=1, expert_blocks=1)
    for name, got, expected in _differences(
        source_config, trunk_configuration(shape, source_config.max_position_embeddings)
    ):
        raise _unsupported_decoder(source, name, got, expected)
    if padding:
        fields["padding"] = find_padding(*read_tokenizer(source))
    return fields


def read_tokenizer(source: str) -> tuple[str, dict[str, Any]]:
    """Return a source's `tokenizer.json` as text, and its settings: which tokens are for what.

    Raises InputError for a source without one, and for settings that are damaged.
    """
    text = _read_file(source, TOKENIZER_FILE)
    if text is None:
        fix = "Save the tokenizer once with transformers' save_pretrained, which writes it, or use tokenizer=bytes."
        raise InputError(f"tokenizer of {source}", got=f"no {TOKENIZER_FILE}", expected="a fast tokenizer", fix=fix)
    settings: dict[str, Any] = {}
    # Older tokenizers keep their special tokens in a file of their own; the newer file decides.
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = _parse_object(_read_file(source, name) or "{}", f"{name} of {source}")
        settings |= {key: value for key, value in found.items() if value is not None}
    return text, settings


def load_trunk(trunk: Trunk, source: str) -> None:
    """Copy a source's weights into the trunk's decoder, all of them; its output layer, if there is one, is left out.

    Raises InputError for a decoder of other sizes or another family, naming the field, and for weights that are missing
    or damaged; the trunk is then as it was.
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
    except Exception as error:  # the library trusts a folder: a damaged index or weight surfaces as any of them
        fix = "Check the name and the connection, or give a folder that holds its safetensors."
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
    """Load the weights of pretrained towers, each from its source: `hub`, a safetensors file or a folder with one.

    Raises InputError for an architecture without pretrained towers, and for weights that do not fit.
    """
    if not isinstance(towers, PretrainedTowers):
        fix = "Name towers of timm: --change towers=NAME,NAME; or leave the weights out."
        raise InputError("weights of the towers", got="no pretrained tower", expected="one for each", fix=fix)
    towers.load_pretrained(sources)


def _configuration(source: str) -> PretrainedConfig:
    what = f"trunk {source}"
    text = _read_file(source, "config.json", what)
    if text is None:
        fix = "Give a repository's name on the Hugging Face hub, or a folder that save_pretrained has written."
        raise InputError(what, got="no config.json", expected="a model's config", fix=fix)
    if (quantization := _parse_object(text, f"{what}: config.json").get("quantization_config")) is not None:
        fix = "Choose the weights before they were quantized."
        raise InputError(f"{what}: quantization_config", got=quantization, expected="plain weights", fix=fix)
    try:
        source_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each family checks its fields in its own way, and most trust them
        fix = "Repair its config.json, or choose another model."
        raise InputError(what, got=_single_line(error), expected="a model's config", fix=fix) from error
    for name in ARCHITECTURE_FIELDS:
        value = getattr(source_config, name, None)
        # The two that have a usual value may lack.
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
    if not _is_positive(base):
        raise _unsupported_decoder(source, "rope_parameters", rotary, "one rope_theta above 0 for all layers")
    return float(base)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Keep transformers from reporting on a load: what matters of it is checked and said here."""
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
    """Yield what a source's configuration has otherwise than ours: the field's name, its value, ours."""
    wanted, found = trunk_config.to_dict(), source_config.to_dict()
    if source_config.model_type != trunk_config.model_type:
        yield "model_type", source_config.model_type, trunk_config.model_type
    # Families that slide by default have it in ours too.
    if found.get("sliding_window"):
        yield "sliding_window", found["sliding_window"], None
    # What our configuration does not know, our decoder does not compute with either.
    for name in sorted(wanted.keys() - IGNORED_CONFIG_FIELDS, key=lambda name: (name not in ARCHITECTURE_FIELDS, name)):
        got, expected = found.get(name), wanted[name]
        if name in ("num_key_value_heads", "head_dim") and got is None:
            usual = source_config.num_attention_heads
            got = usual if name == "num_key_value_heads" else source_config.hidden_size // usual
        if got != expected:
            yield name, got, expected


def _unsupported_decoder(source: str, name: str, got: object, expected: object) -> InputError:
    fix = "Choose a decoder that the trunk can express: plain rotary positions and attention over the whole sequence."
    return InputError(f"trunk {source}: {name}", got=got, expected=expected, fix=fix)


def _read_file(source: str, name: str, what: str | None = None) -> str | None:
    """Return the text of a source's file, None if it has none; errors call it `what`."""
    what = what or f"{name} of {source}"
    try:
        path = Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name))
        return path.read_text(encoding="utf-8")
    except LocalEntryNotFoundError as error:
        # Of the kind of the next two, but says only that the file is not kept here and that the hub was not asked.
        fix = "Check the connection, or give a folder that holds its files."
        got = "no connection to the Hugging Face hub, and no copy here"
        raise InputError(what, got=got, expected="a file", fix=fix) from error
    except (FileNotFoundError, EntryNotFoundError):
        return None
    except (OSError, ValueError) as error:
        fix = "Check the name and the connection, or give a folder that holds its files."
        raise InputError(what, got=_first_line(error), expected="a file", fix=fix) from error


def _parse_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(what, got="a damaged file", expected="a JSON object", fix="Copy it again.")
    return value


def _single_line(error: Exception) -> str:
    """Return an error on one line: a field's validation says its name on the first and the fault on the next."""
    return " ".join(str(error).split()) or type(error).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
