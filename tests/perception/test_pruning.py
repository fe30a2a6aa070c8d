"""Pruning: how many tokens stay, which, and what the instruction has to do with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.perception.pruning import PruningRouter, keep_schedule, select_top_tokens


def test_the_schedule_of_the_tiny_preset():
    assert keep_schedule(9, 4, first=1, floor=0.4) == (9, 6, 3, 3)


def test_pruning_from_the_last_layer_prunes_nothing():
    assert keep_schedule(9, 4, first=4, floor=0.1) == (9, 9, 9, 9)


@given(st.integers(1, 64), st.integers(1, 12), st.data(), st.floats(0.01, 1.0))
def test_the_schedule_falls_from_all_to_its_floor(tokens, layers, data, floor):
    first = data.draw(st.integers(0, layers))
    kept = keep_schedule(tokens, layers, first=first, floor=floor)
    assert len(kept) == layers
    assert kept[:first] == (tokens,) * first
    assert list(kept) == sorted(kept, reverse=True)
    assert all(max(1, int(tokens * floor)) <= count <= tokens for count in kept)


@pytest.mark.parametrize(
    ("first", "floor", "message"),
    [(5, 0.5, "prune_from: got 5"), (-1, 0.5, "prune_from"), (1, 0.0, "keep_floor"), (1, 1.1, "keep_floor")],
)
def test_a_schedule_out_of_range_is_refused(first, floor, message):
    with pytest.raises(InputError, match=message):
        keep_schedule(9, 4, first=first, floor=floor)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.data())
def test_every_view_keeps_its_best_tokens_in_their_order(batch, views, per_view, data):
    keep = data.draw(st.integers(1, per_view))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = torch.randn(batch, views * per_view, generator=generator)
    places = select_top_tokens(scores, views, keep)
    assert places.shape == (batch, views * keep)
    assert (places.diff(dim=1) > 0).all()
    for row in range(batch):
        for view in range(views):
            inside = places[row, view * keep : (view + 1) * keep] - view * per_view
            assert inside.min() >= 0 and inside.max() < per_view
            here = scores[row, view * per_view : (view + 1) * per_view]
            assert sorted(here[inside].tolist()) == sorted(here.tolist())[-keep:]


def test_low_scoring_view_keeps_its_share_of_tokens():
    scores = torch.tensor([[9.0, 8, 7, 0.3, 0.1, 0.2]])
    assert select_top_tokens(scores, groups=2, keep=2).tolist() == [[0, 1, 3, 5]]


def test_scores_change_with_the_instruction_once_it_has_learned():
    torch.manual_seed(0)
    router = PruningRouter(8, 4)
    tokens, one, other = torch.randn(1, 6, 8), torch.randn(1, 4), torch.randn(1, 4)
    assert router(tokens, router.direction(one)).shape == (1, 6)
    assert router(tokens, router.direction(one)).equal(router(tokens, router.direction(other)))
    torch.nn.init.normal_(router.scale.weight, std=3.0)
    assert not router(tokens, router.direction(one)).argsort().equal(router(tokens, router.direction(other)).argsort())


def test_scores_do_not_depend_on_how_long_a_token_is():
    torch.manual_seed(0)
    router, tokens, condition = PruningRouter(8, 4), torch.randn(1, 6, 8), torch.randn(1, 4)
    torch.testing.assert_close(
        router(100 * tokens, router.direction(condition)),
        router(tokens, router.direction(condition)),
        rtol=1e-4,
        atol=1e-5,
    )
