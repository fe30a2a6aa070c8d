"""The token layout: the spans cover the sequence, and each mask is what its name says, cell by cell."""

import pytest
import torch

from saccade.errors import InputError
from saccade.kernels.block_sparse import interval_mask
from saccade.policy.network.layout import TokenLayout
from saccade.policy.network.sequence import MASKS

# Two visual tokens (v), two of text (t), the state (s), two slots (a): what each row sees.
DRAWN = {
    "coupled": """
        v . . . . . .
        v v . . . . .
        v v t . . . .
        v v t t . . .
        v v t t s . .
        v v t t s a a
        v v t t s a a
    """,
    "causal": """
        v . . . . . .
        v v . . . . .
        v v t . . . .
        v v t t . . .
        v v t t s . .
        v v t t s a .
        v v t t s a a
    """,
    "bidirectional_vision": """
        v v . . . . .
        v v . . . . .
        v v t . . . .
        v v t t . . .
        v v t t s . .
        v v t t s a a
        v v t t s a a
    """,
    "mutual": """
        v v t t . . .
        v v t t . . .
        v v t . . . .
        v v t t . . .
        v v t t s . .
        v v t t s a a
        v v t t s a a
    """,
    "full": """
        v v t t s a a
        v v t t s a a
        v v t t s a a
        v v t t s a a
        v v t t s a a
        v v t t s a a
        v v t t s a a
    """,
}


def mask_of(layout, text_valid):
    high, level = layout.levels(text_valid)
    return interval_mask(torch.zeros_like(high), high, level)


def drawn(mask, letters):
    return [" ".join(letter if cell else "." for letter, cell in zip(letters, row, strict=True)) for row in mask]


def rows(picture):
    return [line.strip() for line in picture.strip().splitlines()]


def test_every_mask_is_drawn():
    assert set(DRAWN) == set(MASKS)


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_cell_by_cell(mask):
    layout = TokenLayout(visual=2, text=2, slots=2, mask=mask)
    assert drawn(mask_of(layout, torch.ones(1, 2, dtype=torch.bool))[0].tolist(), "vvttsaa") == rows(DRAWN[mask])


@pytest.mark.parametrize("mask", MASKS)
def test_padding_is_masked_and_changes_nothing_else(mask):
    layout = TokenLayout(visual=2, text=3, slots=2, mask=mask)
    whole, padded = mask_of(layout, torch.tensor([[True, True, True], [True, False, False]]))
    last = slice(layout.span("text").start + 1, layout.span("text").stop)
    expected = whole.clone()
    expected[:, last] = False
    assert padded.equal(expected)


# The order of the published policies: a first token (b), vision, the state, the text, the slots.
ORDERED = {
    "coupled": """
        b . . . . . . .
        b v . . . . . .
        b v v . . . . .
        b v v s . . . .
        b v v s t . . .
        b v v s t t . .
        b v v s t t a a
        b v v s t t a a
    """,
    "mutual": """
        b . . . . . . .
        b v v s t t . .
        b v v s t t . .
        b v v s . . . .
        b v v s t . . .
        b v v s t t . .
        b v v s t t a a
        b v v s t t a a
    """,
}


@pytest.mark.parametrize("mask", ORDERED)
def test_a_mask_in_another_order(mask):
    layout = TokenLayout(visual=2, text=3, slots=2, order=("start", "visual", "state", "text", "slots"), mask=mask)
    assert drawn(mask_of(layout, torch.ones(1, 3, dtype=torch.bool))[0].tolist(), "bvvsttaa") == rows(ORDERED[mask])


