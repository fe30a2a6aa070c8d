"""The convolutional stem: a grid at a stride of eight pixels, moved by the instruction."""

import torch

from saccade.perception.stem import STRIDE, ConvolutionalStem


def run(stem, image, condition):
    return stem(image, stem.modulations(condition))


def test_grid_stride_is_eight_pixels():
    stem = ConvolutionalStem(16, 4, blocks=1)
    assert run(stem, torch.rand(2, 3, 32, 48), torch.randn(2, 4)).shape == (2, 32 // STRIDE, 48 // STRIDE, 16)


def test_receptive_field_is_local():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=1)
    empty, condition = torch.zeros(1, 3, 96, 96), torch.zeros(1, 4)
    with_thing = empty.clone()
    with_thing[..., 80:88, 80:88] = 1
    moved = (run(stem, with_thing, condition) - run(stem, empty, condition)).abs().amax(-1)[0]
    assert moved[10, 10] > 0
    assert not moved[:8, :8].any()


def test_instruction_changes_features_after_film_is_trained():
    torch.manual_seed(0)
    stem = ConvolutionalStem(16, 4, blocks=2)
    image, one, other = torch.rand(1, 3, 16, 16), torch.randn(1, 4), torch.randn(1, 4)
    assert run(stem, image, one).equal(run(stem, image, other))
    torch.nn.init.normal_(stem.blocks[0].film.project.weight)
    assert not run(stem, image, one).allclose(run(stem, image, other))
