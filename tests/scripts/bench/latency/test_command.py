"""`saccade bench latency` checks policies before it times them, and says why something was not measured."""

import json

import pytest
import torch

from saccade.errors import InputError, WorldError
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.model import SaccadeModel
from saccade.policy.network.presets import PRESETS
from saccade.policy.profiling.cost import InputSizes, decision_cost
from saccade.scripts.bench.command import run
from saccade.scripts.bench.latency import command as module
from saccade.scripts.bench.latency.checks import check_decisions, scheduled_flops
from saccade.scripts.bench.latency.command import LatencyBenchConfig, make_contestants, measure
from saccade.scripts.bench.latency.contestants import LerobotContestant, SaccadeContestant, dense_variant, small_variant
from saccade.scripts.bench.latency.rows import LatencyRow, collect_metrics, table

QUICK = LatencyBenchConfig(presets=("tiny",), lerobot=False, device="cpu", runs=3)


@pytest.fixture
def contestant(small_architecture):
    return SaccadeContestant("least", small_architecture, InputSizes(image_size=32))


def test_preset_is_measured_and_metrics_are_written(tmp_path, capsys):
    out, plot = tmp_path / "latency.json", tmp_path / "parts.png"
    config = LatencyBenchConfig(presets=("tiny",), lerobot=False, device="cpu", runs=3, out=out, plot=plot)
    assert run(config) == 0
    content = json.loads(out.read_text())
    assert content["figures"]["tiny_decisions_per_second"] > 0
    assert content["figures"]["host_syncs_per_forward"] == 0
    assert content["figures"]["parity_max_relative_error"] is None
    assert content["command"].startswith("saccade bench latency --presets tiny")
    output = capsys.readouterr().out
    assert "tiny" in output and "checked:" in output and "MFLOP" not in output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_presets_with_pretrained_towers_get_a_dense_baseline():
    names = [each.name for each in make_contestants(LatencyBenchConfig(device="cpu"))]
    assert names[:5] == ["tiny", "small", "dense small", "large", "dense large"] and "act" in names


