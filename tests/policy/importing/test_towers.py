"""The tower configuration of a released folder: read, or refused with the name of the field."""

import json

import pytest

from saccade.errors import InputError
from saccade.policy.importing.released import ReleasedCheckpoint
from saccade.policy.importing.towers import image_size, released_colour_normalization, tower_names

NAMES = {"timm_model_ids": ["one", "other"]}
GOOD = {"mean": [0.0, 0.5, 0.5], "std": [1, 0.5, 0.5]}


def colours(folder, document):
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return released_colour_normalization(ReleasedCheckpoint(folder))


@pytest.mark.parametrize("layers", [{}, {"timm_override_act_layers": None}, {"timm_override_act_layers": [None, None]}])
def test_tower_names_are_read(layers):
    assert tower_names(NAMES | layers) == ("one", "other")


@pytest.mark.parametrize("layers", [3, "gelu", {"a": 1}, [None, "gelu"]])
def test_other_activations_are_refused(layers):
    with pytest.raises(InputError, match="config.json: timm_override_act_layers: got"):
        tower_names(NAMES | {"timm_override_act_layers": layers})


@pytest.mark.parametrize("sizes", [3, [224, 384], ["224", "224"], [True, True], [0, 0], []])
def test_invalid_image_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="config.json: image_sizes: got"):
        image_size({"image_sizes": sizes})


def test_colour_normalisation_is_read_and_a_mean_may_be_zero(tmp_path):
    expected = [(GOOD["mean"], GOOD["std"])] * 2
    assert colours(tmp_path, {"tvf_normalize_params": [GOOD, GOOD], "means": 3}) == expected
    assert colours(tmp_path, {"means": [GOOD["mean"]] * 2, "stds": [GOOD["std"]] * 2}) == expected


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"means": 3, "stds": 3},
        {"means": [3, 3], "stds": [3, 3]},
        {"tvf_normalize_params": 3},
        {"tvf_normalize_params": [3, 3]},
        {"tvf_normalize_params": [GOOD]},
        *(
            {"tvf_normalize_params": [GOOD, GOOD | change]}
            for change in (
                {"mean": "123"},
                {"mean": ["1", "2", "3"]},
                {"mean": [0.5, 0.5]},
                {"mean": [0.5, 0.5, float("nan")]},
                {"std": [0.5, 0.5, float("inf")]},
                {"std": [0.5, 0.0, 0.5]},
                {"std": [0.5, -0.5, 0.5]},
                {"std": None},
            )
        ),
    ],
    ids=str,
)
def test_invalid_colour_normalisation_is_refused(tmp_path, document):
    with pytest.raises(InputError, match="preprocessor_config.json: tvf_normalize_params: got"):
        colours(tmp_path, document)
