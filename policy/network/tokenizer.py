"""The tokenizer of a trunk's pretrained weights: an instruction, inside the trunk's prompt, as tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from ...errors import InputError
from .architecture import Architecture
from .instruction import PADDING, ByteTokenizer

TOKENIZER_FILE = "tokenizer.json"
"""The file of a Hugging Face tokenizer, which a checkpoint keeps."""

CHAT_TOKEN = re.compile(r"<[^<>\s]+>")
"""A special token in a prompt: `<|im_start|>`, `<start_of_turn>`, `</s>`."""

SPACE_MARKERS = "\N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""The characters that SentencePiece and byte-level tokenizers write for a space."""


class TrunkTokenizer:
    """A trunk's tokens of the prompt with the instruction in it, padded on the right to a fixed length.

    The tokenizer's post-processing stays, so that a Llama's tokens begin with its start token. Case and spacing of the
    instruction do not matter. An instruction that is too long, or that has words without tokens, raises an error; it is
    never truncated.

    Args:
        text: The `tokenizer.json` of the weights.
        prompt: The prompt, with {instruction} in it.
        length: Tokens of the result, L.
        padding: The padding token.

    Raises:
        InputError: The text is no tokenizer; it lacks the prompt's chat tokens or the padding token; the prompt fills
            the length alone or uses the padding token.
    """

    def __init__(self, text: str, *, prompt: str, length: int, padding: int) -> None:
        self.prompt, self.length, self.padding = prompt, length, padding
        self._tokenizer = _parse_tokenizer(text)
        # The file may enable both; here nothing is truncated, and the architecture pads.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._check_prompt()
        self._prompt_tokens = self._encode("")
        self._check_padding()
        self._check_length()
        self._unknown_id = _unknown_token(self._tokenizer, text)
        # In an instruction these tokens would end a turn or hide a word from the trunk.
        self._reserved = {padding, *_special_tokens(self._tokenizer)} - {self._unknown_id}
        # Offsets are exact only in normalized text.
        self._unnormalized = _parse_tokenizer(text)
        self._unnormalized.normalizer = None

    def __call__(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return the tokens of B instructions, int64 [B, L].

        Raises:
            InputError: An instruction is empty or too long, has unknown words, or contains special tokens.
        """
        tokens = torch.full((len(instructions), self.length), self.padding)
        for row, instruction in enumerate(instructions):
            content = " ".join(instruction.lower().split())
            if not content:
                raise InputError(
                    "instruction", got=repr(instruction), expected="words", fix="Write what the robot should do."
                )
            found = self._encode(content)
            self._check_reserved(found, instruction)
            self._check_words(found, content)
            if len(found) > self.length:
                raise InputError(
                    "instruction",
                    got=f"{len(found)} tokens in {instruction!r}, {len(self._prompt_tokens)} of them the prompt's",
                    expected=f"at most {self.length}",
                    fix=f"Write a shorter instruction, or train with text_length={len(found)}.",
                )
            tokens[row, : len(found)] = torch.tensor(found)
        return tokens

    def _encode(self, content: str) -> list[int]:
        """Return the tokens of the prompt with a text in it."""
        try:
            return self._tokenizer.encode(self.prompt.replace("{instruction}", content)).ids
        except (UnicodeEncodeError, TypeError):
            # A terminal turns bytes that are not UTF-8 into lone surrogates.
            fix = "Write the instruction in UTF-8."
            raise InputError("instruction", got=repr(content), expected="text in Unicode", fix=fix) from None
        except Exception as error:  # the library raises no narrower type where it has no unknown token
            what = "instruction" if content else "architecture.prompt"
            got = f"{content or self.prompt!r} ({error})"
            fix = "Use other words."
            raise InputError(what, got=got, expected="words that the tokenizer knows", fix=fix) from None

    def _check_reserved(self, found: Sequence[int], instruction: str) -> None:
        """Raise InputError if an instruction adds reserved tokens to those of the prompt."""
        own, all_reserved = (
            [token for token in each if token in self._reserved] for each in (self._prompt_tokens, found)
        )
        if own != all_reserved:
            names = sorted({self._tokenizer.id_to_token(token) for token in set(all_reserved) - set(own) or own})
            raise InputError(
                "instruction",
                got=f"{instruction!r}, which reads as {', '.join(names)}",
                expected="words without special tokens",
                fix="Leave them out.",
            )

    def _check_words(self, found: Sequence[int], content: str) -> None:
        """Raise InputError if a word, or a part of it, has no token or the unknown token: the trunk would not read it.

        The prompt may contain unknown tokens itself; only additional ones belong to the instruction.
        """
        words = content.split()
        unknown_words = [word for word in words if not self._is_covered(word)]
        unknown = self._unknown_id
        if not unknown_words and unknown is not None and found.count(unknown) > self._prompt_tokens.count(unknown):
            unknown_words = [word for word in words if unknown in self._tokenizer.encode(word).ids] or [content]
        if not unknown_words and found == self._prompt_tokens:
            unknown_words = [content]
        if unknown_words:
            raise InputError(
                "instruction",
                got=", ".join(map(repr, unknown_words)),
                expected="words that the tokenizer knows whole",
                fix="Use other words, in a language that the trunk was trained in.",
            )

    def _is_covered(self, word: str) -> bool:
        """Tell whether every character of a word, as the tokenizer normalizes it, is part of a token."""
        normalizer = self._tokenizer.normalizer
        text = normalizer.normalize_str(word) if normalizer else word
        found = self._unnormalized.encode(text, add_special_tokens=False)
        # A space that the tokenizer puts before the word has the offset of its first letter.
        spans = (span for token, span in zip(found.tokens, found.offsets, strict=True) if token.strip(SPACE_MARKERS))
        covered = {position for span in spans for position in range(*span)}
        letters = {
            position for position, letter in enumerate(text) if not letter.isspace() and letter not in SPACE_MARKERS
        }
        return bool(letters) and letters <= covered

    def _check_prompt(self) -> None:
        for name in CHAT_TOKEN.findall(self.prompt.replace("{instruction}", "")):
            token = self._tokenizer.token_to_id(name)
            if token is None or token not in self._tokenizer.encode(name, add_special_tokens=False).ids:
                raise InputError(
                    "architecture.prompt",
                    got=f"{name}, which the tokenizer does not know as one token",
                    expected="chat tokens that it knows",
                    fix="Set a prompt in the trunk's chat format, or prompt='{instruction}'.",
                )

    def _check_padding(self) -> None:
        name = self._tokenizer.id_to_token(self.padding)
        fix = "Set padding to the tokenizer's padding token, or to another that no instruction needs."
        if name is None:
            expected = f"one of the tokenizer's {self._tokenizer.get_vocab_size()} tokens"
            raise InputError("architecture.padding", got=self.padding, expected=expected, fix=fix)
        if self.padding in self._prompt_tokens:
            got = f"{self.padding} ({name}), which the prompt uses"
            raise InputError("architecture.padding", got=got, expected="a token that it does not use", fix=fix)

    def _check_length(self) -> None:
        if len(self._prompt_tokens) >= self.length:
            raise InputError(
                "architecture.text_length",
                got=f"{self.length}, where the prompt alone takes {len(self._prompt_tokens)} tokens",
                expected=f"more than {len(self._prompt_tokens)}: room for an instruction",
                fix=f"Set text_length={len(self._prompt_tokens) + 32}, or a shorter prompt.",
            )


def make_tokenizer(architecture: Architecture, text: str | None) -> ByteTokenizer | TrunkTokenizer:
    """Build the tokenizer of an architecture.

    Args:
        architecture: `tokenizer`, `prompt`, `text_length`, `padding` and `vocabulary` matter here.
        text: The trunk's `tokenizer.json`; None for byte tokens.

    Raises:
        InputError: The trunk's tokenizer is missing or does not fit the architecture.
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
            TOKENIZER_FILE,
            got="none",
            expected="the trunk's tokenizer, which the architecture asks for",
            fix="Name pretrained weights, with which it comes: --trunk; or use --change tokenizer=bytes.",
        )
    tokenizer = TrunkTokenizer(
        text, prompt=architecture.prompt, length=architecture.text_length, padding=architecture.padding
    )
    if (highest := max(_parse_tokenizer(text).get_vocab().values())) >= architecture.vocabulary:
        raise InputError(
            TOKENIZER_FILE,
            got=f"tokens up to {highest}",
            expected=f"tokens below {architecture.vocabulary}, the trunk's vocabulary",
            fix="Take the tokenizer that belongs to the trunk's weights.",
        )
    return tokenizer


