"""Merge skills into one checkpoint, and run the merged policy."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import SKILLS_FILE
from saccade.policy.checkpoint.folder import STARTER_FOLDER, read_checkpoint, write_checkpoint
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.inference.batched import BatchedActor
from saccade.policy.loading import load_policy
from saccade.policy.merging.operators.methods import METHODS, MergeOptions
from saccade.policy.modeling_saccade import SaccadePolicy
from saccade.scripts.main import main
from saccade.scripts.merge import MergeConfig, merge, open_skills, stored_bytes
from saccade.scripts.train.options import TrainConfig
from saccade.scripts.train.policy import make_core
from saccade_testing.instructions import INSTRUCTIONS


def merged(folders, out, *options):
    """Merge with the command; the last of the small expert's two blocks is kept unless an option says otherwise."""
    options = options if "--keep-blocks" in options else (*options, "--keep-blocks", "1")
    assert main(["merge", *map(str, folders), "-o", str(out), *options]) == 0
    return out


def observation(observations, row=0):
    images, state = observations
    names = ("front", "wrist")
    pixels = {name: images[row, view].permute(1, 2, 0).numpy() for view, name in enumerate(names)}
    return {"pixels": pixels, "agent_pos": state[row].numpy()}


def decided(folder, observations, instruction, **options):
    actor = PolicyActor(folder, threads=None, **options)
    actor.reset(instruction, 0)
    return actor.decide(observation(observations)), actor


@pytest.fixture
def skills(make_skill):
    return [make_skill(number) for number in range(3)]


def relative_errors(folders, **options):
    config = MergeConfig(skills=tuple(map(str, folders)), explain=True, **{"keep_blocks": 1} | options)
    report = merge(config, open_skills(config), progress=False).report
    return torch.tensor([weight.error for weight in report])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_policy_that_decides(skills, observations, tmp_path, method):
    out = merged(skills, tmp_path / "out", "--method", method, "--merge", "all")
    core = load_policy(out)
    assert core.skills == ("skill0", "skill1", "skill2")
    for number, instruction in enumerate(INSTRUCTIONS[:3]):
        chunk, actor = decided(out, observations, instruction)
        assert actor.skill == f"skill{number}" and actor.abstained is None
        assert chunk.shape == (3, 2) and torch.tensor(chunk).isfinite().all()


def test_skills_that_change_different_weights_are_restored(make_skill, observations, tmp_path):
    """If no two skills change the same weight, a mask and a scale restore each change."""

    def only(layers):
        def spoil(tensors):
            for name, tensor in tensors.items():
                if "lora_B" in name and not any(layer in name for layer in layers):
                    tensor.zero_()

        return spoil

    one, two = make_skill(0, spoil=only(["layers.0."])), make_skill(1, spoil=only(["layers.2."]))
    options = ("--method", "task_arithmetic", "--merge", "all", "--keep-blocks", "2")
    out = merged([one, two], tmp_path / "out", *options)
    for folder, instruction in ((one, INSTRUCTIONS[0]), (two, INSTRUCTIONS[1])):
        apart, together = decided(folder, observations, instruction)[0], decided(out, observations, instruction)[0]
        # Only the rounding to 8 bits is lost.
        assert abs(apart - together).max() < 0.02 * abs(apart).max()


def test_with_kept_factors_and_expert_the_policy_equals_the_skill(skills, observations, tmp_path):
    # Then nothing is merged or trimmed.
    for options in ((), ("--merge", "expert", "--keep", "0.5")):
        out = merged(skills, tmp_path / f"out{len(options)}", "--keep-blocks", "2", *options)
        for folder, instruction in zip(skills, INSTRUCTIONS, strict=False):
            apart, together = decided(folder, observations, instruction)[0], decided(out, observations, instruction)[0]
            assert abs(apart - together).max() < 0.02 * abs(apart).max()


