"""The token layout: the spans cover the sequence, and the coupled mask is what the design draws."""

import pytest
import torch

from saccade.errors import InputError
from saccade.kernels.block_sparse import interval_mask
from saccade.policy.layout import TokenLayout


def drawn(layout, text_valid):
    """The coupled mask [B, S, S] as rows of text, `x` where the row sees the column."""
    high, level = layout.coupled_levels(text_valid)
    mask = interval_mask(torch.zeros_like(high), high, level)
    return ["\n".join("".join("x" if cell else "." for cell in row) for row in each) for each in mask.tolist()]


def test_spans_follow_one_another_and_cover_the_sequence():
    layout = TokenLayout(visual=6, text=4, slots=3)
    assert (layout.length, layout.prefix, layout.state_place) == (14, 11, 10)
    places = list(range(layout.length))
    spans = places[: layout.visual], places[layout.text_span], [layout.state_place], places[layout.slot_span]
    assert [place for span in spans for place in span] == places
    assert list(map(len, spans)) == [6, 4, 1, 3]


def test_the_coupled_mask_cell_by_cell():
    layout = TokenLayout(visual=2, text=3, slots=2)
    whole, padded = drawn(layout, torch.tensor([[True, True, True], [True, False, False]]))
    # Two visual tokens, three of text, the state, two slots. Causal, but slots see each other.
    assert whole.split() == [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xxxxx...",
        "xxxxxx..",
        "xxxxxxxx",
        "xxxxxxxx",
    ]
    # The last two of the text are padding: nobody sees them, and they see what stands before them.
    assert padded.split() == [
        "x.......",
        "xx......",
        "xxx.....",
        "xxx.....",
        "xxx.....",
        "xxx..x..",
        "xxx..xxx",
        "xxx..xxx",
    ]


def test_gathered_tokens_keep_who_they_see():
    layout = TokenLayout(visual=4, text=2, slots=2)
    high, level = layout.coupled_levels(torch.tensor([[True, False]]))
    whole = interval_mask(torch.zeros_like(high), high, level)[0]
    places = torch.tensor([1, 3, 4, 5, 6, 7, 8])
    pruned = interval_mask(torch.zeros_like(high[places]), high[places], level[0, places])
    assert pruned.equal(whole[places][:, places])


def test_every_query_sees_something_whatever_is_padded():
    layout = TokenLayout(visual=1, text=3, slots=1)
    high, level = layout.coupled_levels(torch.zeros(1, 3, dtype=torch.bool))
    assert interval_mask(torch.zeros_like(high), high, level).any(-1).all()


@pytest.mark.parametrize("field", ["visual", "text", "slots"])
def test_an_empty_span_is_refused(field):
    with pytest.raises(InputError, match=f"TokenLayout.{field}: got 0"):
        TokenLayout(**{"visual": 1, "text": 1, "slots": 1, field: 0})
