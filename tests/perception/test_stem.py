"""The convolutional stem: a grid at a stride of eight pixels, moved by the instruction."""

import torch

from saccade.perception.stem import STRIDE, ConvolutionalStem


def seen_by(stem, picture, condition):
    return stem(picture, stem.modulations(condition))


def test_a_cell_of_the_grid_is_eight_pixels():
    stem = ConvolutionalStem(16, 4, blocks=1)
    assert seen_by(stem, torch.rand(2, 3, 32, 48), torch.randn(2, 4)).shape == (2, 32 // STRIDE, 48 // STRIDE, 16)


def test_a_thing_far_away_is_seen_at_its_own_place_only():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=1)
    empty, condition = torch.zeros(1, 3, 96, 96), torch.zeros(1, 4)
    with_thing = empty.clone()
    with_thing[..., 80:88, 80:88] = 1
    moved = (seen_by(stem, with_thing, condition) - seen_by(stem, empty, condition)).abs().amax(-1)[0]
    assert moved[10, 10] > 0
    assert not moved[:8, :8].any()


def test_the_instruction_moves_the_features_once_film_has_learned():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=2)
    picture, one, other = torch.rand(1, 3, 16, 16), torch.randn(1, 4), torch.randn(1, 4)
    assert seen_by(stem, picture, one).equal(seen_by(stem, picture, other))
    torch.nn.init.normal_(stem.blocks[0].film.project.weight)
    assert not seen_by(stem, picture, one).allclose(seen_by(stem, picture, other))
