"""A trunk's tokenizer: the prompt around what is said, filled up and never cut."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFD, Lowercase, Sequence, StripAccents
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Whitespace, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from saccade.errors import InputError
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.instruction import ByteTokenizer
from saccade.policy.network.tokenizer import TrunkTokenizer, find_padding, make_tokenizer
from saccade_testing.released_weights import RECORDED

WORDS = ["<unk>", "<pad>", "take", "the", "red", "cube", "user", "say", ":"]
PROMPT = "<|im_start|>user say: {instruction}"


@pytest.fixture(scope="module")
def text():
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<pad>")])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    return tokenizer.to_str()


def tokenizer_of(text, **changes):
    return TrunkTokenizer(text, **{"prompt": PROMPT, "length": 9, "padding": 1} | changes)


def test_prompt_is_padded_to_the_length_whatever_the_tokenizer_file_says(text):
    tokens = tokenizer_of(text)(["Take  the RED cube", "take cube"])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[9, 6, 7, 8, 2, 3, 4, 5, 1], [9, 6, 7, 8, 2, 5, 1, 1, 1]]


def test_a_longer_instruction_is_refused(text):
    with pytest.raises(
        InputError, match="instruction: got 10 tokens in .*, 4 of them the prompt's, expected at most 9"
    ):
        tokenizer_of(text)(["take the red cube the cube"])
    with pytest.raises(InputError, match="instruction: got '  '"):
        tokenizer_of(text)(["  "])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding": 99}, "architecture.padding: got 99, expected one of the tokenizer's 10 tokens"),
        ({"padding": 6}, r"architecture.padding: got 6 \(user\), which the prompt uses"),
        ({"prompt": "<|assistant|>{instruction}"}, r"architecture.prompt: got <\|assistant\|>, which the tokenizer"),
    ],
)
def test_prompt_that_does_not_match_the_tokenizer_is_refused(text, change, message):
    with pytest.raises(InputError, match=message):
        tokenizer_of(text, **change)


def test_a_file_that_is_no_tokenizer_is_refused():
    with pytest.raises(InputError, match="tokenizer.json: got no tokenizer"):
        tokenizer_of("{}")


def test_the_architecture_chooses(text):
    assert isinstance(make_tokenizer(Architecture(), None), ByteTokenizer)
    shape = Architecture(tokenizer="trunk", prompt=PROMPT, padding=1, text_length=12)
    assert make_tokenizer(shape, text)(["take"]).shape == (1, 12)
    with pytest.raises(InputError, match="tokenizer.json: got none"):
        make_tokenizer(shape, None)


def test_padding_is_what_the_tokenizer_names(text):
    assert find_padding(text, {"pad_token": "<pad>"}) == 1
    assert find_padding(text, {"pad_token": {"content": "<pad>"}}) == 1
    for settings in ({}, {"pad_token": None}, {"pad_token": "<other>"}):
        with pytest.raises(InputError, match=r"tokenizer: padding token.*special tokens: "):
            find_padding(text, settings)
    assert json.loads(text)["added_tokens"]


@pytest.mark.parametrize("said", ["take <|im_start|> cube", "take the <pad>"])
def test_special_tokens_in_an_instruction_are_refused(text, said):
    with pytest.raises(InputError, match=r"instruction: got .*, which reads as <(\|im_start\||pad)>"):
        tokenizer_of(text)([said])


def test_what_the_tokenizer_puts_before_every_text_stays(text):
    starting = Tokenizer.from_str(text)
    starting.add_special_tokens([AddedToken("<s>")])
    starting.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 10)])
    assert tokenizer_of(starting.to_str())(["take"]).tolist() == [[10, 9, 6, 7, 8, 2, 1, 1, 1]]


def test_more_tokens_than_the_trunk_has_are_refused(text):
    shape = Architecture(tokenizer="trunk", prompt=PROMPT, padding=1, vocabulary=9)
    with pytest.raises(InputError, match="tokenizer.json: got tokens up to 9, expected tokens below 9"):
        make_tokenizer(shape, text)


def test_bytes_are_padded_with_their_own_token():
    with pytest.raises(InputError, match="architecture.padding: got 1, expected 256"):
        make_tokenizer(Architecture(padding=1), None)


def test_foreign_bytes_are_refused(text):
    with pytest.raises(InputError, match="instruction: got .*expected text in Unicode"):
        tokenizer_of(text)(["take \udcff"])


def letters(pre_tokenizer, normalizer=None, alphabet="abcdefghijklmnopqrstuvwxyz:\N{LOWER ONE EIGHTH BLOCK}"):
    """A tokenizer that knows these letters and nothing for the unknown."""
    words = {letter: place for place, letter in enumerate(["<pad>", *sorted(alphabet)])}
    tokenizer = Tokenizer(BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return TrunkTokenizer(tokenizer.to_str(), prompt="say: {instruction}", length=60, padding=0)


@pytest.mark.parametrize("pre_tokenizer", [Whitespace(), WhitespaceSplit(), Metaspace()])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("pick the красный cube", "'красный'"),
        ("красный", "'красный'"),
        ("pick the reкd cube", "'reкd'"),
        ("take cube\N{SNOWMAN} \N{SNOWMAN}", "'cube\N{SNOWMAN}', '\N{SNOWMAN}'"),
    ],
)
def test_words_that_the_tokenizer_drops_are_refused(pre_tokenizer, said, words):
    tokenizer = letters(pre_tokenizer)
    assert tokenizer(["pick the red cube"]).shape == (1, 60)
    with pytest.raises(InputError, match=f"instruction: got {words}, expected words that the tokenizer knows whole"):
        tokenizer([said])


def test_unknown_words_are_refused_though_their_token_is_not_special(text):
    with pytest.raises(InputError, match="instruction: got 'blue', expected words that"):
        tokenizer_of(text)(["take the blue cube"])
    with pytest.raises(InputError, match="instruction: got 'blue', expected words that"):
        tokenizer_of(text, prompt="now {instruction}")(["take the blue cube"])
    assert tokenizer_of(text, prompt="now {instruction}", length=4)(["take cube"]).tolist() == [[0, 2, 5, 1]]
    with pytest.raises(InputError, match="instruction: got 'blue cube' .*expected words that the tokenizer knows"):
        bare = Tokenizer(WordLevel({"~": 0, "cube": 1}))
        bare.pre_tokenizer = Whitespace()
        TrunkTokenizer(bare.to_str(), prompt="{instruction}", length=8, padding=0)(["blue cube"])


def test_byte_fallback_accepts_any_text():
    said = "prends le café \N{SNOWMAN}, красный «кубик» e\u0301 \N{ROBOT FACE}!"
    for add_prefix_space in (False, True):
        tokenizer = letters(ByteLevel(add_prefix_space=add_prefix_space), alphabet=ByteLevel.alphabet())
        tokenizer.length = 200
        assert (tokenizer([said]) != 0).sum() > len(said)
    recorded = (RECORDED / "tokenizer.json").read_text()
    tokenizer = TrunkTokenizer(
        recorded, prompt="In: What action should the robot take to {instruction}?\nOut:", length=200, padding=2
    )
    assert (tokenizer([said]) != 2).sum() > len(said)


def test_accents_removed_by_a_normalizer_are_accepted():
    tokenizer = letters(WhitespaceSplit(), normalizer=Sequence([NFD(), StripAccents(), Lowercase()]))
    assert tokenizer(["prends le café"]).equal(tokenizer(["prends le cafe"]))
    assert tokenizer(["prends le cafe\u0301"]).equal(tokenizer(["prends le cafe"]))
    with pytest.raises(InputError, match="instruction: got '\u0301'"):
        tokenizer(["prends \u0301"])


def test_a_prompt_that_leaves_no_room_is_refused(text):
    for length in (3, 4):
        with pytest.raises(InputError, match=rf"architecture.text_length: got {length}, .*takes 4 .*more than 4.*=36"):
            tokenizer_of(text, length=length)
    assert tokenizer_of(text, length=5)(["take"]).shape == (1, 5)
