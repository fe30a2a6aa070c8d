"""A pretrained tower: features equal to those of timm without conditioning; different ones under an instruction."""

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from saccade.errors import InputError

NAMES = {
    "test_vit": 32,  # class token
    "test_vit2": 48,  # register, LayerScale, average pooling
    "test_vit3": 32,  # attention pooling, one image size alone
    "test_vit4": 32,  # root-mean-square norms
    "vit_xsmall_patch16_clip_224": 32,  # norm before the blocks
    "vit_small_patch14_reg4_dinov2": 28,  # registers without position embeddings
}


@pytest.fixture(scope="module", autouse=True)
def timm():
    """Import timm before the first test and not at collection: it loads slowly and brings wandb."""
    import timm

    return timm


def pretrained_tower(name, **options):
    from saccade.perception.pretrained_tower import PretrainedTower

    return PretrainedTower(name, **options)


def build(name="test_vit2", size=32, tokens=3, condition=5, seed=0):
    torch.manual_seed(seed)
    return randomize_parameters(
        pretrained_tower(name, image_size=size, aggregation_tokens=tokens, condition_width=condition)
    )


def randomize_parameters(module):
    """Perturb every weight: LayerScale, tokens and FiLM start near zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in module.named_parameters():
            if name.endswith("gamma"):
                parameter.add_(0.5)
    return module


def images(tower, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, tower.image_size, tower.image_size), generator=generator).float()


def normalised(tower, given):
    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in (tower.mean, tower.std))
    return (given / 255 - mean) / std


def whole_model(tower, name, size):
    import timm

    whole = randomize_parameters(timm.create_model(name, pretrained=False, num_classes=0, img_size=size))
    whole.load_state_dict(tower.encoder.state_dict(), strict=False)
    return whole.eval()


@pytest.mark.parametrize(("name", "size"), NAMES.items())
def test_unconditioned_patches_equal_timm(name, size):
    tower = build(name, size, tokens=0, condition=0).eval()
    whole, entered = whole_model(tower, name, size), []
    tower.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    tokens = tower(images(tower), tower.modulations(torch.zeros(2, 5)))
    (expected,) = whole.get_intermediate_layers(entered[0], n=[len(whole.blocks) - 2])
    assert tokens.shape == (2, tower.tokens, tower.width) and tower.tokens == tower.patches
    assert tower.depth == len(whole.blocks) - 1 == len(tower.encoder.blocks)
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)


def test_layers_after_the_last_used_block_are_dropped():
    import timm

    whole = timm.create_model("test_vit3", num_classes=0, img_size=32)
    tower = build("test_vit3", tokens=0, condition=0)
    dropped = whole.state_dict().keys() - tower.encoder.state_dict().keys()
    assert {name.split(".")[0] for name in dropped} == {"blocks", "norm", "attn_pool"}
    assert {name.split(".")[1] for name in dropped if name.startswith("blocks")} == {str(tower.depth)}


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2"])
def test_images_are_normalized_as_the_weights_expect(name):
    tower = build(name, NAMES[name], tokens=0, condition=0)
    given, seen = images(tower), []
    tower.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(given, [])
    torch.testing.assert_close(seen[0], normalised(tower, given), rtol=0, atol=1e-6)
    assert tower.mean == ((0.5,) * 3 if name == "test_vit" else (0.485, 0.456, 0.406))


def test_output_holds_only_aggregation_tokens_that_attend_to_the_whole_image():
    tower = build()
    given = images(tower, 1).requires_grad_()
    tokens = tower(given, tower.modulations(torch.randn(1, 5)))
    assert tokens.shape == (1, 3, tower.width) and (tower.tokens, tower.patches) == (3, 4)
    for token in range(3):
        (gradient,) = torch.autograd.grad(tokens[0, token].sum(), given, retain_graph=True)
        assert (
            gradient.isfinite().all() and (gradient.unfold(2, 16, 16).unfold(3, 16, 16).abs().amax((-1, -2)) > 0).all()
        )


def test_modulation_applies_to_the_residual_stream_between_attention_and_feed_forward():
    tower = build()
    shift = torch.randn(2, tower.width)
    erase = [(torch.full_like(shift, -1.0), shift)] * tower.depth
    last = tower.encoder.blocks[-1]
    expected = shift + last.ls2(last.mlp(last.norm2(shift)))
    torch.testing.assert_close(tower(images(tower), erase), expected[:, None].expand(-1, 3, -1))


def test_instruction_changes_a_trained_tower_but_not_a_fresh_one():
    tower = pretrained_tower("test_vit2", image_size=32, aggregation_tokens=3, condition_width=5)
    given, one, other = images(tower, 1), torch.randn(1, 5), torch.randn(1, 5)
    assert tower(given, tower.modulations(one)).equal(tower(given, tower.modulations(other)))
    randomize_parameters(tower)
    moved = (tower(given, tower.modulations(one)) - tower(given, tower.modulations(other))).abs().amax(-1)
    assert (moved > 1e-3).all()


def test_images_of_a_batch_are_independent():
    tower = build()
    given, condition = images(tower, 3), torch.randn(3, 5)
    alone = [tower(given[i : i + 1], tower.modulations(condition[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(tower(given, tower.modulations(condition)), torch.cat(alone))


def test_checkpointing_changes_no_gradient():
    tower, gradients = build().train(), []
    for checkpointing in (False, True):
        tower.checkpointing = checkpointing
        tower.zero_grad()
        tower(images(tower), tower.modulations(torch.ones(2, 5))).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in tower.named_parameters()})
    assert all(gradient.any() for gradient in gradients[0].values())  # FiLM and aggregation tokens among them
    assert all(gradients[1][name].equal(gradient) for name, gradient in gradients[0].items())


def test_conditioned_tower_requires_modulations():
    tower = build()
    with pytest.raises(ValueError):
        tower(images(tower), [])


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit4"])
def test_attention_map_equals_the_attention_of_the_last_block(name):
    tower = build(name).eval()
    given, modulations = images(tower), tower.modulations(torch.randn(2, 5))
    attention = tower.encoder.blocks[-1].attn
    seen = []
    attention.attn_drop.register_forward_hook(lambda _, inputs, output: seen.append(output))
    attention.fused_attn = False  # timm's own path that has the weights at hand
    tower(given, modulations)
    expected = seen[0].mean(1)[:, -3:, 1:5]
    shares = tower.attention_map(given, modulations)
    assert shares.shape == (2, 3, 4) and (shares.sum(-1) < 1).all()
    torch.testing.assert_close(shares, expected)


def test_there_is_no_attention_map_without_aggregation_tokens():
    tower = build(tokens=0)
    with pytest.raises(InputError, match="attention map: got none"):
        tower.attention_map(images(tower), tower.modulations(torch.zeros(2, 5)))


def test_bf16_weights_get_the_same_normalized_images():
    tower = build()
    exact = tower(images(tower), tower.modulations(torch.ones(2, 5)))
    tower.bfloat16()
    rough = tower(images(tower).bfloat16(), tower.modulations(torch.ones(2, 5).bfloat16()))
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.05 * exact.norm()
    tower.film.float()  # what is trained may stay fp32 beside frozen weights
    assert tower(images(tower), tower.modulations(torch.ones(2, 5))).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "patches", "width", "depth"),
    [
        ("vit_large_patch14_reg4_dinov2.lvd142m", 256, 1024, 23),
        ("vit_so400m_patch14_siglip_224.webli", 256, 1152, 26),
    ],
)
def test_towers_of_openvla_run_on_the_meta_device(name, patches, width, depth):
    with torch.device("meta"):
        tower = pretrained_tower(name, image_size=224, aggregation_tokens=64, condition_width=8)
        tokens = tower(torch.empty(2, 3, 224, 224), tower.modulations(torch.empty(2, 8)))
    assert tokens.is_meta and tokens.shape == (2, 64, width)
    assert (tower.patches, tower.width, tower.depth) == (patches, width, depth)


def test_tower_on_the_meta_device_loads_weights_by_assignment():
    tower = build()
    with torch.device("meta"):
        other = pretrained_tower("test_vit2", image_size=32, aggregation_tokens=3, condition_width=5)
    other.load_state_dict(tower.state_dict(), assign=True)
    given, modulations = images(tower), tower.modulations(torch.ones(2, 5))
    assert other(given, modulations).equal(tower(given, modulations))


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [
        ("vit_large_patch14_reg4_dino", 224, "architecture.towers: got .*Did you mean 'vit_large_patch14_reg4_dinov2'"),
        ("test_vit.r160", 32, "Invalid pretrained tag.*Did you mean 'test_vit.r160_in1k'"),
        ("hf-hub:timm/test_vit", 32, "got 'hf-hub:timm/test_vit', expected a vision transformer"),
        ("resnet18", 224, "architecture.towers: got resnet18 .*Choose one of: vit_large_patch14_reg4_dinov2.lvd142m"),
        ("eva02_tiny_patch14_224", 224, "got eva02_tiny_patch14_224, made of Eva"),
        ("vit_small_patch16_36x1_224", 0, "at 0 pixels"),
        ("test_vit", 40, "expected a multiple of its patch, 16 pixels. Set image_size to 32 or 48"),
        ("test_vit", 8, "Set image_size to 16,"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused(name, size, complaint):
    with torch.device("meta"), pytest.raises(InputError, match=complaint):
        pretrained_tower(name, image_size=size, aggregation_tokens=2, condition_width=2)


def test_other_blocks_than_plain_ones_are_refused():
    with torch.device("meta"), pytest.raises(InputError, match="made of ResPostBlock"):
        pretrained_tower("vit_base_patch16_rpn_224", image_size=32, aggregation_tokens=2, condition_width=2)


def test_image_of_another_size_is_refused():
    tower = build("test_vit")  # timm would resample this one's position embeddings in silence
    with pytest.raises(InputError, match=r"images: got \(1, 3, 48, 48\), expected \(B, 3, 32, 32\)"):
        tower(torch.zeros(1, 3, 48, 48), tower.modulations(torch.zeros(1, 5)))


def trained(name="test_vit2", size=32, classes=0):
    import timm

    torch.manual_seed(7)
    return randomize_parameters(timm.create_model(name, pretrained=False, num_classes=classes, img_size=size)).eval()


def test_weights_come_from_a_folder_or_a_file(tmp_path):
    whole = trained(classes=4)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        tower = build(tokens=0, condition=0)
        tower.load_pretrained(str(source))
        (expected,) = whole.get_intermediate_layers(normalised(tower, images(tower)), n=[6])
        torch.testing.assert_close(tower(images(tower), []), expected, rtol=1e-5, atol=1e-5)


def test_weights_of_another_image_size_are_resampled_as_timm_does(tmp_path):
    import timm

    save_file(trained(size=64).state_dict(), tmp_path / "other.safetensors")
    tower = build(tokens=2, condition=3).bfloat16()
    aggregation = tower.aggregation.clone()
    tower.load_pretrained(str(tmp_path))
    overlay = {"file": str(tmp_path / "other.safetensors"), "input_size": (3, 64, 64)}
    expected = timm.create_model(
        "test_vit2", pretrained=True, img_size=32, pretrained_cfg_overlay=overlay, num_classes=0
    )
    torch.testing.assert_close(tower.encoder.pos_embed, expected.pos_embed.bfloat16())
    assert tower.aggregation.equal(aggregation)


def test_weights_come_from_the_hub(tmp_path, monkeypatch):
    """A hub cache as a download leaves it stands in for the network."""
    whole = trained("test_vit")
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(whole.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tower = build("test_vit")
    tower.load_pretrained("hub")
    assert tower.encoder.blocks[4].attn.qkv.weight.equal(whole.blocks[4].attn.qkv.weight)
    with pytest.raises(
        InputError, match="for timm/test_vit2.r160_in1k, expected model.safetensors on the Hugging Face"
    ):
        build().load_pretrained("hub")
    with pytest.raises(InputError, match="weights of test_vit4: got none that timm names"):
        build("test_vit4").load_pretrained("hub")


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ("test_vit", "got missing: blocks.0.ls1.gamma, .* and 38 more; left over: cls_token, expected 116"),
        ("test_vit3", "got left over: blocks.8.* and 11 more; of another shape: .* and 105 more, expected 116"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, other, complaint):
    save_file(trained(other).state_dict(), tmp_path / "model.safetensors")
    tower = build()
    before = tower.encoder.pos_embed.clone()
    with pytest.raises(InputError, match=complaint):
        tower.load_pretrained(str(tmp_path))
    assert tower.encoder.pos_embed.equal(before)


def test_a_model_one_block_short_or_long_is_refused(tmp_path):
    whole = trained().state_dict()
    save_file({n: v for n, v in whole.items() if not n.startswith("blocks.7.")}, tmp_path / "short.safetensors")
    longer = {n.replace("blocks.7.", "blocks.8."): v.clone() for n, v in whole.items() if n.startswith("blocks.7.")}
    save_file(whole | longer, tmp_path / "long.safetensors")
    with pytest.raises(InputError, match="missing: blocks.7.attn"):
        build().load_pretrained(str(tmp_path / "short.safetensors"))
    with pytest.raises(InputError, match="left over: blocks.8.attn"):
        build().load_pretrained(str(tmp_path / "long.safetensors"))
    with pytest.raises(InputError, match="a folder that contains long.safetensors, short.safetensors"):
        build().load_pretrained(str(tmp_path))


def test_weights_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"code")
    (tmp_path / "damaged.safetensors").write_bytes(b"half a file")
    save_file({"mask_token": torch.zeros(1)}, tmp_path / "odd.safetensors")
    for source, complaint in {
        "pytorch_model.bin": "a .bin file.*Convert them to safetensors",
        "nowhere": "nothing there",
        "nowhere.safetensors": "nothing there",
        "damaged.safetensors": "damaged.safetensors.*Download or copy the file again",
        "odd.safetensors": "weights of test_vit2 from .*missing",
    }.items():
        with pytest.raises(InputError, match=complaint):
            build().load_pretrained(str(tmp_path / source))
    (tmp_path / "damaged.safetensors").unlink()
    (tmp_path / "odd.safetensors").unlink()
    with pytest.raises(InputError, match="a folder that contains pytorch_model.bin, expected a safetensors file"):
        build().load_pretrained(str(tmp_path))