@pytest.mark.parametrize("preset", ["small", "large"])
def test_dense_baseline_keeps_every_patch_in_every_layer(preset):
    architecture = dense_variant(PRESETS[preset])
    with torch.device("meta"):
        network = InputSizes().build(architecture)
    assert network.layout.visual == 2 * 256 and not network.trunk.routers
    assert network.layout.slots == 8 * 7 + 1 and network.layout.cached_text_length == 0
    assert (architecture.trunk_width, architecture.trunk_layers) == (
        PRESETS[preset].trunk_width,
        PRESETS[preset].trunk_layers,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_scheduled_flops_equal_counted_flops(preset):
    for architecture in [PRESETS[preset]] + ([dense_variant(PRESETS[preset])] if PRESETS[preset].towers else []):
        small = SaccadeContestant("small", small_variant(architecture), InputSizes(image_size=64))
        counted = decision_cost(small.architecture, small.sizes).decide.parts["trunk"]
        assert scheduled_flops(small) == counted


def test_decision_that_synchronises_is_not_timed(contestant, monkeypatch):
    original = SaccadeModel.decide

    def decide_with_synchronisation(self, images, instruction_plan, state, memory):
        state.new_tensor([1.0, 2.0])
        return original(self, images, instruction_plan, state, memory)

    monkeypatch.setattr(SaccadeModel, "decide", decide_with_synchronisation)
    with pytest.raises(WorldError, match="wait for the device 1 times, first in lift_fresh at .*latency/test_command"):
        measure(contestant, QUICK, "cpu")


def test_policy_is_not_timed_if_an_encoded_instruction_changes_the_actions(contestant, monkeypatch):
    original = SaccadeModel.forward

    def forward_with_error(self, images, tokens, state):
        decision = original(self, images, tokens, state)
        decision.actions += 0.01 * decision.actions.abs().max()
        return decision

    monkeypatch.setattr(SaccadeModel, "forward", forward_with_error)
    with pytest.raises(WorldError, match="a decision of least with an encoded instruction is off by"):
        measure(contestant, QUICK, "cpu")


def test_policy_is_not_timed_if_pruning_keeps_all_tokens(contestant, monkeypatch):
    original = SaccadeModel.__init__

    def init_without_pruning(self, architecture, **sizes):
        original(self, Architecture(**{**vars(architecture), "keep_floor": 1.0}), **sizes)

    row = LatencyRow("least", 8)
    module.count_saccade_cost(contestant, row)
    monkeypatch.setattr(SaccadeModel, "__init__", init_without_pruning)
    with pytest.raises(WorldError, match="but its pruning schedule needs"):
        check_decisions(contestant, row.parts["trunk"])


def test_policy_that_is_too_large_or_too_slow_is_counted_but_not_timed(contestant):
    row = measure(contestant, LatencyBenchConfig(memory=1e-6, runs=3), "cpu")
    assert row.flops and not row.seconds and "not timed" in row.remark and "GiB" in row.remark
    row = measure(contestant, LatencyBenchConfig(seconds=1e-6, runs=3), "cpu")
    assert row.flops and not row.seconds and "take over" in row.remark


def test_remark_says_why_a_lerobot_policy_cannot_be_built():
    row = measure(LerobotContestant("vqbet", InputSizes(), {"pretrained_backbone_weights": None}), QUICK, "cpu")
    assert row.flops is None and "only one image" in row.remark


@pytest.mark.slow
def test_lerobot_act_is_measured():
    row = measure(
        LerobotContestant(
            "act", InputSizes(), {"chunk_size": 8, "n_action_steps": 8, "pretrained_backbone_weights": None}
        ),
        QUICK,
        "cpu",
    )
    assert row.parameters is not None and row.flops is not None
    assert 40e6 < row.parameters < 60e6 and 5e9 < row.flops < 20e9 and len(row.seconds) == 3 and row.steps == 8


def rows():
    return [
        LatencyRow(
            "large", 8, 7, 2 * 10**12, {"towers": 10**12, "trunk": 10**12}, 10**9, 2**30, 0, 0, [0.01, 0.02, 0.03]
        ),
        LatencyRow(
            "dense large",
            8,
            8,
            8 * 10**12,
            {"towers": 10**12, "trunk": 7 * 10**12},
            10**9,
            2**30,
            0,
            0,
            [0.1, 0.1, 0.1],
        ),
    ]


def test_times_are_metrics_on_a_gpu_only():
    on_gpu, on_cpu = collect_metrics(rows(), "cuda"), collect_metrics(rows(), "cpu")
    assert on_gpu["large_speedup_over_dense"] == 5 and on_gpu["large_p50_ms"] == 20 and on_gpu["large_p99_ms"] == 30
    assert on_cpu["large_speedup_over_dense"] is None and on_cpu["large_p50_ms"] is None
    assert on_cpu["large_flop_ratio"] == 4 and on_cpu["large_tflop"] == 2 and on_cpu["dense_tflop"] == 8


def test_table_is_aligned():
    lines = table([*rows(), LatencyRow("missing", 8, remark="not installed")])
    assert len({line.index("p50") + 3 for line in lines[:1]} | {line.index(" ms") + 3 for line in lines[1:3]}) == 1
    assert lines[-1].endswith("not installed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatencyBenchConfig(presets=("lage",)), "Did you mean 'large'"),
        (lambda: LatencyBenchConfig(presets=()), "presets: got none"),
        (lambda: LatencyBenchConfig(runs=0), "runs: got 0"),
        (lambda: LatencyBenchConfig(seconds=0), "seconds: got 0"),
        (lambda: LatencyBenchConfig(memory=-1), "memory: got -1"),
        (lambda: LatencyBenchConfig(device="gpu"), "device: got 'gpu'"),
    ],
)
def test_invalid_options_are_rejected(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_rejected():
    with pytest.raises(InputError, match="device: got cuda, but PyTorch sees no CUDA device"):
        module.bench_latency(LatencyBenchConfig(presets=("tiny",), device="cuda"))
