"""Instructions: bytes that are never cut, and a vector that knows word order and ignores padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.policy.network.instruction import (
    PADDING,
    START,
    VOCABULARY,
    ByteTokenizer,
    InstructionEncoder,
    MeanInstructionEncoder,
)


def test_instruction_is_encoded_as_bytes_between_start_and_padding():
    tokens = ByteTokenizer(8)(["Pick  it", "é"])
    assert tokens.tolist() == [
        [START, *b"pick it"],
        [START, *"é".encode(), *[PADDING] * 5],
    ]


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_instructions_in_any_script_are_not_truncated(text):
    said = " ".join(text.lower().split()).encode("utf-8", "surrogatepass")
    if not said:
        return
    tokens = ByteTokenizer(len(said) + 1)([text])[0].tolist()
    assert tokens == [START, *said]
    assert max(tokens) < VOCABULARY
    with pytest.raises(InputError, match=f"{len(said)} bytes"):
        ByteTokenizer(len(said))([text])


@pytest.mark.parametrize("instruction", ["", "   ", "\n"])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(InputError, match="instruction: got 0 bytes"):
        ByteTokenizer(8)([instruction])


def test_lone_surrogate_is_encoded():
    assert ByteTokenizer(8)(["\udcff"])[0, 1:4].tolist() == list(b"\xed\xb3\xbf")


@pytest.fixture
def vector_of():
    """Return a function from sentences and a length to their vectors."""
    torch.manual_seed(0)
    embedding, encoder = torch.nn.Embedding(VOCABULARY, 8), InstructionEncoder(8, 16)

    def vector(sentences, length=48, poison=False):
        tokens = ByteTokenizer(length)(sentences)
        valid = tokens != PADDING
        embedded = embedding(tokens)
        if poison:
            embedded = embedded.masked_fill(~valid[..., None], 1e4)
        return encoder(embedded, valid)

    return vector


def test_vector_depends_on_word_order(vector_of):
    one, other = vector_of(["the cup left of the bowl", "the bowl left of the cup"])
    assert (one - other).abs().max() > 1e-3


def test_the_vector_ignores_padding(vector_of):
    sentence = ["put the cube in the bin"]
    expected = vector_of(sentence, 24)
    torch.testing.assert_close(vector_of(sentence, 48), expected)
    torch.testing.assert_close(vector_of(sentence, 48, poison=True), expected)


def test_instructions_of_a_batch_are_independent(vector_of):
    sentences = ["a", "put the cube in the bin"]
    torch.testing.assert_close(vector_of(sentences), torch.cat([vector_of([each]) for each in sentences]))


def test_original_mean_pooling_ignores_word_order():
    torch.manual_seed(0)
    embedded = torch.randn(1, 4, 6)
    valid = torch.tensor([[True, True, True, False]])
    mean = MeanInstructionEncoder(padded=False)
    torch.testing.assert_close(mean(embedded, valid), embedded[:, :3].mean(1))
    torch.testing.assert_close(mean(embedded[:, [2, 0, 1, 3]], valid), mean(embedded, valid))
    torch.testing.assert_close(MeanInstructionEncoder(padded=True)(embedded, valid), embedded.mean(1))
