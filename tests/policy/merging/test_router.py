"""The router on features with known labels: it selects the skill, is calibrated, and abstains."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.merging.profile import SkillProfile
from saccade.policy.merging.router import Router

NAMES = ("drawer", "cube", "pour")
WIDTH = 8


def observations(centre, count, seed, spread=1.0):
    """Return normal features [count, d] with a ten times larger deviation in the first direction."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.ones(WIDTH) * spread
    scale[0] = 10 * spread
    return torch.as_tensor(centre) + scale * torch.randn(count, WIDTH, generator=generator)


def centre(number, instruction=0, apart=12.0):
    point = torch.zeros(WIDTH)
    point[1 + number] = apart
    point[5 + instruction] = apart / 2
    return point


def profile(number, instructions=2, per_instruction=40, apart=12.0):
    features = [observations(centre(number, each, apart), per_instruction, 10 * number + each)
                for each in range(instructions)]  # fmt: skip
    said = [each for each in range(instructions) for _ in range(per_instruction)]
    return SkillProfile.from_features(torch.cat(features), said, [place // 2 for place in range(len(said))])


@pytest.fixture(scope="module")
def router():
    return Router.fit([profile(number) for number in range(3)])


def test_new_observations_are_routed_to_their_skill_with_a_margin(router):
    for number in range(3):
        for feature in observations(centre(number, 1), 50, 99 + number):
            route = router.route(feature, NAMES)
            assert route.skill == number and route.margin > 0.5 and route.reason == ""
            assert sum(route.probabilities) == pytest.approx(1)


def test_a_direction_with_large_variance_does_not_change_the_skill(router):
    feature = centre(0)
    feature[0] = 25.0
    assert router.route(feature, NAMES).skill == 0


def test_it_abstains_far_from_all_demonstrations(router):
    stranger = centre(0)
    stranger[7] = 30.0
    for feature in (stranger, torch.full((WIDTH,), float("nan"))):
        route = router.route(feature, NAMES)
        assert route.skill is None and "nothing like it was demonstrated" in route.reason


def test_it_abstains_between_two_skills():
    narrow = Router.fit([profile(number, apart=5.0) for number in range(3)], reach=10.0, margin=0.9)
    route = narrow.route((centre(0, 0, 5.0) + centre(1, 0, 5.0)) / 2, NAMES)
    assert route.skill is None and route.margin < 0.9
    assert "it could be drawer or cube" in route.reason or "it could be cube or drawer" in route.reason
    bold = Router.fit([profile(number, apart=5.0) for number in range(3)], reach=10.0, margin=0.0)
    assert bold.route((centre(0, 0, 5.0) + centre(1, 0, 5.0)) / 2, NAMES).skill in (0, 1)


def test_probabilities_are_calibrated_where_skills_overlap():
    """Of observations with a probability of 70 to 90 % for a skill, about that fraction belongs to it."""
    router = Router.fit([profile(number, per_instruction=400, apart=1.6) for number in range(2)], reach=100.0)
    features = [observations(centre(number, 0, 1.6), 3000, 7 + number) for number in range(2)]
    probabilities = router.probabilities(torch.cat(features))
    best, selected = probabilities.max(1)
    correct = torch.arange(2).repeat_interleave(3000) == selected
    chosen = (best > 0.7) & (best < 0.9)
    assert chosen.sum() > 300
    assert float(correct[chosen].float().mean()) == pytest.approx(float(best[chosen].mean()), abs=0.08)


def test_a_router_is_read_from_a_checkpoint(router):
    again = Router.read(router.tensors(), router.settings(), "here")
    feature = observations(centre(1), 1, 5)[0]
    assert again.route(feature, NAMES) == router.route(feature, NAMES)
    with pytest.raises(InputError, match=r"here: router: got no router\.usual"):
        less = {name: tensor for name, tensor in router.tensors().items() if "usual" not in name}
        Router.read(less, router.settings(), "here")


def test_profiles_of_different_widths_are_refused():
    other = SkillProfile(torch.zeros(1, 3), torch.ones(1), torch.eye(3), torch.zeros(2, 3))
    with pytest.raises(InputError, match="router: got features of 3, 8"):
        Router.fit([profile(0), other])


class TestProfiles:
    def test_held_out_demonstrations_are_not_in_the_means(self):
        features = torch.zeros(12, WIDTH)
        features[2:4] = 100.0  # the second demonstration
        made = SkillProfile.from_features(features, [0] * 12, [place // 2 for place in range(12)])
        assert (made.means == 0).all() and (made.scatter == 0).all()
        assert made.held_out.shape == (2, WIDTH) and (made.held_out == 100).all()

    def test_with_one_demonstration_each_all_of_them_calibrate(self):
        made = SkillProfile.from_features(torch.randn(3, WIDTH), [0, 1, 2], [0, 1, 2])
        assert len(made.means) == 3 and len(made.held_out) == 3

    @pytest.mark.parametrize("name", ["means", "scatter", "held_out", "counts"])
    def test_an_incomplete_profile_is_refused(self, name):
        tensors = profile(0).tensors()
        with pytest.raises(InputError, match=f"skill x: got no routing.{name}"):
            SkillProfile.read({key: tensor for key, tensor in tensors.items() if not key.endswith(name)}, "x")

    def test_values_that_are_not_finite_are_refused(self):
        tensors = profile(0).tensors()
        tensors["routing.means"][0, 0] = float("inf")
        with pytest.raises(InputError, match="not finite"):
            SkillProfile.read(tensors, "x")
