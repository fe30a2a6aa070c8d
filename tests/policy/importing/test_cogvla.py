"""Import of CogVLA and OpenVLA-OFT: the same numbers as the public code, and files that are refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from saccade.errors import InputError
from saccade.policy.loading import load_policy
from saccade.scripts.import_checkpoint import ImportConfig, import_checkpoint
from saccade.scripts.main import main
from saccade_testing.released_weights import RECORDED, VARIANTS, write_released, write_unmerged

STATISTICS = "libero_goal_no_noops"
INSTRUCTION = "Pick up the Black bowl on the stove, and place it on the plate"
TOLERANCE = 1e-4
HEAD, STATE, VISION = (
    f"{part}--150000_checkpoint.pt" for part in ("action_head", "proprio_projector", "vision_backbone")
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folders by variant: merged, and with the suffix `_unmerged` as an adapter next to its base model."""
    root = tmp_path_factory.mktemp("released")
    for variant in VARIANTS:
        write_released(root / variant, variant)
    for variant in ("cogvla", "oft"):
        write_unmerged(root / f"{variant}_unmerged", root / f"{variant}_base", variant)
    tokenizer = whole_tokenizer()
    for path in root.glob("*/tokenizer.json"):
        path.write_text(tokenizer)
    return root


def whole_tokenizer():
    """The recorded tokenizer with words that nobody says at the numbers it leaves out.

    The library gives an added token, as padding is one, its own number only if all numbers below are taken.
    """
    document = json.loads((RECORDED / "tokenizer.json").read_text())
    words = document["model"]["vocab"]
    taken = set(words.values())
    words |= {f"<unsaid {number}>": number for number in range(32000) if number not in taken}
    return json.dumps(document)


@pytest.fixture
def damaged(released, tmp_path):
    """A copy of CogVLA's folder whose files can be replaced; made of links, because copies take long."""
    folder = tmp_path / "released"
    shutil.copytree(released / "cogvla", folder, copy_function=os.link)
    return folder


def imported(folder, out, **options):
    config = ImportConfig(folder, out, "libero", **{"statistics": STATISTICS, "text_length": 40} | options)
    import_checkpoint(config, progress=False)
    return load_policy(out)


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def change_document(path, **changes):
    document = json.loads(path.read_text())
    for name, value in changes.items():
        place, _, field = name.rpartition("__")
        (document[place] if place else document)[field] = value
    replace(path, json.dumps(document).encode())


def change_pickle(path, change):
    tensors = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(change(tensors), path)


def stages(core, recording):
    """Return the values to compare by name, as (ours, recorded)."""
    seen = {}

    def keep(name, module):
        module.register_forward_hook(lambda _, __, output: seen.update({name: output}))

    tower = core.model.tower
    for name, module in (("dino", tower.towers[0]), ("siglip", tower.towers[1]), ("visual", tower)):
        keep(name, module)
    keep("trunk", core.model.trunk)
    pictures = recording["pictures"].permute(0, 3, 1, 2)[None]
    state = recording["state"][None]
    actions, decision = core.decide(pictures, core.encode_instruction([INSTRUCTION]), state.float())
    # Our text is padded: remove the padding, and move up the tokens after it.
    length, hidden = recording["final_norm"].shape[1], seen["trunk"].hidden
    real = hidden[0].shape[1] - core.model.layout.slots - (core.model.layout.length - length)
    places = [*range(real), *range(core.model.layout.prefix, core.model.layout.length)]
    pairs = {
        "state": (core.normalizer.encode_state(state)[0], recording["state_normalised"]),
        "dino": (seen["dino"][..., :24], recording["dino"]),
        "siglip": (seen["siglip"][..., :24], recording["siglip"]),
        "visual": (seen["visual"].tokens.flatten(0, 1)[None], recording["visual"]),
        "actions_normalised": (decision.actions[0], recording["actions_normalised"]),
        "actions": (actions[0], recording["actions"]),
    }
    for layer in range(len(hidden)):
        name = "final_norm" if layer == len(hidden) - 1 else f"layer_{layer:02d}"
        if name in recording:
            pairs[name] = (hidden[layer][:, places, :8], recording[name])
        if f"kept_{layer:02d}" in recording:
            pairs[f"kept_{layer:02d}"] = (decision.kept_indices[layer][0], recording[f"kept_{layer:02d}"])
    return pairs


@pytest.mark.parametrize("folder", [*VARIANTS, "cogvla_unmerged", "oft_unmerged"])
def test_an_imported_policy_computes_what_the_public_code_does(released, tmp_path, folder):
    variant = folder.removesuffix("_unmerged")
    base = {"trunk_base": released / f"{variant}_base"} if variant != folder else {}
    core = imported(released / folder, tmp_path / "out", **base)
    recording = load_file(RECORDED / f"{variant}.safetensors")
    errors = {}
    for name, (ours, theirs) in stages(core, recording).items():
        assert ours.shape == theirs.shape, name
        errors[name] = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, f"{folder}: relative error {errors[worst]:.1e} at {worst}, of {errors}"
    assert {name for name in errors if name.startswith("kept")} == {name for name in recording if "kept" in name}


