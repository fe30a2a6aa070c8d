"""Options of the training loop: values out of range are refused; the learning rate follows its schedule."""

import math

import pytest

from saccade.errors import InputError
from saccade.training.configuration import LoopConfig


@pytest.mark.parametrize(
    "change",
    [
        *({name: 0} for name in ("steps", "batch_size", "stride", "save_every", "log_every")),
        *({name: -1} for name in ("warmup", "seed", "weight_decay", "grounding")),
        {"learning_rate": 0.0},
        {"learning_rate": 1.0},
        {"average": 1.0},
        {"gradient_clip": 0.0},
        *({name: math.nan} for name in ("learning_rate", "average", "weight_decay", "gradient_clip", "grounding")),
    ],
)
def test_values_out_of_range_are_refused(change):
    (name,) = change
    with pytest.raises(InputError, match=f"^{name}: got"):
        LoopConfig(**change)


def test_the_learning_rate_warms_up_and_falls_to_2_percent():
    config = LoopConfig(steps=100, warmup=10, learning_rate=0.5)
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5 * 0.51) and rates[100] == pytest.approx(0.01)


def test_without_a_warm_up_it_starts_at_the_peak():
    assert LoopConfig(steps=10, warmup=0, learning_rate=0.5).learning_rate_at(0) == 0.5
