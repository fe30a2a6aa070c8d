"""FiLM: the identity at first, then a scale and a shift for each feature."""

import pytest
import torch

from saccade.perception.film import FiLM, modulate


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_it_starts_as_the_identity_for_features_of_any_rank(shape):
    features = torch.randn(shape)
    assert modulate(features, FiLM(4, 6)(torch.randn(2, 4))).equal(features)


def test_it_scales_and_shifts_every_feature_by_its_own_condition():
    film = FiLM(3, 2)
    with torch.no_grad():
        film.project.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]))
        film.project.bias.copy_(torch.tensor([0.0, 0, 0, 7]))
    features, condition = torch.randn(2, 5, 2), torch.randn(2, 3)
    scale, shift = condition[:, :2], torch.stack([condition[:, 2], torch.full((2,), 7.0)], dim=1)
    torch.testing.assert_close(modulate(features, film(condition)), features * (1 + scale[:, None]) + shift[:, None])


def test_it_learns_from_its_first_step():
    film = FiLM(4, 6)
    modulate(torch.randn(2, 5, 6), film(torch.randn(2, 4))).square().sum().backward()
    assert film.project.weight.grad.any() and film.project.bias.grad.any()