def test_provenance_is_recorded_without_paths(released, tmp_path, capsys):
    folder, out = released / "cogvla", tmp_path / "out"
    code = main(["import", str(folder), "--out", str(out), "--platform", "libero", "--statistics", STATISTICS])
    assert code == 0
    said = capsys.readouterr().out
    assert "CogVLA: 8 aggregation tokens, FiLM" in said and "towers before training" in said
    text = (out / "provenance.json").read_text()
    record = json.loads(text)["imported"]
    assert record["layout"] == "cogvla" and record["options"]["statistics"] == STATISTICS
    assert set(record["files"]) >= {HEAD, STATE, VISION, "config.json", "tokenizer.json"} and not record["base_files"]
    assert str(tmp_path) not in text and str(released) not in text
    assert (out / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_released_dtypes_are_kept_except_for_computed_weights(tmp_path):
    write_released(tmp_path / "released", "oft_film", released_types=True)
    (tmp_path / "released" / "tokenizer.json").write_text(whole_tokenizer())
    out = tmp_path / "out"
    import_checkpoint(ImportConfig(tmp_path / "released", out, "libero", statistics=STATISTICS), progress=False)
    types = {name: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    assert types["model.trunk.decoder.layers.3.mlp.up_proj.weight"] == torch.bfloat16
    assert types["model.tower.towers.0.film.2.project.weight"] == torch.float32
    assert types["model.tower.towers.0.encoder.patch_embed.proj.weight"] == torch.float32


def test_routers_without_film_neither_scale_nor_shift(damaged, tmp_path):
    shards = sorted(damaged.glob("model-*.safetensors"))
    index = {}
    for shard in shards:
        kept = {name: tensor for name, tensor in load_file(shard).items() if ".router.s" not in name}
        shard.unlink()
        save_file(kept, shard)
        index |= dict.fromkeys(kept, shard.name)
    replace(damaged / "model.safetensors.index.json", json.dumps({"weight_map": index}).encode())
    routers = imported(damaged, tmp_path / "out").model.trunk.routers
    assert len(routers) == 24
    assert not any(
        part.any() for router in routers.values() for part in (*router.scale.parameters(), *router.shift.parameters())
    )


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def drop_from_shard(folder):
    shard = min(folder.glob("model-*.safetensors"))
    tensors = load_file(shard)
    tensors.pop("featurizer_proj.fc1.bias")
    shard.unlink()
    save_file(tensors, shard)


def drop_everywhere(folder):
    drop_from_shard(folder)
    path = folder / "model.safetensors.index.json"
    places = json.loads(path.read_text())["weight_map"]
    places.pop("featurizer_proj.fc1.bias")
    replace(path, json.dumps({"weight_map": places}).encode())


def truncate(path):
    replace(path, path.read_bytes()[:-1000])


def to_vla_adapter(tensors):
    return {"module.model.mlp_resnet_blocks.0.q_proj.weight": torch.zeros(2, 2)}


BAD = {
    "no head": (lambda f: (f / HEAD).unlink(), {}, "action_head.*no such file.*actions as tokens"),
    "no state": (lambda f: (f / STATE).unlink(), {}, "proprio_projector.*no such file"),
    "no towers": (lambda f: (f / VISION).unlink(), {}, "vision_backbone--STEP.*no such file"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), {}, "tokenizer.json: got no such file"),
    "other tokenizer": (lambda f: replace(f / "tokenizer.json", b"{}"), {}, "tokenizer.json: got .*no tokenizer"),
    "no statistics": (
        lambda f: (f / "dataset_statistics.json").unlink(),
        {},
        "^[^ ]*dataset_statistics.json: got no such",
    ),
    "no shard": (lambda f: (f / "model-00002-of-00003.safetensors").unlink(), {}, "model-00002-of-.*no such file"),
    "two steps": (lambda f: shutil.copy(f / HEAD, f / HEAD.replace("15", "20")), {}, "200000.*one of a single step"),
    "key in the index alone": (drop_from_shard, {}, "1 missing: featurizer_proj.fc1.bias"),
    "key nowhere": (drop_everywhere, {}, "1 missing: featurizer_proj.fc1.bias"),
    "left over": (
        lambda f: change_pickle(f / HEAD, lambda t: t | {"module.extra": torch.zeros(1)}),
        {},
        "action_head.*1 left over: extra",
    ),
    "other shape": (
        lambda f: change_pickle(f / STATE, lambda t: t | {"module.fc2.bias": torch.zeros(3)}),
        {},
        r"fc2.bias: got shape \[3\], expected \[64\]",
    ),
    "other layout": (lambda f: None, {"layout": "vla-adapter"}, "got vla-adapter, expected cogvla"),
    "foreign head": (
        lambda f: change_pickle(f / HEAD, lambda t: {"weight": torch.zeros(1)}),
        {},
        "tensors such as weight.*one of these layouts",
    ),
    "diffusion": (
        lambda f: change_pickle(f / HEAD, lambda t: {"module.noise_predictor.mlp_resnet.fc1.weight": torch.zeros(1)}),
        {},
        "diffusion head",
    ),
    "another layout's head": (
        lambda f: change_pickle(f / HEAD, to_vla_adapter),
        {"layout": "cogvla"},
        "got cogvla, expected vla-adapter",
    ),
    "wrong platform": (lambda f: None, {"platform": "aloha"}, "platform aloha.*expected 8.*--platform libero"),
    "statistics not chosen": (
        lambda f: None,
        {"statistics": None},
        "2 datasets.*libero_goal_no_noops, libero_spatial",
    ),
    "unknown statistics": (lambda f: None, {"statistics": "bridge"}, "'bridge'.*libero_goal_no_noops"),
    "truncated shard": (lambda f: truncate(f / "model-00001-of-00003.safetensors"), {}, "00001.*complete safetensors"),
    "truncated pickle": (lambda f: truncate(f / HEAD), {}, "action_head.*damaged file"),
    "no pickle": (lambda f: replace(f / HEAD, b"nothing"), {}, "action_head.*tensors"),
    "a list": (lambda f: change_pickle(f / HEAD, lambda t: list(t.values())), {}, "got list, expected tensors by name"),
    "no JSON": (lambda f: replace(f / "config.json", b"{"), {}, "config.json: got text that is no JSON"),
    "other schedule": (
        lambda f: change_document(f / "config.json", text_config__lfp_type="linear"),
        {},
        "lfp_type: got linear",
    ),
    "other trunk": (
        lambda f: change_document(f / "config.json", text_config__model_type="gpt2"),
        {},
        "model_type: got gpt2",
    ),
    "a list for the trunk": (
        lambda f: change_document(f / "config.json", text_config=[1]),
        {},
        "text_config: got list",
    ),
    "a vector for a matrix": (
        lambda f: change_pickle(f / STATE, lambda t: t | {"module.fc1.weight": torch.zeros(3)}),
        {},
        r"fc1.weight.*got shape \[3\], expected 2 dimensions",
    ),
    "modulation of another width": (
        lambda f: change_pickle(
            f / VISION, lambda t: t | {"vision_backbone.featurizer.blocks.0.scale.weight": torch.zeros(96, 3)}
        ),
        {},
        r"blocks.0.scale.weight, .*blocks.0.shift.weight: got shapes \[96, 3\], \[96, 64\]",
    ),
    "one tower": (lambda f: change_document(f / "config.json", timm_model_ids=["test_vit"]), {}, "two towers"),
    "unknown tower": (
        lambda f: change_document(f / "config.json", timm_model_ids=["a", "b"]),
        {},
        "architecture.towers",
    ),
    "heads that do not divide": (
        lambda f: change_document(f / "config.json", text_config__num_attention_heads=7),
        {},
        "trunk_width.*7 heads",
    ),
    "short text": (lambda f: None, {"text_length": 1}, "text_length: got 1"),
    "leads out": (
        lambda f: replace(f / "model.safetensors.index.json", b'{"weight_map": {"a": "../released/x.safetensors"}}'),
        {},
        "no such file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(damaged, tmp_path, case):
    damage, options, problem = BAD[case]
    damage(damaged)
    config = {"platform": "libero", "statistics": STATISTICS, "text_length": 40} | options
    with pytest.raises(InputError, match=f"(?s){problem}"):
        import_checkpoint(ImportConfig(damaged, tmp_path / "out", **config), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_pickle_with_code_is_refused_and_never_run(damaged, tmp_path, capsys):
    (damaged / HEAD).unlink()
    torch.save({"module.model.fc1.weight": Code(tmp_path / "was here")}, damaged / HEAD)
    code = main(["import", str(damaged), "--out", str(tmp_path / "out"), "--platform", "libero"])
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "tensors and nothing else" in said
    assert not (tmp_path / "was here").exists() and not (tmp_path / "out").exists()


def test_an_adapter_without_its_base_is_refused(released, tmp_path):
    with pytest.raises(InputError, match="an adapter without the model that it adapts.*--trunk-base"):
        imported(released / "cogvla_unmerged", tmp_path / "out")


def test_a_base_that_is_no_model_is_refused(released, tmp_path):
    with pytest.raises(InputError, match="model.safetensors: got no such file.*the merged model as safetensors"):
        imported(released / "cogvla_unmerged", tmp_path / "out", trunk_base=released / "cogvla_unmerged")


def test_a_folder_that_is_not_empty_is_not_overwritten(released, tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(InputError, match="which exists already"):
        imported(released / "oft", tmp_path)