@pytest.mark.parametrize(
    "order",
    [
        ("visual", "text", "state", "slots"),
        ("start", "visual", "state", "text", "slots"),
        ("start", "visual", "text", "slots"),
        ("visual", "state", "text", "slots"),
    ],
)
def test_spans_follow_one_another_and_cover_the_sequence(order):
    layout = TokenLayout(visual=6, text=4, slots=3, order=order)
    places = [place for name in order for place in range(layout.length)[layout.span(name)]]
    assert places == list(range(layout.length))
    assert layout.prefix == layout.length - 3
    parts = {name: torch.full((1, size, 1), ord(name[0])) for name, size in (("visual", 6), ("state", 1), ("slots", 3))}
    text = torch.arange(4.0)[None, :, None]
    sequence = layout.assemble(parts["visual"].float(), text, parts["state"].float(), parts["slots"].float())
    assert sequence.shape == (1, layout.length, 1)
    for name, part in parts.items():
        assert (sequence[:, layout.span(name)] == part[0, 0]).all()
    written = torch.cat([sequence[:, layout.span("start")], sequence[:, layout.span("text")]], dim=1)
    assert written.equal(text)
    valid = layout.valid(torch.tensor([[True, True, False, False]]))
    assert valid.sum() == layout.length - 2 and not valid[:, layout.span("text")][:, -2:].any()


def test_positions_follow_the_layout_or_count_tokens_without_padding():
    layout = TokenLayout(visual=2, text=3, slots=1)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert layout.positions(valid, counted=False).tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    counted = layout.positions(valid, counted=True)
    assert counted[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert counted[1, [0, 1, 2, 5, 6]].tolist() == [0, 1, 2, 3, 4]


def test_leading_text_is_cached():
    layout = TokenLayout(visual=2, text=3, slots=2, order=("text", "visual", "state", "slots"))
    assert (layout.cached_text_length, layout.length) == (3, 5)
    spans = {name: list(range(5)[layout.span(name)]) for name in ("text", "visual", "state", "slots")}
    assert spans == {"text": [], "visual": [0, 1], "state": [2], "slots": [3, 4]}
    parts = [torch.full((1, size, 1), float(size)) for size in (2, 3, 1, 2)]
    assert layout.assemble(*parts).flatten().tolist() == [2, 2, 1, 2, 2]
    assert drawn(mask_of(layout, torch.ones(1, 3, dtype=torch.bool))[0].tolist(), "tttvvsaa") == rows("""
        t . . . . . . .
        t t . . . . . .
        t t t . . . . .
        t t t v . . . .
        t t t v v . . .
        t t t v v s . .
        t t t v v s a a
        t t t v v s a a
    """)
    assert TokenLayout(visual=2, text=3, slots=2, order=layout.order, mask="full").cached_text_length == 0


def test_a_slot_may_be_read_where_a_language_model_predicts_it():
    layout = TokenLayout(visual=2, text=4, slots=3, order=("start", "visual", "state", "text", "slots"))
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    assert layout.preceding_indices(valid).tolist() == [[6, 7, 8], [4, 7, 8]]
    first = TokenLayout(visual=2, text=4, slots=2, order=("text", "visual", "state", "slots"))
    assert first.preceding_indices(valid).tolist() == [[2, 3], [2, 3]]


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_makes_no_difference_between_visual_tokens_that_stay_in_order(mask):
    layout = TokenLayout(visual=4, text=2, slots=2, mask=mask)
    whole = mask_of(layout, torch.tensor([[True, False]]))[0]
    rest = list(range(4, layout.length))
    first, others = [0, 1, *rest], [1, 3, *rest]
    assert whole[first][:, first].equal(whole[others][:, others])


def test_every_query_attends_to_a_token_with_any_padding():
    layout = TokenLayout(visual=1, text=3, slots=1)
    assert mask_of(layout, torch.zeros(1, 3, dtype=torch.bool)).any(-1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual": 0}, "TokenLayout.visual: got 0"),
        ({"text": 0}, "TokenLayout.text: got 0"),
        ({"slots": 0}, "TokenLayout.slots: got 0"),
        ({"mask": "copled"}, "mask: .*Did you mean 'coupled'"),
        ({"order": ("visual", "text", "sate", "slots")}, "sequence: .*Did you mean 'state'"),
        ({"order": ("visual", "slots", "text")}, "slots last"),
        ({"order": ("visual", "visual", "text", "slots")}, "once each"),
        ({"order": ("text", "visual", "start", "slots")}, "start before text"),
        ({"order": ()}, "sequence: got nothing"),
    ],
)
def test_invalid_layout_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        TokenLayout(**{"visual": 1, "text": 2, "slots": 1} | change)
