"""The tokenizer that came with a trunk's weights: instructions in the trunk's prompt, as tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ..errors import InputError
from .architecture import Architecture
from .instruction import PADDING, ByteTokenizer

TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
"""The files of a Hugging Face tokenizer; a checkpoint keeps the first."""

CHAT_TOKEN = re.compile(r"<[^<>\s]+>")
"""What looks like one special token in a prompt: `<|im_start|>`, `<start_of_turn>`, `</s>`."""


class TrunkTokenizer:
    """A trunk's own tokens of `prompt` with the instruction in it, padded on the right to a fixed length.

    `text` is that of the `tokenizer.json` that came with the weights. Its own post-processing stays, so a Llama's
    tokens begin with its start token. Case and spacing of the instruction do not matter; one that is too long is
    refused, never cut. Raises InputError for a text that is no tokenizer, for one with more tokens than the trunk's
    `vocabulary`, for a prompt whose chat tokens it lacks, and for a `padding` that the prompt itself holds.
    """

    def __init__(self, text: str, *, prompt: str, length: int, padding: int, vocabulary: int) -> None:
        self.prompt, self.length, self.padding = prompt, length, padding
        self._tokenizer = _parsed(text)
        # The file may ask for both; here nothing is cut, and padding is the architecture's.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._check_prompt(vocabulary)
        special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        self._reserved = special | {padding}
        self._own = self._reserved_in(self._encode(""))
        if padding in self._own:
            raise InputError(
                "architecture.padding",
                got=f"{padding}, {self._name(padding)}, which the prompt itself holds",
                expected="a token that no instruction needs",
                fix=f"Set padding to another one, such as a row below {vocabulary} that the tokenizer does not use.",
            )

    def __call__(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return int64 [B, L]; raises InputError for an instruction that is empty, too long or holds special tokens."""
        tokens = torch.full((len(instructions), self.length), self.padding)
        for row, instruction in enumerate(instructions):
            content = self._encode(instruction)
            if self._reserved_in(content) != self._own:
                foreign = sorted(set(self._reserved_in(content)) - set(self._own)) or self._own
                raise InputError(
                    "instruction",
                    got=f"{instruction!r}, which reads as {', '.join(map(self._name, foreign))}",
                    expected="words, without special tokens",
                    fix="Say it in other words.",
                )
            if len(content) > self.length:
                raise InputError(
                    "instruction",
                    got=f"{len(content)} tokens, the prompt's included, in {instruction!r}",
                    expected=f"at most {self.length}",
                    fix=f"Say it in other words, or train with text_length={len(content)}.",
                )
            tokens[row, : len(content)] = torch.tensor(content)
        return tokens

    def _encode(self, instruction: str) -> list[int]:
        """Return the tokens of the prompt with an instruction in it; the empty string gives the bare prompt's."""
        content = " ".join(instruction.lower().split())
        if instruction and not content:
            raise InputError("instruction", got=repr(instruction), expected="words", fix="Say what to do.")
        try:
            return self._tokenizer.encode(self.prompt.replace("{instruction}", content)).ids
        except (UnicodeEncodeError, TypeError):
            # Lone surrogates, which a terminal makes of foreign bytes.
            raise InputError(
                "instruction", got=repr(instruction), expected="text in Unicode", fix="Type it again."
            ) from None

    def _reserved_in(self, content: Sequence[int]) -> list[int]:
        return [token for token in content if token in self._reserved]

    def _check_prompt(self, vocabulary: int) -> None:
        for name in CHAT_TOKEN.findall(self.prompt.replace("{instruction}", "")):
            token = self._tokenizer.token_to_id(name)
            if token is None or token not in self._tokenizer.encode(name, add_special_tokens=False).ids:
                raise InputError(
                    "architecture.prompt",
                    got=f"a tokenizer that is missing chat token {name}",
                    expected="one that knows every chat token of the prompt",
                    fix="Set a prompt of the trunk's own form, such as prompt='{instruction}'.",
                )
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if highest >= vocabulary:
            raise InputError(
                TOKENIZER,
                got=f"token {highest}, {self._name(highest)}",
                expected=f"tokens below {vocabulary}, the trunk's vocabulary",
                fix="Take the tokenizer that belongs to the trunk's weights.",
            )

    def _name(self, token: int) -> str:
        return repr(self._tokenizer.id_to_token(token) or f"token {token}")


def make_tokenizer(architecture: Architecture, text: str | None) -> ByteTokenizer | TrunkTokenizer:
    """Return the tokenizer that an architecture asks for; `text` is that of the trunk's `tokenizer.json`, if any.

    Raises InputError where the trunk's tokenizer is asked for and there is none, and where it does not fit.
    """
    if architecture.tokenizer == "bytes":
        if architecture.padding != PADDING:
            raise InputError(
                "architecture.padding",
                got=architecture.padding,
                expected=f"{PADDING}, the padding of byte tokens",
                fix=f"Set padding={PADDING}, or tokenizer=trunk.",
            )
        return ByteTokenizer(architecture.text_length)
    if text is None:
        raise InputError(
            "architecture.tokenizer",
            got="trunk, and no tokenizer",
            expected=f"the {TOKENIZER} of a trunk",
            fix="Name pretrained weights, whose tokenizer comes along: --trunk; or use --change tokenizer=bytes.",
        )
    return TrunkTokenizer(
        text,
        prompt=architecture.prompt,
        length=architecture.text_length,
        padding=architecture.padding,
        vocabulary=architecture.vocabulary,
    )


def recorded_tokenizer(architecture: Architecture, folder: str | Path, files: Mapping[str, Any]) -> str | None:
    """Return the text of a checkpoint's tokenizer, None where the architecture reads bytes.

    `files` are those that the checkpoint's provenance vouches for, and that were verified; InputError if it is not
    among them.
    """
    if architecture.tokenizer == "bytes":
        return None
    path = Path(folder) / TOKENIZER
    if TOKENIZER not in files:
        raise InputError(
            str(path),
            got="no tokenizer that was saved with the weights",
            expected="one, as the architecture asks for the trunk's",
            fix="Copy the checkpoint again from where it was trained.",
        )
    return path.read_text(encoding="utf-8")


def find_padding(texts: Mapping[str, str]) -> int:
    """Return the padding token of a tokenizer, given the texts of its files by name; those but the first may lack.

    Raises InputError when none is declared: which token may stand for nothing is not guessed.
    """
    tokenizer = _parsed(texts.get(TOKENIZER, ""))
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        declared = _object(texts.get(name, "{}"), name).get("pad_token")
        content = declared.get("content") if isinstance(declared, dict) else declared
        if content is None:
            continue
        token = tokenizer.token_to_id(str(content))
        if token is None:
            fix = f"Set padding to the number of a token that {TOKENIZER} has: --change padding=NUMBER."
            raise InputError(f"{name}: pad_token", got=repr(content), expected="a token that exists", fix=fix)
        return token
    raise InputError(
        "the trunk's tokenizer",
        got="no padding token",
        expected=f"pad_token in {TOKENIZER_CONFIG}",
        fix="Choose a token that no instruction needs: --change padding=NUMBER.",
    )


def _parsed(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower one
        raise InputError(
            TOKENIZER,
            got=f"a text that is no tokenizer ({error})" if text else "nothing",
            expected="a fast tokenizer of Hugging Face",
            fix="Save it with tokenizer.save_pretrained, which writes that file.",
        ) from None


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(name, got="a damaged file", expected="a JSON object", fix="Copy it again.")
    return value
