"""Every merging operator against results in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.merging.masks import consensus, least_squares_scale, pack_bits, task_mask, unpack_bits
from saccade.policy.merging.operators.arithmetic import drop_and_rescale, task_arithmetic
from saccade.policy.merging.operators.emr import rescaler, sign_agreement, unify
from saccade.policy.merging.operators.spectral import iso_c, iso_cts, knots, task_singular_vectors
from saccade.policy.merging.operators.task_vector import TaskVector, sum_vectors
from saccade.policy.merging.operators.ties import ties, trim_threshold
from saccade.policy.merging.operators.wudi import wudi

ROWS, COLUMNS, RANK = 12, 20, 3


def vectors(count: int, seed: int = 0) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TaskVector(torch.randn(ROWS, RANK, generator=generator), torch.randn(RANK, COLUMNS, generator=generator))
        for _ in range(count)
    ]


def dense(count: int, seed: int = 0, shape: tuple[int, ...] = (200, 300)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def orthogonal_vectors() -> list[TaskVector]:
    """Return two task vectors with orthogonal input and output directions."""
    rows, columns = torch.eye(ROWS), torch.eye(COLUMNS)
    return [
        TaskVector(rows[:, :2] * torch.tensor([3.0, 2.0]), columns[:2]),
        TaskVector(rows[:, 2:4] * torch.tensor([5.0, 1.0]), columns[2:4]),
    ]


class TestTaskVectors:
    def test_singular_vectors_are_those_of_the_dense_change(self):
        vector = vectors(1)[0]
        left, values, right = vector.svd()
        torch.testing.assert_close(left * values @ right, vector.dense(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values, torch.linalg.svdvals(vector.dense())[:RANK], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
    def test_a_change_of_a_whole_weight_is_kept_exactly(self, shape):
        delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(TaskVector.from_delta(delta).dense(), delta)
        left, values, right = TaskVector.from_delta(delta).svd()
        torch.testing.assert_close(left * values @ right, delta, rtol=1e-4, atol=1e-5)

    def test_inner_products_and_sums_need_nothing_dense(self):
        one, other = vectors(2)
        torch.testing.assert_close(one.inner_product(other), (one.dense() * other.dense()).sum())
        torch.testing.assert_close(sum_vectors([one, other]).dense(), one.dense() + other.dense())

    def test_factors_that_do_not_fit_and_numbers_that_are_none_are_refused(self):
        with pytest.raises(InputError, match=r"\(3, 2\) and \(3, 4\)"):
            TaskVector(torch.zeros(3, 2), torch.zeros(3, 4))
        with pytest.raises(InputError, match="not finite"):
            TaskVector(torch.zeros(3, 2), torch.full((2, 4), float("nan")))
        with pytest.raises(InputError, match="all of one shape"):
            sum_vectors([vectors(1)[0], TaskVector(torch.zeros(3, 2), torch.zeros(2, 4))])


OPERATORS = {
    "tsv": task_singular_vectors,
    "knots": knots,
    "wudi": wudi,
    "sum": lambda skills: task_arithmetic([each.dense() for each in skills]),
    "ties": lambda skills: ties([each.dense() for each in skills]),
}


class TestAllOperators:
    @pytest.mark.parametrize("name", OPERATORS)
    def test_one_skill_merges_into_itself(self, name):
        vector = vectors(1)[0]
        torch.testing.assert_close(OPERATORS[name]([vector]), vector.dense(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", OPERATORS)
    def test_skills_that_share_no_direction_do_not_disturb_each_other(self, name):
        skills = orthogonal_vectors()
        torch.testing.assert_close(OPERATORS[name](skills), sum_vectors(skills).dense(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", [*OPERATORS, "iso_c", "iso_cts"])
    def test_the_order_of_skills_does_not_matter(self, name):
        operator = {**OPERATORS, "iso_c": iso_c, "iso_cts": iso_cts}[name]
        skills = vectors(3)
        torch.testing.assert_close(operator(skills), operator(skills[::-1]), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("operator", [task_singular_vectors, knots, wudi, iso_c, iso_cts])
    def test_how_a_change_was_factored_does_not_matter(self, operator):
        skills = vectors(3)
        turn = torch.linalg.qr(torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(9)))[0] * 2
        other = [TaskVector(each.up @ turn, torch.linalg.inv(turn) @ each.down) for each in skills]
        torch.testing.assert_close(operator(other), operator(skills), rtol=1e-3, atol=1e-4)


class TestTies:
    def test_the_elected_sign_wins_and_those_against_it_are_silent(self):
        deltas = [torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[-1.0, 2.0, 2.0]])]
        assert ties(deltas).tolist() == [[3.0, 1.5, 2.0]]  # the last cancels out: the default sign, plus
        assert ties(deltas, aggregate="sum").tolist() == [[3.0, 3.0, 2.0]]
        assert ties(deltas, aggregate="max", scale=0.5).tolist() == [[1.5, 1.0, 1.0]]
        assert ties(deltas, majority=-1.0).tolist() == [[3.0, 1.5, -2.0]]

    def test_what_is_trimmed_counts_as_nothing(self):
        deltas = [torch.tensor([[3.0, 0.1]]), torch.tensor([[1.0, 2.0]])]
        assert ties(deltas, thresholds=[1.0, 1.5]).tolist() == [[3.0, 2.0]]

    @pytest.mark.parametrize("keep", [0.001, 0.2, 0.5, 1.0])
    def test_the_threshold_is_exact_over_all_weights_together(self, keep):
        parts = dense(3, shape=(37, 41))
        everything = torch.cat([part.abs().flatten() for part in parts])
        wanted = max(1, round(keep * len(everything)))
        assert trim_threshold(lambda: parts, keep) == everything.sort(descending=True).values[wanted - 1].item()

    def test_a_skill_that_changed_nothing_has_a_threshold_of_zero(self):
        assert trim_threshold(lambda: [torch.zeros(4, 4)], 0.2) == 0.0

    def test_bad_values_are_refused(self):
        with pytest.raises(InputError, match="mean or sum or max"):
            ties([torch.zeros(1, 1)], aggregate="median")
        with pytest.raises(InputError, match="keep"):
            trim_threshold(list, 0.0)


class TestDropping:
    def test_it_keeps_the_mean_and_repeats_by_its_seed(self):
        delta = torch.ones(500, 500)
        dropped = drop_and_rescale(delta, 0.75, torch.Generator().manual_seed(1))
        assert set(dropped.unique().tolist()) == {0.0, 4.0}
        assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
        assert torch.equal(dropped, drop_and_rescale(delta, 0.75, torch.Generator().manual_seed(1)))
        with pytest.raises(InputError, match="below 1"):
            drop_and_rescale(delta, 1.0, torch.Generator())


class TestEmr:
    def test_the_unified_change_is_the_largest_of_the_elected_sign(self):
        deltas = [torch.tensor([[3.0, -1.0, 1.0]]), torch.tensor([[1.0, 2.0, -1.0]])]
        unified = unify(deltas)
        assert unified.tolist() == [[3.0, 2.0, -1.0]]  # the last cancels out: minus
        assert sign_agreement(deltas[0], unified).tolist() == [[True, False, False]]
        assert rescaler(2.0, 4.0) == 0.5 and rescaler(1.0, 0.0) == 0.0


class TestMasks:
    @pytest.mark.parametrize(("skills", "density"), [(2, 0.656), (4, 0.488), (8, 0.358)])
    def test_the_density_of_independent_skills_is_that_of_the_law(self, skills, density):
        deltas = dense(skills)
        law = 2 / math.pi * math.atan(1 / (0.6 * math.sqrt(skills - 1)))
        assert law == pytest.approx(density, abs=5e-4)
        merged = task_arithmetic(deltas)
        assert task_mask(deltas[0], merged, 0.6).float().mean().item() == pytest.approx(law, abs=0.01)

    def test_with_strictness_one_no_other_mask_is_nearer(self):
        delta, *others = dense(3, shape=(40, 50))
        merged = task_arithmetic([delta, *others])
        nearest = (merged - delta).abs() < delta.abs()
        assert torch.equal(task_mask(delta, merged, 1.0), nearest)

    def test_under_ties_no_skill_takes_an_entry_of_the_wrong_sign(self):
        deltas = dense(4)
        for delta in deltas:
            for merged, wrong in ((ties(deltas, aggregate="sum"), 0.0), (task_arithmetic(deltas), 0.16)):
                mask = task_mask(delta, merged, 0.6)
                against = (mask & (delta * merged < 0)).sum() / mask.sum()
                assert against.item() == pytest.approx(wrong, abs=0.02)

    def test_the_scale_is_the_best_there_is(self):
        delta, other = dense(2, shape=(40, 50))
        scale = least_squares_scale(delta, other)
        errors = [(scale + step) * other - delta for step in (0.0, 0.01, -0.01)]
        assert errors[0].norm() < min(errors[1].norm(), errors[2].norm())
        assert least_squares_scale(delta, torch.zeros_like(delta)) == 0.0

    def test_a_consensus_leaves_out_what_one_alone_takes(self):
        masks = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
        assert consensus(masks).tolist() == [True, False, False]
        with pytest.raises(InputError, match="1 to the 2 skills"):
            consensus(masks, least=3)

    @pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 4), (0, 3)])
    def test_bits_come_back_as_the_mask(self, shape):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
        bits = pack_bits(mask)
        assert bits.dtype == torch.uint8 and len(bits) == -(-mask.numel() // 8)
        assert torch.equal(unpack_bits(bits, shape), mask)

    def test_bits_of_another_mask_are_refused(self):
        with pytest.raises(InputError, match=r"\(2,\), for a mask of \(3, 4\)"):
            unpack_bits(torch.zeros(3, dtype=torch.uint8), (3, 4))


class TestSpectral:
    def test_skills_that_agree_add_up_in_their_shared_basis(self):
        skills = [vectors(1)[0]] * 3
        torch.testing.assert_close(knots(skills), skills[0].dense(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(knots(skills, aggregate="sum"), 3 * skills[0].dense(), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("operator", [task_singular_vectors, knots, iso_c, iso_cts])
    def test_skills_that_changed_nothing_merge_into_nothing(self, operator):
        silent = TaskVector(torch.zeros(ROWS, 1), torch.zeros(1, COLUMNS))
        assert torch.equal(operator([silent, silent]), torch.zeros(ROWS, COLUMNS))

    def test_singular_vectors_of_skills_are_made_orthogonal(self):
        merged = task_singular_vectors(vectors(2))
        singular = torch.linalg.svdvals(merged)
        wanted = torch.cat([each.svd()[1] for each in vectors(2)]).sort(descending=True).values
        torch.testing.assert_close(singular[: len(wanted)], wanted, rtol=1e-3, atol=1e-4)
        assert singular[len(wanted) :].max() < 1e-4

    def test_more_skills_than_rows_are_refused(self):
        with pytest.raises(InputError, match="no more skills"):
            task_singular_vectors([TaskVector(torch.ones(2, 1), torch.ones(1, 5))] * 3)

    def test_an_isotropic_merge_has_equal_singular_values_in_the_directions_of_the_factors(self):
        skills = vectors(2)
        values = torch.linalg.svdvals(iso_c(skills))
        mean = torch.linalg.svdvals(sum_vectors(skills).dense())[: 2 * RANK].mean()
        torch.testing.assert_close(values[: 2 * RANK], mean.expand(2 * RANK), rtol=1e-3, atol=1e-4)
        assert values[2 * RANK :].max() < 1e-4

    def test_directions_of_one_skill_alone_get_their_share(self):
        skills = [*vectors(2, seed=4), TaskVector(0.01 * vectors(1, seed=5)[0].up, vectors(1, seed=5)[0].down)]
        own = skills[2].svd()[2][0]
        with_own = iso_cts(skills, common=0.6)
        values = torch.linalg.svdvals(with_own)
        assert values[: 3 * RANK].std() < 1e-3 * values[0]
        assert (with_own @ own).norm() > 0.5 * values[0]
        with pytest.raises(InputError, match="common"):
            iso_cts(skills, common=0.0)


class TestWudi:
    def interference(self, merged: torch.Tensor, skills: list[TaskVector]) -> float:
        return sum(
            (((merged - each.dense()) @ each.dense().T).norm() ** 2 / each.dense().norm() ** 2).item()
            for each in skills
        )

    def test_with_room_for_all_no_skill_is_disturbed(self):
        skills = vectors(4)  # 4 x 3 directions among 20 inputs
        assert self.interference(wudi(skills, ridge=0.0), skills) < 1e-6
        assert self.interference(sum_vectors(skills).dense(), skills) > 1.0

    def test_without_room_it_is_the_minimum_that_descent_finds(self):
        skills = vectors(9)  # 27 directions among 20 inputs
        merged = wudi(skills, ridge=0.0)
        assert self.slope(merged, skills, 0.0) < 1e-2 * merged.norm()
        assert self.interference(merged, skills) < self.interference(sum_vectors(skills).dense(), skills)

    def slope(self, merged: torch.Tensor, skills: list[TaskVector], near: float) -> float:
        """Return the length of the gradient of the interference and `near` times the distance from the sum."""
        at = merged.clone().requires_grad_()
        loss = sum(((at - e.dense()) @ e.dense().T).square().sum() / e.dense().square().sum() for e in skills)
        (loss + near * (at - sum_vectors(skills).dense()).square().sum()).backward()
        return at.grad.norm().item()

    def test_with_a_ridge_it_is_the_minimum_near_the_sum(self):
        skills = vectors(4)
        rank = 4 * RANK
        merged = wudi(skills, ridge=2.0)
        assert self.slope(merged, skills, 2.0 * 4 / rank) < 1e-3 * merged.norm()  # every G has a trace of 1
        torch.testing.assert_close(wudi(skills, ridge=1e8), sum_vectors(skills).dense(), rtol=1e-4, atol=1e-4)

    def test_directions_that_are_all_but_shared_do_not_blow_it_up(self):
        one, other = vectors(2)
        skills = [one, TaskVector(other.up, one.down + 1e-3 * other.down)]
        longest = sum_vectors(skills).dense().norm()
        assert wudi(skills, ridge=0.0).norm() > 100 * longest
        assert wudi(skills).norm() < 2 * longest

    def test_skills_that_changed_nothing_have_no_say(self):
        skills = vectors(1)
        silent = TaskVector(torch.zeros(ROWS, 1), torch.zeros(1, COLUMNS))
        torch.testing.assert_close(wudi([*skills, silent]), skills[0].dense(), rtol=1e-4, atol=1e-5)
        assert not wudi([silent]).any()
