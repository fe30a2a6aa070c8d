"""The trunk: a Hugging Face decoder run layer by layer, as the library runs it; what is pruned passes by unchanged."""

import pytest
import torch
from transformers import (
    BertConfig,
    FalconConfig,
    Glm4Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Model

from saccade.errors import InputError
from saccade.kernels.block_sparse import interval_mask
from saccade.policy.network.layout import TokenLayout
from saccade.policy.network.trunk import Trunk

LAYOUT = TokenLayout(visual=6, text=4, slots=3)
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def trunk_of(keep=(3, 2, 1), configuration=None, layout=LAYOUT, groups=2, **choices):
    torch.manual_seed(0)
    trunk = Trunk(configuration or LlamaConfig(**SIZES), layout, groups=groups, keep=keep, condition=5, **choices)
    for router in trunk.routers.values():
        for name, parameter in router.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return trunk


def run(trunk, sequence, valid, condition):
    layout = trunk.layout
    text = sequence[:, : layout.cached_text_length] if layout.cached_text_length else sequence[:, layout.span("text")]
    return trunk(sequence[:, layout.cached_text_length :], trunk.plan(text, valid, condition))


@pytest.fixture
def given_tokens():
    generator = torch.Generator().manual_seed(1)
    sequence = torch.randn(2, LAYOUT.length, 16, generator=generator, requires_grad=True)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    return sequence, valid, torch.randn(2, 5, generator=generator)


@pytest.mark.parametrize(
    ("kind", "model"),
    [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model), (Qwen3Config, Qwen3Model), (SmolLM3Config, SmolLM3Model)],
)
def test_trunk_without_pruning_equals_the_decoder_of_transformers(kind, model, given_tokens):
    # One slot and no padding: then the coupled mask is causal.
    layout = TokenLayout(visual=6, text=4, slots=1)
    trunk = trunk_of((3, 3, 3), kind(**SIZES, pad_token_id=0), layout)
    sequence = given_tokens[0][:, : layout.length].detach()
    hidden = run(trunk, sequence, torch.ones(2, 4, dtype=torch.bool), given_tokens[2]).hidden
    reference = model._from_config(kind(**SIZES, pad_token_id=0), attn_implementation="eager")
    reference.load_state_dict(trunk.decoder.state_dict())
    expected = reference(inputs_embeds=sequence, output_hidden_states=True).hidden_states
    for ours, theirs in zip(hidden, expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_each_layer_works_on_its_share_of_every_view(given_tokens):
    kept = run(trunk_of((3, 2, 1)), *given_tokens).kept_indices
    assert kept[0] is None
    for places, keep in zip(kept[1:], (2, 1), strict=True):
        assert places.shape == (2, 2 * keep)
        assert (places[:, :keep] < 3).all() and (places[:, keep:] >= 3).all()


def test_pruned_tokens_skip_the_layer_unchanged(given_tokens):
    output = run(trunk_of((3, 2, 2)), *given_tokens)
    # The last layer's output is normalised, so that the middle one is looked at.
    before, after = output.hidden[0], output.hidden[1]
    for row, places in enumerate(output.kept_indices[1].tolist()):
        dropped = sorted(set(range(LAYOUT.visual)) - set(places))
        working = [*places, *range(LAYOUT.visual, LAYOUT.length)]
        assert after[row, dropped].equal(before[row, dropped])
        assert ((after[row, working] - before[row, working]).abs().amax(-1) > 1e-6).all()


def test_pruned_token_may_return_in_a_later_layer(given_tokens):
    trunk = trunk_of((2, 2, 2))
    with torch.no_grad():
        for layer, sign in (("0", 1.0), ("1", -1.0)):
            trunk.routers[layer].weight.copy_(sign * torch.ones(16))
            torch.nn.init.zeros_(trunk.routers[layer].scale.weight)
    kept = run(trunk, *given_tokens).kept_indices
    assert set(kept[1][0].tolist()) - set(kept[0][0].tolist())


def test_kept_tokens_keep_their_positions(given_tokens):
    trunk = trunk_of((3, 2, 1))
    seen = {}
    for number, layer in enumerate(trunk.decoder.layers):
        layer.register_forward_pre_hook(
            lambda module, arguments, keywords, number=number: seen.update({number: keywords}), with_kwargs=True
        )
    kept = run(trunk, *given_tokens).kept_indices
    whole = seen[0]["position_embeddings"]
    for number in (1, 2):
        rest = torch.arange(LAYOUT.visual, LAYOUT.length).expand(2, -1)
        expected = torch.cat([kept[number], rest], dim=1)
        assert seen[number]["position_ids"].equal(expected)
        for table, full in zip(seen[number]["position_embeddings"], whole, strict=True):
            for row in range(2):
                assert table[row].equal(full.expand(2, -1, -1)[row, expected[row]])
        mask, everything = seen[number]["attention_mask"], seen[0]["attention_mask"]
        for row in range(2):
            assert mask[row, 0].equal(everything[row, 0][expected[row]][:, expected[row]])


def test_renumbered_tokens_have_consecutive_positions(given_tokens):
    trunk = trunk_of((3, 2, 1), positions="renumbered")
    seen = []
    for layer in trunk.decoder.layers:
        layer.register_forward_pre_hook(
            lambda module, arguments, keywords: seen.append(keywords["position_ids"]), with_kwargs=True
        )
    run(trunk, *given_tokens)
    for positions, kept in zip(seen, (6, 4, 2), strict=True):
        assert positions[0].tolist() == list(range(kept + 8))
        # Two of the second row's text tokens are padding, which counts nothing.
        assert positions[1].tolist() == [*range(kept + 2), *[kept + 1] * 2, *range(kept + 2, kept + 6)]


def test_prefix_does_not_attend_to_the_slots(given_tokens):
    sequence, valid, condition = given_tokens
    prefix = sum(
        hidden[:, : LAYOUT.prefix].square().sum() for hidden in run(trunk_of(), sequence, valid, condition).hidden
    )
    (gradient,) = torch.autograd.grad(prefix, sequence)
    assert not gradient[:, LAYOUT.span("slots")].any()
    assert gradient[:, : LAYOUT.prefix].any()


def test_every_slot_sees_the_text_the_state_and_the_other_slots_but_no_padding(given_tokens):
    sequence, valid, condition = given_tokens
    hidden = run(trunk_of(), sequence, valid, condition).hidden[-1]
    for slot in range(*LAYOUT.span("slots").indices(LAYOUT.length)):
        (gradient,) = torch.autograd.grad(hidden[1, slot].square().sum(), sequence, retain_graph=True)
        moved = gradient[1].abs().amax(-1) > 0
        assert moved[: LAYOUT.visual].any()
        assert moved[LAYOUT.span("text")].tolist() == valid[1].tolist()
        assert moved[LAYOUT.span("state").start :].all()
        assert not gradient[0].any()


@pytest.mark.parametrize("mask", ["coupled", "causal", "bidirectional_vision", "mutual"])
@pytest.mark.parametrize("positions", ["fixed", "counted", "renumbered"])
def test_cached_text_prefix_changes_no_output(given_tokens, mask, positions):
    order = ("text", "visual", "state", "slots")
    layout = TokenLayout(visual=6, text=4, slots=3, order=order, mask=mask)
    sequence, valid, condition = given_tokens
    # Nothing is pruned, so that the library's decoder can run over the whole sequence at once.
    trunk = trunk_of((3, 3, 3), layout=layout, positions=positions)
    assert layout.cached_text_length == 4 and layout.length == LAYOUT.length - 4
    hidden = run(trunk, sequence, valid, condition).hidden
    high, level = layout.levels(valid)
    visible = interval_mask(torch.zeros_like(high), high, level)[:, None]
    reference = trunk.decoder(
        inputs_embeds=sequence,
        attention_mask=visible,
        position_ids=layout.positions(valid, counted=positions != "fixed"),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    for ours, theirs in zip(hidden, reference[1:], strict=True):
        torch.testing.assert_close(ours, theirs[:, 4:], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(hidden[-1][:, layout.span("slots")].square().sum(), sequence)
    assert gradient[0, :4].abs().amax(-1).all()  # the instruction is learned from


def test_pruning_layers_attend_to_the_cached_text_prefix(given_tokens):
    layout = TokenLayout(visual=6, text=4, slots=3, order=("text", "visual", "state", "slots"))
    output = run(trunk_of((3, 2, 1), layout=layout), *given_tokens)
    assert output.hidden[1].shape == (2, layout.length, 16)
    (gradient,) = torch.autograd.grad(output.hidden[2][1, -1].square().sum(), given_tokens[0])
    assert (gradient[1, :4].abs().amax(-1) > 0).tolist() == given_tokens[1][1].tolist()


@pytest.mark.parametrize("choices", [{}, {"signal": "straight_through"}, {"router": "original"}])
def test_routers_learn_from_the_loss(given_tokens, choices):
    trunk = trunk_of(**choices)
    run(trunk, *given_tokens).hidden[-1].square().sum().backward()
    for router in trunk.routers.values():
        for name, parameter in router.named_parameters():
            # A shift of all scores changes no ranking; that of the original's still moves its gates.
            assert parameter.grad.any(), name


def test_straight_through_router_gets_gradients_from_dropped_tokens_and_changes_no_output(given_tokens):
    heard = {}
    outputs = {}
    for signal in ("kept", "straight_through"):
        trunk = trunk_of((3, 2, 2), signal=signal)
        scores = []
        trunk.routers["1"].register_forward_hook(lambda module, given, output, scores=scores: scores.append(output))
        output = run(trunk, *given_tokens)
        gradient = sum(torch.autograd.grad(output.hidden[-1].square().sum(), scores))
        dropped = torch.ones_like(gradient, dtype=torch.bool).scatter(1, output.kept_indices[1], False)
        heard[signal], outputs[signal] = gradient[dropped], output.hidden
    assert not heard["kept"].any() and heard["straight_through"].all()
    for one, other in zip(*outputs.values(), strict=True):
        assert one.equal(other)


def test_original_router_selects_across_views_and_scales_the_feed_forward(given_tokens):
    trunk = trunk_of((6, 3, 3), router="original", groups=1)
    output = run(trunk, *given_tokens)
    before, places = output.hidden[0], output.kept_indices[1]
    layer, router, visual = trunk.decoder.layers[1], trunk.routers["1"], slice(0, LAYOUT.visual)
    normed = layer.input_layernorm(before)
    # Without padding: the mean over the text and the state.
    gates = router(normed[:1], visual, normed[:1, LAYOUT.visual : LAYOUT.prefix].mean(1))
    assert places[0].tolist() == sorted(gates[0, visual].topk(3).indices.tolist())
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(2)
        router.weigh.bias.copy_(torch.tensor([100.0, -100.0]))
    closed = run(trunk, *given_tokens)
    # With every gate closed the feed-forward adds nothing, whatever its weights.
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(2)
    assert run(trunk, *given_tokens).hidden[1].equal(closed.hidden[1])


def test_checkpointing_changes_neither_values_nor_gradients(given_tokens):
    gradients = []
    for checkpointing in (False, True):
        trunk = trunk_of()
        trunk.checkpointing = checkpointing
        output = run(trunk, *given_tokens)
        output.hidden[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in trunk.parameters() if parameter.grad is not None])
        given_tokens[0].grad = None
    assert len(gradients[0]) > 20
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, "trunk: groups: got 4"),
        ({"keep": (3, 2)}, "trunk: keep"),
        ({"keep": (3, 4, 1)}, "trunk: keep"),
        ({"keep": (3, 2, 0)}, "trunk: keep"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        trunk_of(**change)


def test_decoder_with_another_attention_is_refused(given_tokens):
    dropping = trunk_of(configuration=LlamaConfig(**SIZES, attention_dropout=0.5))
    with pytest.raises(InputError, match="trunk attention: dropout: got 0.5"):
        run(dropping, *given_tokens)
    scaled = trunk_of()
    scaled.decoder.layers[0].self_attn.scaling = 1.0
    with pytest.raises(InputError, match="trunk attention: scaling: got 1.0"):
        run(scaled, *given_tokens)
    windowed = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=2, max_window_layers=0)
    with pytest.raises(InputError, match="trunk attention: sliding_window: got 2"):
        run(trunk_of(configuration=windowed), *given_tokens)


def test_checkpointing_covers_the_cached_text(given_tokens):
    layout = TokenLayout(visual=6, text=4, slots=3, order=("text", "visual", "state", "slots"))
    gradients, saved = [], []
    for checkpointing in (False, True):
        trunk = trunk_of(layout=layout)
        trunk.checkpointing = checkpointing
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = run(trunk, *given_tokens)
        output.hidden[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in trunk.parameters() if parameter.grad is not None])
        saved.append(sum(kept))
    assert saved[1] < saved[0] / 2
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_original_router_needs_plain_layers():
    with pytest.raises(InputError, match="architecture.router: got original, with layers of glm4 that have post_mlp"):
        trunk_of((6, 3, 3), Glm4Config(**SIZES, pad_token_id=0, head_dim=4), router="original", groups=1)


@pytest.mark.parametrize("kind", [FalconConfig, BertConfig])
def test_decoder_with_another_structure_is_refused(kind):
    with pytest.raises(InputError, match="architecture.trunk_family: got (falcon|bert), "):
        trunk_of((3, 3, 3), kind(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=4))
