"""Fusion: several towers' tokens become one sequence."""

import pytest
import torch
from torch import nn

from saccade.perception.fusion import ConcatenatedFusion, GatedFusion

WIDTHS = (6, 10)


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return [torch.randn(2, 3, width) for width in WIDTHS]


def test_gate_weights_sum_to_one_and_mix_the_towers(tokens):
    fusion = GatedFusion(WIDTHS, 4, 8)
    gate = fusion.gate(torch.randn(2, 4))
    assert gate.shape == (2, 2) and (gate > 0).all()
    torch.testing.assert_close(gate.sum(-1), torch.ones(2))
    for tower in range(2):
        alone = fusion(tokens, nn.functional.one_hot(torch.tensor([tower] * 2), 2).float())
        torch.testing.assert_close(alone, fusion.projectors[tower](tokens[tower]))
    half = (fusion.projectors[0](tokens[0]) + fusion.projectors[1](tokens[1])) / 2
    torch.testing.assert_close(fusion(tokens, torch.full((2, 2), 0.5)), half)


def test_each_sample_has_its_own_gate(tokens):
    fusion = GatedFusion(WIDTHS, 4, 8)
    gate = fusion.gate(10 * torch.randn(2, 4))
    alone = [fusion([part[i : i + 1] for part in tokens], gate[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(fusion(tokens, gate), torch.cat(alone))


def test_single_tower_has_no_gate_parameters(tokens):
    fusion = GatedFusion(WIDTHS[:1], 4, 8)
    assert {name.split(".")[0] for name, _ in fusion.named_parameters()} == {"projectors"}
    gate = fusion.gate(torch.randn(2, 4))
    assert gate.equal(torch.ones(2, 1))
    torch.testing.assert_close(fusion(tokens[:1], gate), fusion.projectors[0](tokens[0]))


def test_the_gate_learns_from_the_tokens(tokens):
    fusion = GatedFusion(WIDTHS, 4, 8)
    fusion(tokens, fusion.gate(torch.randn(2, 4))).square().sum().backward()
    assert all(parameter.grad.any() for parameter in fusion.parameters())


def test_missing_tower_tokens_raise_an_error(tokens):
    fusion = GatedFusion(WIDTHS, 4, 8)
    with pytest.raises(ValueError):
        fusion(tokens[:1], fusion.gate(torch.randn(2, 4)))


@pytest.mark.parametrize(("widths", "shapes"), [((6, 10), [(64, 16), (8, 64), (8, 8)]), ((6,), [(8, 6), (8, 8)])])
def test_concatenation_has_the_layers_of_openvla(tokens, widths, shapes):
    fusion = ConcatenatedFusion(widths, 8)
    linears = [layer for layer in fusion.project if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == shapes
    assert fusion.gate(torch.randn(2, 4)) is None
    expected = torch.cat(tokens[: len(widths)], dim=-1)
    for number, layer in enumerate(linears):
        expected = layer(nn.functional.gelu(expected) if number else expected)
    torch.testing.assert_close(fusion(tokens[: len(widths)], None), expected)