def test_lora_factors_are_kept_and_expert_matrices_are_truncated_to_their_size(skills, tmp_path):
    errors = relative_errors(skills)
    assert (errors == 0).any() and ((errors > 0) & (errors < 1)).any()
    sizes = {}
    for kind in ("nothing", "expert"):
        sizes[kind] = stored_bytes(read_checkpoint(merged(skills, tmp_path / kind, "--merge", kind)).tensors)
    assert sizes["nothing"]["change"] == sizes["nothing"]["masks"] == 0
    taken = {kind: sum(each[part] for part in ("change", "masks", "factors")) for kind, each in sizes.items()}
    # The rest is step sizes and rounded ranks, which count in such a small expert.
    assert taken["nothing"] < 1.1 * taken["expert"]


def test_low_rank_changes_of_the_expert_are_restored(make_skill, base_checkpoint, observations, tmp_path):
    before = read_checkpoint(base_checkpoint).tensors

    def few_directions(tensors):
        generator = torch.Generator().manual_seed(3)
        for name, tensor in tensors.items():
            if "expert.blocks." in name and tensor.ndim == 2:
                rows, columns = (torch.randn(size, 1, generator=generator) for size in tensor.shape)
                tensor.copy_(before[name] + 0.05 * rows @ columns.T)

    skills = [make_skill(number, spoil=few_directions) for number in range(2)]
    assert relative_errors(skills, keep_blocks=0).max() < 1e-5
    out = merged(skills, tmp_path / "out", "--keep-blocks", "0")
    for folder, instruction in zip(skills, INSTRUCTIONS, strict=False):
        apart, together = decided(folder, observations, instruction)[0], decided(out, observations, instruction)[0]
        assert abs(apart - together).max() < 0.02 * abs(apart).max()


def test_a_method_is_refused_if_nothing_is_merged(skills, tmp_path):
    for option, value in (("method", "wudi"), ("masks", "none"), ("bits", 4), ("ridge", 0.5)):
        with pytest.raises(InputError, match=f"{option}: got {value}, while nothing is merged"):
            MergeConfig(skills=tuple(map(str, skills)), out=tmp_path / "out", **{option: value})


def test_masks_and_scales_reduce_the_error_of_every_weight(skills):
    masked, unmasked = (relative_errors(skills, merge="all", masks=masks) for masks in (None, "none"))
    assert (masked < 1).all() and masked.mean() < unmasked.mean()


def test_a_skill_can_be_named_and_an_unknown_one_is_refused(skills, observations, tmp_path):
    out = merged(skills, tmp_path / "out")
    routed, _ = decided(out, observations, INSTRUCTIONS[1])
    named, actor = decided(out, observations, INSTRUCTIONS[1], skill="skill1")
    assert (routed == named).all() and actor.skill == "skill1"
    other, _ = decided(out, observations, INSTRUCTIONS[1], skill="skill0")
    assert (routed != other).any()
    with pytest.raises(InputError, match="Did you mean 'skill1'"):
        PolicyActor(out, threads=None, skill="skil1")
    with pytest.raises(InputError, match="skill: got skill1, of a policy that is not merged"):
        PolicyActor(STARTER_FOLDER, threads=None, skill="skill1")


def test_the_policy_holds_still_when_it_abstains(skills, observations, tmp_path):
    out = merged(skills, tmp_path / "out")
    chunk, actor = decided(out, observations, "an unknown instruction")
    assert actor.skill is None and "nothing like it was demonstrated" in actor.abstained
    assert (chunk == observation(observations)["agent_pos"]).all() and actor.overlay() is None
    # The next episode is routed again.
    actor.reset(INSTRUCTIONS[0], 0)
    actor.act(observation(observations))
    assert actor.skill == "skill0" and actor.abstained is None


def test_switching_at_chunks_routes_every_chunk_and_at_instructions_once(skills, observations, tmp_path):
    for switch, looks in (("instruction", 1), ("chunk", 3)):
        out = merged(skills, tmp_path / switch, "--switch", switch)
        actor, count = PolicyActor(out, threads=None), []
        route = actor.core.route
        actor.core.route = lambda *given, route=route, count=count: count.append(1) or route(*given)
        actor.reset(INSTRUCTIONS[2], 0)
        for _ in range(3):
            actor.decide(observation(observations))
        assert len(count) == looks


