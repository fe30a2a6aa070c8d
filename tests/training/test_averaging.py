"""The averaged weights: compared with a calculation by hand, and turned off."""

import pytest
import torch

from saccade.training.averaging import WeightAverage


def network(value):
    module = torch.nn.Linear(1, 1, bias=False)
    module.register_buffer("count", torch.tensor(0))
    torch.nn.init.constant_(module.weight, value)
    return module


def test_the_decay_is_lower_in_the_first_steps():
    model = network(0.0)
    average, expected = WeightAverage(model, decay=0.25), 0.0
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 0.25)):
        torch.nn.init.constant_(model.weight, float(step))
        model.count += 1
        average.update()
        expected = decay * expected + (1 - decay) * step
        assert average.tensors()["weight"].item() == pytest.approx(expected)
        assert average.tensors()["count"] == step
    assert model.weight.item() == 3.0


def test_a_decay_of_zero_gives_the_current_weights():
    model = network(1.0)
    average = WeightAverage(model, decay=0.0)
    torch.nn.init.constant_(model.weight, 5.0)
    average.update()
    assert average.tensors()["weight"].item() == 5.0


def test_frozen_weights_are_not_averaged():
    model = torch.nn.Sequential(network(1.0), network(2.0))
    model[0].requires_grad_(False)
    average = WeightAverage(model, decay=0.0)
    assert list(average.average) == ["1.weight"]
    torch.nn.init.constant_(model[1].weight, 3.0)
    average.update()
    tensors = average.tensors()
    assert list(tensors) == list(model.state_dict())
    assert (tensors["0.weight"].item(), tensors["1.weight"].item()) == (1.0, 3.0)
