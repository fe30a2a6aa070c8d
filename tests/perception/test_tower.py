"""A tower: an image becomes a fixed number of tokens, the first of which points."""

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


def run(tower, images, condition):
    """Run a tower on images in 0 to 1 under a condition."""
    return tower(255 * images, tower.modulations(condition))


def test_tower_output_holds_only_aggregation_tokens(tower):
    seen = run(tower, torch.rand(2, 3, 32, 32), torch.randn(2, 4))
    assert seen.tokens.shape == (2, tower.tokens, 8) == (2, 3, 8)
    assert seen.positions.shape == (2, 2, 2)
    assert seen.logits.shape == (2, 2, 4, 4)


def test_every_token_attends_to_the_whole_image(tower):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    tokens = run(tower, image, torch.zeros(1, 4)).tokens
    for token in range(3):
        (gradient,) = torch.autograd.grad(tokens[0, token].sum(), image, retain_graph=True)
        assert gradient.isfinite().all()
        for corner in (gradient[..., :8, :8], gradient[..., -8:, -8:]):
            assert corner.any()


def test_first_token_carries_the_pointing_output(tower):
    for parameter in tower.pointing.token.parameters():
        torch.nn.init.zeros_(parameter)
    image, condition = torch.rand(1, 3, 32, 32), torch.zeros(1, 4)
    # A block that adds nothing, so that tokens do not mix.
    for layer in (tower.blocks[0].output, tower.blocks[0].contract):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    without = run(tower, image, condition).tokens
    torch.nn.init.normal_(tower.pointing.token.weight)
    moved = (run(tower, image, condition).tokens - without).abs().amax(-1)[0]
    assert moved[0] > 0 and not moved[1:].any()


def test_the_instruction_steers_every_token(tower):
    image, one, other = torch.rand(1, 3, 32, 32), torch.randn(1, 4), torch.randn(1, 4)
    assert run(tower, image, one).tokens.equal(run(tower, image, other).tokens)  # at first it listens to nothing
    for module in tower.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.project.weight, std=0.5)
    moved = (run(tower, image, one).tokens - run(tower, image, other).tokens).abs().amax(-1)
    assert (moved > 1e-3).all()


def test_images_of_a_batch_are_independent(tower):
    images, condition = torch.rand(3, 3, 32, 32), torch.randn(3, 4)
    alone = torch.cat([run(tower, images[i : i + 1], condition[i : i + 1]).tokens for i in range(3)])
    torch.testing.assert_close(run(tower, images, condition).tokens, alone)