def find_padding(text: str, settings: Mapping[str, Any]) -> int:
    """Return a tokenizer's padding token; it is never guessed.

    Args:
        text: The tokenizer's `tokenizer.json`.
        settings: Its `tokenizer_config.json`, which names the pad_token.

    Raises:
        InputError: The settings name no padding token, or one that the tokenizer does not have.
    """
    tokenizer = _parse_tokenizer(text)
    named = settings.get("pad_token")
    named = named.get("content") if isinstance(named, Mapping) else named
    token = tokenizer.token_to_id(named) if isinstance(named, str) else None
    if token is None:
        special = ", ".join(f"{name} is {token}" for token, name in sorted(_special_tokens(tokenizer).items()))
        raise InputError(
            "tokenizer: padding token",
            got=f"{named!r}, which it does not have" if named else "none",
            expected="one of its tokens, named pad_token",
            fix=f"Choose one that no instruction needs: --change padding=NUMBER; special tokens: {special or 'none'}.",
        )
    return token


def _special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}


def _unknown_token(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the tokenizer's unknown token; None if it has none."""
    model = json.loads(text)["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _parse_tokenizer(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower type
        raise InputError(
            TOKENIZER_FILE,
            got=f"no tokenizer ({error})",
            expected="a fast tokenizer of Hugging Face",
            fix="Save it with tokenizer.save_pretrained, which writes that file.",
        ) from None
