"""The shape of a policy: numbers that do not fit together never become a network."""

import pytest

from saccade.errors import InputError
from saccade.policy.architecture import PRESETS, Architecture, find_preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trunk_layers": 0}, "architecture.trunk_layers: got 0"),
        ({"trunk_layers": 2.5}, "architecture.trunk_layers: got 2.5, expected a whole number"),
        ({"trunk_layers": "4"}, "architecture.trunk_layers: got 4, expected a whole number"),
        ({"prune_from": -1}, "architecture.prune_from"),
        ({"prune_from": 5}, "architecture: pruning"),
        ({"keep_floor": 0.0}, "architecture.keep_floor"),
        ({"keep_floor": 1.5}, "architecture: pruning"),
        ({"keep_floor": float("nan")}, "architecture.keep_floor"),
        ({"trunk_width": 130}, "architecture.trunk_width: got 130 with 4 heads"),
        ({"stem_width": 24}, "architecture.stem_width"),
        ({"points": 1}, "architecture.points"),
        ({"expert_blocks": 5}, "architecture.expert_blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Architecture(**change)


def test_pruning_may_be_off_or_on_from_the_start():
    assert Architecture(prune_from=0).prune_from == 0
    assert Architecture(prune_from=4, keep_floor=1).keep_floor == 1


def test_an_unknown_preset_is_refused_with_the_nearest():
    assert find_preset("tiny") is PRESETS["tiny"]
    with pytest.raises(InputError, match="Did you mean 'tiny'?"):
        find_preset("tinny")