def test_a_shared_policy_serves_episodes_of_different_skills(skills, observations, tmp_path):
    out = merged(skills, tmp_path / "out")
    policy = BatchedActor(out, 4, threads=None)
    assert policy.rows == 1
    instructions = [INSTRUCTIONS[2], INSTRUCTIONS[0], "an unknown instruction"]
    for slot, instruction in enumerate(instructions):
        policy.begin(slot, instruction, 0)
    for _ in range(2):
        chunks, _ = policy.decide({slot: observation(observations) for slot in range(3)})
        for slot, instruction in enumerate(instructions):
            assert (chunks[slot] == decided(out, observations, instruction)[0][:2]).all()
    assert policy.overlay(0) is not None and policy.overlay(2) is None


def test_selecting_is_exact_in_any_order(skills, observations, tmp_path):
    core = load_policy(merged(skills, tmp_path / "out"))
    weights = {name: tensor.clone() for name, tensor in core.model.state_dict().items()}
    core.select(0)
    first = {name: tensor.clone() for name, tensor in core.model.state_dict().items()}
    assert any((first[name] != weights[name]).any() for name in weights)
    core.select(2)
    core.select(0)
    assert all((core.model.state_dict()[name] == first[name]).all() for name in first)
    core.select(None)
    assert all((core.model.state_dict()[name] == weights[name]).all() for name in weights)


def test_a_merge_takes_fewer_bytes_than_its_skills(skills, tmp_path):
    sizes = {}
    for bits in ("8", "4"):
        out = merged(skills, tmp_path / bits, "--bits", bits, "--merge", "all")
        tensors = read_checkpoint(out).tensors
        sizes[bits] = stored_bytes(tensors)
        assert set(sizes[bits]) == {"base", "change", "masks", "own", "factors", "router"}
        assert sizes[bits]["factors"] == 0
    assert 1.8 < sizes["8"]["change"] / sizes["4"]["change"] < 2.0
    changed = sum(
        tensor.numel() for name, tensor in tensors.items() if name.startswith("change.")
    )  # two entries a byte, rounded up to blocks
    assert sizes["4"]["masks"] < 3 * changed + 4096


def test_the_output_of_the_command(skills, tmp_path, capsys):
    merged(skills, tmp_path / "out", "--explain", "--names", "drawer", "cube", "pour")
    said = capsys.readouterr().out
    assert "merged drawer, cube, pour into" in said and "its own factors" in said and "% of the 3 skills" in said
    assert "trunk.2" in said and "expert.blocks.0" in said
    plot = tmp_path / "out_explained" / "explain.png"
    assert plot.stat().st_size > 10_000 and (tmp_path / "out_explained" / "explain.json").is_file()


def refused(message, *arguments):
    with pytest.raises(InputError, match=message):
        config = MergeConfig(skills=tuple(map(str, arguments[0])), out=arguments[1], **arguments[2])
        merge(config, open_skills(config), progress=False)


