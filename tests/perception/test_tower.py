"""A tower: a picture becomes a fixed number of tokens, the first of which points."""

import pytest
import torch

from saccade.perception.film import FiLM
from saccade.perception.tower import Tower


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return Tower(
        image_size=32,
        stem_width=16,
        stem_blocks=1,
        points=2,
        width=16,
        blocks=1,
        heads=2,
        aggregation_tokens=3,
        condition=4,
        output=8,
    )


def test_only_the_aggregation_tokens_leave(tower):
    tokens, positions, logits = tower(torch.rand(2, 3, 32, 32), torch.randn(2, 4))
    assert tokens.shape == (2, 3, 8)
    assert positions.shape == (2, 2, 2)
    assert logits.shape == (2, 2, 4, 4)


def test_every_token_gathers_from_the_whole_picture(tower):
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    tokens = tower(picture, torch.zeros(1, 4))[0]
    for token in range(3):
        (gradient,) = torch.autograd.grad(tokens[0, token].sum(), picture, retain_graph=True)
        assert gradient.isfinite().all()
        for corner in (gradient[..., :8, :8], gradient[..., -8:, -8:]):
            assert corner.any()


def test_the_first_token_carries_what_the_pointing_found(tower):
    for parameter in tower.pointing.token.parameters():
        torch.nn.init.zeros_(parameter)
    picture, condition = torch.rand(1, 3, 32, 32), torch.zeros(1, 4)
    tower.blocks = torch.nn.ModuleList()
    without = tower(picture, condition)[0]
    torch.nn.init.normal_(tower.pointing.token.weight)
    moved = (tower(picture, condition)[0] - without).abs().amax(-1)[0]
    assert moved[0] > 0 and not moved[1:].any()


def test_the_instruction_steers_every_token(tower):
    picture, one, other = torch.rand(1, 3, 32, 32), torch.randn(1, 4), torch.randn(1, 4)
    assert tower(picture, one)[0].equal(tower(picture, other)[0])  # at first it listens to nothing
    for module in tower.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.project.weight, std=0.5)
    moved = (tower(picture, one)[0] - tower(picture, other)[0]).abs().amax(-1)
    assert (moved > 1e-3).all()


def test_pictures_of_a_batch_do_not_mix(tower):
    pictures, condition = torch.rand(3, 3, 32, 32), torch.randn(3, 4)
    alone = torch.cat([tower(pictures[i : i + 1], condition[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(tower(pictures, condition)[0], alone)
