"""The tokenizer that came with a trunk's weights: instructions in the trunk's prompt, as tokens."""

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
"""The file of a Hugging Face tokenizer that a checkpoint keeps."""

CHAT_TOKEN = re.compile(r"<[^<>\s]+>")
"""What looks like one special token in a prompt: `<|im_start|>`, `<start_of_turn>`, `</s>`."""

SPACE_MARKERS = "\N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""What SentencePiece and byte-level tokenizers write for a space."""


class TrunkTokenizer:
    """A trunk's own tokens of `prompt` with the instruction in it, padded on the right to a fixed length.

    `text` is that of the `tokenizer.json` that came with the weights. Its own post-processing stays, so a Llama's
    tokens begin with its start token. Case and spacing of the instruction do not matter; one that is too long is
    refused, never cut, and so is one with words that the tokenizer has no tokens for. Raises InputError for a text that
    is no tokenizer, for a prompt whose chat tokens it lacks or that fills the length alone, and for a `padding` that it
    lacks or that the prompt itself uses.
    """

    def __init__(self, text: str, *, prompt: str, length: int, padding: int) -> None:
        self.prompt, self.length, self.padding = prompt, length, padding
        self._tokenizer = _parse_tokenizer(text)
        # The file may ask for both; here nothing is cut, and padding is the architecture's.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._check_prompt()
        self._prompt_tokens = self._encode("")
        self._check_padding()
        self._check_length()
        self._unknown_id = _unknown_token(self._tokenizer, text)
        # Said aloud, these would end a turn or hide a word from the trunk.
        self._reserved = {padding, *_special_tokens(self._tokenizer)} - {self._unknown_id}
        # Offsets are exact only in the text that the model itself sees.
        self._unnormalized = _parse_tokenizer(text)
        self._unnormalized.normalizer = None

    def __call__(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return int64 [B, L]; raises InputError for an instruction that is empty, too long or holds special tokens."""
        tokens = torch.full((len(instructions), self.length), self.padding)
        for row, instruction in enumerate(instructions):
            content = " ".join(instruction.lower().split())
            if not content:
                raise InputError("instruction", got=repr(instruction), expected="words", fix="Say what to do.")
            found = self._encode(content)
            self._check_reserved(found, instruction)
            self._check_words(found, content)
            if len(found) > self.length:
                raise InputError(
                    "instruction",
                    got=f"{len(found)} tokens in {instruction!r}, {len(self._prompt_tokens)} of them the prompt's",
                    expected=f"at most {self.length}",
                    fix=f"Say it in other words, or train with text_length={len(found)}.",
                )
            tokens[row, : len(found)] = torch.tensor(found)
        return tokens

    def _encode(self, content: str) -> list[int]:
        """Return the tokens of the prompt with a text in it."""
        try:
            return self._tokenizer.encode(self.prompt.replace("{instruction}", content)).ids
        except (UnicodeEncodeError, TypeError):
            # Lone surrogates, which a terminal makes of foreign bytes.
            fix = "Type it again."
            raise InputError("instruction", got=repr(content), expected="text in Unicode", fix=fix) from None
        except Exception as error:  # the library raises no narrower one where it knows no token for the unknown
            what = "instruction" if content else "architecture.prompt"
            got = f"{content or self.prompt!r} ({error})"
            fix = "Say it in other words."
            raise InputError(what, got=got, expected="words that the tokenizer knows", fix=fix) from None

    def _check_reserved(self, found: Sequence[int], instruction: str) -> None:
        """Raise InputError unless the only reserved tokens of an instruction are those of the prompt."""
        own, all_reserved = (
            [token for token in each if token in self._reserved] for each in (self._prompt_tokens, found)
        )
        if own != all_reserved:
            names = sorted({self._tokenizer.id_to_token(token) for token in set(all_reserved) - set(own) or own})
            raise InputError(
                "instruction",
                got=f"{instruction!r}, which reads as {', '.join(names)}",
                expected="words without special tokens",
                fix="Say it in other words.",
            )

    def _check_words(self, found: Sequence[int], content: str) -> None:
        """Raise InputError if a word, or a part of it, became no token or the unknown one: the trunk would not see it.

        The prompt may hold unknown tokens of its own; only what comes on top of them is the instruction's.
        """
        words = content.split()
        unknown_words = [word for word in words if not self._is_covered(word)]
        if not unknown_words and found.count(self._unknown_id) > self._prompt_tokens.count(self._unknown_id):
            unknown_words = [word for word in words if self._unknown_id in self._tokenizer.encode(word).ids] or [
                content
            ]
        if not unknown_words and found == self._prompt_tokens:
            unknown_words = [content]
        if unknown_words:
            raise InputError(
                "instruction",
                got=", ".join(map(repr, unknown_words)),
                expected="words that the tokenizer knows whole",
                fix="Say it in other words, in a language that the trunk was trained in.",
            )

    def _is_covered(self, word: str) -> bool:
        """Whether every character of a word, as the tokenizer normalizes it, lies in a token."""
        normalizer = self._tokenizer.normalizer
        text = normalizer.normalize_str(word) if normalizer else word
        found = self._unnormalized.encode(text, add_special_tokens=False)
        # A space that is put before the word claims the place of its first letter.
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
                    expected="chat tokens that it knows: none may be missing",
                    fix="Set a prompt of the trunk's own form, such as prompt='{instruction}'.",
                )

    def _check_padding(self) -> None:
        name = self._tokenizer.id_to_token(self.padding)
        fix = "Take the tokenizer's own padding token, or another that no instruction needs."
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
    """Return a tokenizer's padding token: the one that `settings`, its `tokenizer_config.json`, names as pad_token.

    Raises InputError when none is named, or one that there is not: which token may stand for nothing is not guessed.
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
    """Return the token that stands for what the tokenizer's model does not know, None if it has none."""
    model = json.loads(text)["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _parse_tokenizer(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower one
        raise InputError(
            TOKENIZER_FILE,
            got=f"no tokenizer ({error})",
            expected="a fast tokenizer of Hugging Face",
            fix="Save it with tokenizer.save_pretrained, which writes that file.",
        ) from None