class TestRefusals:
    def test_of_skills_that_do_not_belong_together(self, make_skill, two_camera_contract, tmp_path):
        out = tmp_path / "out"
        one, two = make_skill(0), make_skill(1)
        refused("skills: got 1, expected two or more", [one], out, {})
        refused("every skill once", [one, two, one], out, {"names": ("a", "b", "c")})
        elsewhere = make_skill(2, provenance={"skill": {"weights": "0" * 64, "expert": "0" * 64}})
        refused("skill skill2: got base weights .*0000", [one, elsewhere], out, {})
        faster = dataclasses.replace(two_camera_contract, control_hz=15.0)
        refused(
            r"got contract\.control_hz 15\.0; .*|got contract\.control_hz 15\.0, expected",
            [one, make_skill(3, contract=faster)],
            out,
            {},
        )
        refused("names: got 1 names", [one, two], out, {"names": ("a",)})
        assert not out.exists() and not list(tmp_path.glob(".out*"))

    def test_of_what_is_no_skill(self, make_skill, base_checkpoint, tmp_path):
        refused("got a policy without LoRA factors", [make_skill(0), base_checkpoint], tmp_path / "out", {})

    def test_of_values_that_are_not_finite(self, make_skill, tmp_path):
        def spoil(key):
            return lambda tensors: next(t for n, t in tensors.items() if key in n).flatten()[:1].fill_(float("nan"))

        for key, what in (("lora_A", "up|down|task vector|trunk|tower|instruction|state"), ("expert.", "expert")):
            bad = make_skill(1, name=f"bad_{what[:3]}", spoil=spoil(key))
            refused(
                f"skill bad_{what[:3]}.*got a number that is not finite", [make_skill(0), bad], tmp_path / "out", {}
            )
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"keep": 0.0}, "keep: got 0"),
            ({"drop": 1.0}, "drop: got 1"),
            ({"strictness": -1.0}, "strictness: got -1"),
            ({"scale": float("nan")}, "scale: got nan"),
            ({"method": "tie"}, "Did you mean 'ties'"),
            ({"keep_blocks": 9}, "keep_blocks: got 9, expected at most the expert's 2 blocks"),
            ({"bits": 3}, "bits: got 3"),
            ({"margin": 1.0}, "margin: got 1"),
            ({"reach": 0.0}, "reach: got 0"),
            ({"init": "nowhere"}, "init: got nowhere, which does not exist"),
            ({"init": "starter"}, "init: got weights with sha256 .*expected"),
        ],
    )
    def test_of_options(self, skills, tmp_path, options, message):
        refused(message, skills, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()

    def test_of_a_flipped_byte_in_learned_tensors(self, skills, tmp_path):
        path = skills[1] / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        refused("model.safetensors: got factors and expert with sha256", skills, tmp_path / "out", {})

    def test_of_too_little_memory(self, skills, tmp_path, monkeypatch):
        monkeypatch.setattr("saccade.scripts.merge._available_memory", lambda: 2**20)
        refused("memory: got 0.0 GiB free, expected about", skills, tmp_path / "out", {})

    def test_of_a_damaged_merge(self, skills, tmp_path):
        out = merged(skills, tmp_path / "out", "--merge", "expert")
        whole = read_checkpoint(out)
        texts = {SKILLS_FILE: (out / SKILLS_FILE).read_text()}
        less = dict(whole.tensors)
        del less[next(name for name in less if name.startswith("mask."))]
        damaged = write_checkpoint(tmp_path / "damaged", less, whole.config, whole.contract, {}, texts)
        with pytest.raises(InputError, match=r"mask\.0\..* missing or left over"):
            load_policy(damaged)
        table = json.loads(texts[SKILLS_FILE])
        weight, ranks = next(iter(table["factored"].items()))
        for name, other in (("shorter", ranks[:-1]), ("number", ranks[0])):
            text = json.dumps(table | {"factored": table["factored"] | {weight: other}})
            wrong = write_checkpoint(
                tmp_path / name, whole.tensors, whole.config, whole.contract, {}, {SKILLS_FILE: text}
            )
            with pytest.raises(InputError, match="factored: got .*expected for every weight with factors a rank"):
                load_policy(wrong)


def test_a_merged_policy_is_not_trained_and_not_run_by_lerobot(skills, tmp_path):
    out = merged(skills, tmp_path / "out")
    with pytest.raises(InputError, match="got a merged policy"):
        SaccadePolicy.from_pretrained(out)
    config = TrainConfig(data=(tmp_path,), out=tmp_path / "run", init=str(out))
    with pytest.raises(InputError, match="init: got .* merged of skill0, skill1, skill2"):
        make_core(config, SimpleNamespace(sources=()))


def test_options_are_what_the_command_offers():
    fields = MergeConfig.__dataclass_fields__
    for name, field in MergeOptions.__dataclass_fields__.items():
        assert fields[name].default == field.default
