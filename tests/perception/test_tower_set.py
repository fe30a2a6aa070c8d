"""Several pretrained towers: tokens in the width of the trunk, conditioned once per instruction."""

import pytest
import torch
from safetensors.torch import save_file

from saccade.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def timm():
    """Import timm before the first test and not at collection: it loads slowly and brings wandb."""
    import timm

    return timm


def build(names=("test_vit", "test_vit3"), **changes):
    from saccade.perception.tower_set import PretrainedTowers

    torch.manual_seed(0)
    usual = {
        "image_size": 32,
        "aggregation_tokens": 3,
        "film": True,
        "fusion": "gated",
        "condition_width": 5,
        "output_width": 8,
    }
    return PretrainedTowers(names, **(usual | changes))


def randomize_parameters(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def images(batch=2):
    return torch.randint(0, 256, (batch, 3, 32, 32), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("fusion", ["gated", "concatenated"])
@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("aggregation_tokens", [0, 3])
def test_output_tokens_have_the_width_of_the_trunk(fusion, film, aggregation_tokens):
    towers = build(fusion=fusion, film=film, aggregation_tokens=aggregation_tokens)
    modulations = towers.modulations(torch.randn(2, 5))
    seen = towers(images(), modulations)
    assert towers.tokens == (aggregation_tokens or 4)
    assert seen.tokens.shape == (2, towers.tokens, 8)
    assert seen.positions is None and seen.logits is None
    assert [len(blocks) for blocks in modulations.blocks] == ([5, 8] if film else [0, 0])
    assert (modulations.gate is None) == (fusion == "concatenated")


@pytest.mark.parametrize(("fusion", "film"), [("gated", True), ("gated", False), ("concatenated", True)])
def test_the_instruction_moves_the_tokens(fusion, film):
    towers = randomize_parameters(build(fusion=fusion, film=film))
    one, other = (towers(images(1), towers.modulations(torch.randn(1, 5))).tokens for _ in range(2))
    assert ((one - other).abs().amax(-1) > 1e-5).all()


def test_every_parameter_learns():
    towers = randomize_parameters(build())
    towers(images(), towers.modulations(torch.randn(2, 5))).tokens.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in towers.parameters())


def test_towers_with_different_patches_and_normalization_combine_through_aggregation():
    towers = build(("test_vit", "vit_small_patch14_reg4_dinov2"), image_size=112, aggregation_tokens=2)
    assert towers.towers[0].mean != towers.towers[1].mean
    assert (towers.towers[0].patches, towers.towers[1].patches, towers.tokens) == (49, 64, 2)
    given = torch.full((1, 3, 112, 112), 128.0)
    assert towers(given, towers.modulations(torch.zeros(1, 5))).tokens.shape == (1, 2, 8)


def test_weights_in_bf16_run():
    towers = randomize_parameters(build()).bfloat16()
    modulations = towers.modulations(torch.randn(2, 5, dtype=torch.bfloat16))
    for given in (images(), images().bfloat16()):
        tokens = towers(given, modulations).tokens
        assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


@pytest.mark.parametrize(("aggregation_tokens", "expected", "fusion"), [(64, 64, "gated"), (0, 256, "concatenated")])
def test_towers_of_openvla_run_on_the_meta_device(aggregation_tokens, expected, fusion):
    names = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224.webli")
    with torch.device("meta"):
        towers = build(
            names,
            image_size=224,
            aggregation_tokens=aggregation_tokens,
            fusion=fusion,
            condition_width=64,
            output_width=4096,
        )
        seen = towers(torch.empty(1, 3, 224, 224), towers.modulations(torch.empty(1, 64)))
    assert seen.tokens.is_meta and seen.tokens.shape == (1, expected, 4096)
    assert [tower.width for tower in towers.towers] == [1024, 1152]


def test_each_tower_has_its_own_weights(tmp_path, timm):
    names, wholes = ("test_vit", "test_vit3"), []
    for name in names:
        wholes.append(randomize_parameters(timm.create_model(name, num_classes=0, img_size=32)))
        save_file(wholes[-1].state_dict(), tmp_path / f"{name}.safetensors")
    towers, sources = build(names), [str(tmp_path / f"{name}.safetensors") for name in names]
    towers.load_pretrained(sources)
    for tower, whole in zip(towers.towers, wholes, strict=True):
        assert tower.encoder.pos_embed.equal(whole.pos_embed)
    with pytest.raises(InputError, match="weights of test_vit from .*test_vit3.safetensors: got "):
        towers.load_pretrained(sources[::-1])
    with pytest.raises(InputError, match="weights of the towers: got 1, expected 2"):
        towers.load_pretrained(sources[:1])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"names": ()}, "architecture.towers: got none"),
        ({"fusion": "gate"}, "architecture.fusion: got 'gate'.*Did you mean 'gated'"),
        ({"names": ("test_vit", "nothing_like_it")}, "architecture.towers: got 'nothing_like_it'"),
        (
            {
                "names": ("test_vit", "vit_small_patch14_reg4_dinov2"),
                "image_size": 112,
                "aggregation_tokens": 0,
            },
            "got 49 tokens of test_vit, 64 tokens of vit_small_patch14_reg4_dinov2",
        ),
    ],
)
def test_incompatible_towers_are_refused(changes, complaint):
    with torch.device("meta"), pytest.raises(InputError, match=complaint):
        build(**changes)
