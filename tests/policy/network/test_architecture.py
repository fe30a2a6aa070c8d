"""The shape of a policy: numbers that do not fit together never become a network."""

import pytest

from saccade.errors import InputError
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.presets import PRESETS, find_preset, with_changes


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
        ({"router": "orignal"}, "architecture.router: .*Did you mean 'original'"),
        ({"mask": "causl"}, "architecture.mask: .*Did you mean 'causal'"),
        ({"sequence": ("visual", "text")}, "sequence: got visual text"),
        ({"sequence": ("visual", "text", "slots")}, "architecture.sequence: got visual text slots, expected state"),
        ({"router": "original", "sequence": ("text", "visual", "state", "slots")}, "architecture.router: got original"),
        ({"read_shifted": True}, "architecture.read_shifted"),
        ({"read_shifted": True, "sequence": ("text", "visual", "state", "slots")}, "architecture.read_shifted"),
        ({"rotary_base": float("inf")}, "architecture.rotary_base: got inf"),
        ({"trunk_head_size": 33}, "architecture.trunk_head_size: got 33, expected an even number"),
        ({"prune_per_view": 1}, "architecture.prune_per_view: got 1, expected true or false"),
        ({"trunk_key_value_heads": 3}, "architecture.trunk_key_value_heads: got 3, expected a divisor"),
        ({"instruction_features": "mean", "condition_width": 64}, "architecture.condition_width: got 64"),
        ({"aggregation_tokens": 0}, "architecture.aggregation_tokens: got 0"),
        ({"vocabulary": 100}, "architecture.vocabulary: got 100"),
        ({"tokenizer": "trunk", "vocabulary": 100}, "architecture.padding: got 256"),
        ({"prompt": "Do it."}, "architecture.prompt"),
        ({"readout": "mergevla", "expert_width": 64}, "architecture.expert_width: got 64"),
        ({"towers": (1,)}, "architecture.towers"),
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


def test_changes_are_written_as_fields_and_values():
    shape = with_changes(PRESETS["tiny"], ["router=original", "prune_from=2", "prune_per_view=false", "keep_floor=0.5"])
    assert (shape.router, shape.prune_from, shape.prune_per_view, shape.keep_floor) == ("original", 2, False, 0.5)
    order = with_changes(PRESETS["tiny"], ["sequence=text,visual,state,slots"]).sequence
    assert order == ("text", "visual", "state", "slots")
    assert with_changes(shape, []) == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("router", "change: got router, expected FIELD=VALUE"),
        ("roter=original", "architecture field: .*Did you mean 'router'"),
        ("prune_from=two", "architecture.prune_from: got two, expected a whole number"),
        ("prune_per_view=yes", "architecture.prune_per_view: got yes, expected true or false"),
    ],
)
def test_invalid_change_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        with_changes(PRESETS["tiny"], [change])
