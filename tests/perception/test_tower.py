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
        condition_width=4,
        output_width=8,
    )


def seen_by(tower, pictures, condition):
    """What a tower sees in pictures of 0 to 1 under a condition."""
    return tower(255 * pictures, tower.modulations(condition))


def test_only_the_aggregation_tokens_leave(tower):
    seen = seen_by(tower, torch.rand(2, 3, 32, 32), torch.randn(2, 4))
    assert seen.tokens.shape == (2, tower.tokens, 8) == (2, 3, 8)
    assert seen.positions.shape == (2, 2, 2)
    assert seen.logits.shape == (2, 2, 4, 4)


def test_every_token_gathers_from_the_whole_picture(tower):
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    tokens = seen_by(tower, picture, torch.zeros(1, 4)).tokens
    for token in range(3):
        (gradient,) = torch.autograd.grad(tokens[0, token].sum(), picture, retain_graph=True)
        assert gradient.isfinite().all()
        for corner in (gradient[..., :8, :8], gradient[..., -8:, -8:]):
            assert corner.any()


def test_the_first_token_carries_what_the_pointing_found(tower):
    for parameter in tower.pointing.token.parameters():
        torch.nn.init.zeros_(parameter)
    picture, condition = torch.rand(1, 3, 32, 32), torch.zeros(1, 4)
    # A block that adds nothing, so that tokens do not mix.
    for layer in (tower.blocks[0].output, tower.blocks[0].contract):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    without = seen_by(tower, picture, condition).tokens
    torch.nn.init.normal_(tower.pointing.token.weight)
    moved = (seen_by(tower, picture, condition).tokens - without).abs().amax(-1)[0]
    assert moved[0] > 0 and not moved[1:].any()


def test_the_instruction_steers_every_token(tower):
    picture, one, other = torch.rand(1, 3, 32, 32), torch.randn(1, 4), torch.randn(1, 4)
    assert seen_by(tower, picture, one).tokens.equal(
        seen_by(tower, picture, other).tokens
    )  # at first it listens to nothing
    for module in tower.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.project.weight, std=0.5)
    moved = (seen_by(tower, picture, one).tokens - seen_by(tower, picture, other).tokens).abs().amax(-1)
    assert (moved > 1e-3).all()


def test_pictures_of_a_batch_do_not_mix(tower):
    pictures, condition = torch.rand(3, 3, 32, 32), torch.randn(3, 4)
    alone = torch.cat([seen_by(tower, pictures[i : i + 1], condition[i : i + 1]).tokens for i in range(3)])
    torch.testing.assert_close(seen_by(tower, pictures, condition).tokens, alone)
