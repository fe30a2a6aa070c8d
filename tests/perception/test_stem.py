"""The convolutional stem: a grid at a stride of eight pixels, moved by the instruction."""

import torch

from saccade.perception.stem import STRIDE, ConvolutionalStem


def test_a_cell_of_the_grid_is_eight_pixels():
    stem = ConvolutionalStem(16, 4, blocks=1)
    assert stem(torch.rand(2, 3, 32, 48), torch.randn(2, 4)).shape == (2, 32 // STRIDE, 48 // STRIDE, 16)


def test_a_thing_far_away_is_seen_at_its_own_place_only():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=1)
    empty, condition = torch.zeros(1, 3, 96, 96), torch.zeros(1, 4)
    with_thing = empty.clone()
    with_thing[..., 80:88, 80:88] = 1
    moved = (stem(with_thing, condition) - stem(empty, condition)).abs().amax(-1)[0]
    assert moved[10, 10] > 0
    assert not moved[:8, :8].any()


def test_the_instruction_moves_the_features_once_film_has_learned():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=2)
    picture, one, other = torch.rand(1, 3, 16, 16), torch.randn(1, 4), torch.randn(1, 4)
    assert stem(picture, one).equal(stem(picture, other))
    torch.nn.init.normal_(stem.blocks[0].film.project.weight)
    assert not stem(picture, one).allclose(stem(picture, other))
