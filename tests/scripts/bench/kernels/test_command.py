"""`saccade bench kernels` times only what agrees with a float64 reference; metrics of a GPU are null without one."""

import json
import sys
import types
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from saccade.errors import InputError, WorldError
from saccade.scripts.bench.command import run
from saccade.scripts.bench.kernels import checks, contestants, families, public_code
from saccade.scripts.bench.kernels import command as module
from saccade.scripts.bench.kernels.checks import gate_table
from saccade.scripts.bench.kernels.command import KernelBenchConfig, KernelReport, measure, measure_case
from saccade.scripts.bench.kernels.correctness import check_correctness, relative_errors
from saccade.scripts.bench.kernels.errors import CASES
from saccade.scripts.bench.kernels.families import make_problem
from saccade.scripts.bench.kernels.memory import plan_cost
from saccade.scripts.bench.kernels.problem import AttentionCase
from saccade.scripts.bench.kernels.rows import (
    METRIC_NAMES,
    OURS,
    SDPA_MASKED,
    SDPA_UNMASKED,
    KernelRow,
    Roofline,
    collect_metrics,
    table,
)
from saccade.scripts.bench.kernels.shapes import FAMILIES, Shape, shapes
from saccade.scripts.bench.kernels.timing import KernelTimer, sdpa_backend

QUICK = KernelBenchConfig(checks=(), repeats=1, device="cpu")
ROOFLINE = Roofline(1e12, 1e11)
TRUNK = Shape("trunk", (100,), 2, 1, 16, "coupled", slots=20)


def small_shapes():
    """Yield the smallest case of each family, and two lengths and two densities for the plots."""
    yield replace(TRUNK, lengths=(64,), sweep="length")
    yield replace(TRUNK, sweep="length")
    yield Shape("history", (212,), 1, 1, 16, slots=20, sweep="density")
    yield Shape("history", (212,), 1, 1, 16, slots=20, keep=0.34, headline=True, sweep="density")
    yield Shape("ragged", (70, 24), 2, 2, 16, "coupled", slots=14, headline=True)
    yield from (shape for shape in CASES if shape.family not in ("trunk", "history", "ragged"))


def test_every_family_is_measured_on_a_cpu_and_the_report_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "shapes", lambda size: small_shapes())
    out, figures = tmp_path / "report", tmp_path / "figures.json"
    assert run(replace(QUICK, out=out, figures=figures)) == 0
    output = capsys.readouterr().out
    assert "CPU torch path, not the Triton kernels" in output and "SDPA, mask [" in output
    assert "not available: needs CUDA" in output and max(map(len, output.split("\n\ntimes:")[0].splitlines())) <= 100
    content = json.loads((out / "kernels.json").read_text())
    assert {row["shape"]["family"] for row in content["rows"]} == set(FAMILIES)
    timed = [row for row in content["rows"] if row["seconds"]]
    assert all(row["forward_error"] < 1e-5 and not row["wrong"] for row in timed)
    assert {row["contestant"] for row in timed} >= {
        OURS,
        SDPA_UNMASKED,
        SDPA_MASKED,
        "SDPA, two calls",
        "ours, plan kept",
    }
    assert all(row["remark"] for row in content["rows"] if not row["seconds"])
    page = (out / "README.md").read_text()
    for plot in ("time_over_length.png", "time_over_density.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG") and f"({plot})" in page
    written = json.loads(figures.read_text())
    assert tuple(written["figures"]) == METRIC_NAMES and not any(written["figures"].values())
    assert written["command"].startswith("saccade bench kernels --checks --device cpu --repeats 1")
    assert written["machine"]["cores"] and written["versions"]["torch"] and written["date"] and written["commit"]


def test_wrong_contestant_is_not_timed_and_the_exit_code_is_3(tmp_path, capsys, monkeypatch):
    original = families.gather_norm_film

    def gather_with_error(*arguments):
        kept, normed = original(*arguments)
        wrong = normed.clone()
        wrong[0, 0, 0] += 0.01
        return kept, wrong

    monkeypatch.setattr(families, "gather_norm_film", gather_with_error)
    out = tmp_path / "report"
    with pytest.raises(WorldError, match=r"ours in gather: .* normed is off by .*: no speed is given") as caught:
        run(replace(QUICK, families=("gather",), out=out))
    assert caught.value.exit_code == 3
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("  ours"))
    assert "WRONG: normed is off by" in ours
    rows = json.loads((out / "kernels.json").read_text())["rows"]
    assert not rows[0]["seconds"] and rows[0]["wrong"] and rows[1]["seconds"] and not rows[1]["wrong"]
    assert "**wrong**: normed" in (out / "README.md").read_text()


def test_wrong_gradient_is_found():
    problem = make_problem(TRUNK, "cpu", torch.float32, None, compiled=False)
    entry = problem.contestants[OURS]()
    other = replace(entry, output_gradient=(entry.output_gradient[0] * 1.001,))
    result = check_correctness(other, problem, torch.float32)
    assert result.forward is not None and result.backward is not None
    assert result.wrong.startswith("gradient of query is off by") and result.forward < 1e-5 < result.backward
    unmasked = replace(problem.contestants[SDPA_UNMASKED](), reference_kind="own")
    assert check_correctness(unmasked, problem, torch.float32).wrong.startswith("output is off by")


def test_errors_are_infinite_for_nan_and_for_another_shape():
    expected = torch.ones(3, dtype=torch.float64)
    assert relative_errors(torch.tensor([1.0, float("nan"), 1.0]), expected) == (float("inf"), float("inf"))
    assert relative_errors(torch.ones(2), expected) == (float("inf"), float("inf"))
    norm_error, max_error = relative_errors(torch.tensor([1.0, 1.0, 1.25]), expected)
    assert max_error == 0.25 and norm_error == pytest.approx(0.25 / 3**0.5)


def test_failing_kernel_is_wrong_if_ours_and_unavailable_if_of_others():
    problem = make_problem(TRUNK, "cpu", torch.float32, None, compiled=False)

    def failing():
        raise RuntimeError("out of registers")

    timer = KernelTimer("cpu", 1)
    ours = measure(OURS, failing, problem, timer, ROOFLINE, torch.float32)
    other = measure(SDPA_MASKED, failing, problem, timer, ROOFLINE, torch.float32)
    assert "out of registers" in ours.wrong and not ours.seconds
    assert "out of registers" in other.remark and not other.wrong


def test_densities_are_counted():
    problem = make_problem(
        Shape("trunk", (128,), 1, 1, 16, "coupled", slots=0), "cpu", torch.float32, None, compiled=False
    )
    assert problem.minimum_cost.density == (128 * 129 / 2) / 128**2 and problem.minimum_cost.tile_density == 0.75
    assert problem.minimum_cost.useful == 4 * 16 * 128 * 129 / 2
    dense = make_problem(Shape("history", (192,), 1, 1, 16), "cpu", torch.float32, None, compiled=False)
    assert dense.minimum_cost.density == dense.minimum_cost.tile_density == 1
    selected = make_problem(Shape("history", (256,), 1, 1, 16, keep=0.5), "cpu", torch.float32, None, compiled=False)
    assert selected.minimum_cost.density == selected.minimum_cost.tile_density == 0.5


def test_plan_cost_counts_tiles_and_bytes():
    found = plan_cost(Shape("trunk", (128,), 32, 32, 128, "coupled", slots=0))
    assert found["tile_density"] == 0.75 and found["mask_bytes"] == 128 * 128
    found = plan_cost(Shape("ragged", (128, 64), 32, 32, 128, "coupled", slots=0))
    assert found["tile_density"] == 0.8 and found["mask_bytes"] == 2 * 128 * 128
    found = plan_cost(Shape("history", (256,), 2, 2, 128, keep=0.25))
    assert found["tile_density"] == 0.25 and found["mask_bytes"] == 2 * 256 * 256
    assert 0 < found["plan_bytes"] < found["mask_bytes"]


def test_gate_table_has_a_line_for_each_kernel():
    builds = [
        {"name": f"forward {width} plain bf16", "registers": width, "spilled": 8 * (width > 64), "shared": 2048}
        | {"warpgroup_products": width, "warp_products": 0}
        for width in (64, 128)
    ]
    assert gate_table(builds)[2:] == ["| forward | 2 | 64-128 | 1, 8 | 2 | 64-128 | 0 |"]


def row(family, contestant, seconds, moved=0.0):
    shape = Shape(family, (8,), 1, 1, 8, headline=True)
    return KernelRow(shape, contestant, 1.0, 1.0, 1.0, moved, (1e-6, 2e-6), seconds)


def test_times_of_headline_cases_are_metrics_on_a_gpu_only():
    rows = [
        row("ragged", OURS, {"forward": 1e-3, "both": 2e-3}),
        row("ragged", SDPA_MASKED, {"forward": 3e-3, "both": 8e-3}),
        row("ragged", "varlen_attn", {}),
        row("cross", "ours, plan kept", {"forward": 15e-6, "both": 30e-6}),
        row("gather", OURS, {"forward": 1e-3}, moved=3e9),
    ]
    metrics = collect_metrics(rows, 4e12, {"spilled_configurations": 3}, timed=True)
    assert tuple(metrics) == METRIC_NAMES
    assert metrics["ragged_over_padded_sdpa"] == 4 and metrics["ragged_over_varlen"] is None
    assert metrics["cross_attention_us"] == 15 and metrics["gather_norm_film_bandwidth_fraction"] == 0.75
    assert metrics["spilled_configurations"] == 3
    untimed = collect_metrics(rows, 4e12, {"spilled_configurations": 3}, timed=False)
    assert [name for name, value in untimed.items() if value is not None] == ["spilled_configurations"]


def test_table_shows_ratios_and_the_fraction_of_the_roofline():
    both = {"forward": 1e-3, "backward": 1e-3, "both": 2e-3}
    lines = table(
        [row("history", OURS, both), row("history", SDPA_UNMASKED, {name: 3 * each for name, each in both.items()})],
        on_gpu=True,
    )
    assert lines[0].startswith("times in us") and lines[-2].split()[-3:] == ["0.15", "%", "0e+00"]
    assert "3.00" in lines[-1] and "6000" in lines[-1]


def test_remark_says_why_public_code_is_unavailable(tmp_path):
    shape = next(each for each in small_shapes() if each.family == "history" and each.keep < 1)
    rows = measure_case(shape, replace(QUICK, public_code=str(tmp_path)), KernelTimer("cpu", 1), ROOFLINE)
    assert {each.contestant: each.remark for each in rows}["VMoBA"] == "needs CUDA"


def packed_attention(query, key, value, query_ends, key_ends, longest, most, *, window_size=(-1, -1)):
    """Compute torch's varlen attention one sample at a time."""
    assert max(query_ends.diff()) <= longest and max(key_ends.diff()) <= most
    found = []
    for rows, columns in zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        places = ((query, rows), (key, columns), (value, columns))
        parts = [part[slice(*at)].transpose(0, 1)[None] for part, at in places]
        causal = window_size == (-1, 0)
        found.append(functional.scaled_dot_product_attention(*parts, is_causal=causal)[0].transpose(0, 1))
    return torch.cat(found)


DYNAMIC_MASK_CODE = """
from torch.nn import functional

def triton_sparse_attn_func(query, key, value, attn_mask=None, attn_bias=None, is_causal=False, softmax_scale=None):
    added = attn_bias.masked_fill(~attn_mask, float("-inf")).repeat_interleave(query.shape[2] // key.shape[2], 1)
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(*parts, attn_mask=added, enable_gqa=True).transpose(1, 2)
"""

BLOCKS_CODE = """
import torch
from torch.nn import functional

def moba_attn_varlen(q, k, v, cu_seqlens, max_seqlen, moba_chunk_size, moba_topk, select_mode="threshold"):
    assert select_mode == "topk" and cu_seqlens.tolist() == [0, len(q)] and max_seqlen == len(q)
    means = torch.stack([part.mean(0) for part in k.split(moba_chunk_size)])
    gate = torch.einsum("thd,chd->htc", q, means)
    block = torch.arange(len(q)) // moba_chunk_size
    gate[:, torch.arange(len(q)), block] = float("inf")
    chosen = torch.zeros_like(gate, dtype=torch.bool).scatter(-1, gate.topk(moba_topk, -1).indices, True)
    parts = (part.transpose(0, 1) for part in (q, k, v))
    return functional.scaled_dot_product_attention(*parts, attn_mask=chosen[:, :, block]).transpose(0, 1)
"""


@pytest.fixture
def pretend_cuda(monkeypatch):
    """Run contestants that need a GPU on a CPU."""
    monkeypatch.setattr(contestants, "require_cuda", lambda device, why="": None)
    monkeypatch.setattr(public_code, "require_cuda", lambda device, why="": None)


@pytest.fixture
def forget_public_modules(monkeypatch):
    """Remove the modules that a test imports from its folder."""
    for name in ("vmoba", "flash_sparse_attn", "flash_dmattn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("vmoba", "flash_sparse_attn"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("family", "name", "module_path", "code"),
    [
        ("bias", "flash-sparse-attn", "dma/flash_sparse_attn.py", DYNAMIC_MASK_CODE),
        ("history", "VMoBA", "v/src/vmoba.py", BLOCKS_CODE),
    ],
)
def test_public_code_in_a_folder_agrees_with_the_reference(
    pretend_cuda, forget_public_modules, tmp_path, family, name, module_path, code
):
    path = tmp_path / module_path
    path.parent.mkdir(parents=True)
    path.write_text(code)
    shape = next(each for each in CASES if each.family == family)
    problem = make_problem(shape, "cpu", torch.float32, str(tmp_path), compiled=False)
    before = list(sys.path)
    result = check_correctness(problem.contestants[name](), problem, torch.float32)
    assert not result.wrong and sys.path == before


def test_remark_says_why_public_code_cannot_be_imported(pretend_cuda, forget_public_modules, tmp_path):
    (tmp_path / "vmoba.py").write_text("import missing_package")
    shape = next(each for each in CASES if each.family == "history")
    rows = measure_case(
        shape, replace(QUICK, public_code=str(tmp_path), compiled=False), KernelTimer("cpu", 1), ROOFLINE
    )
    (found,) = (each for each in rows if each.contestant == "VMoBA")
    assert "No module named 'missing_package'" in found.remark and not found.wrong


@pytest.mark.parametrize("lengths", [(100,), (70, 24, 101)])
def test_varlen_attention_in_two_calls_agrees_with_the_reference(pretend_cuda, monkeypatch, lengths):
    stand_in = types.ModuleType("torch.nn.attention.varlen")
    vars(stand_in)["varlen_attn"] = packed_attention
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    shape = Shape("ragged", lengths, 2, 2, 16, "coupled", slots=14)
    problem = make_problem(shape, "cpu", torch.float32, None, compiled=False)
    assert not check_correctness(problem.contestants["varlen_attn"](), problem, torch.float32).wrong


@pytest.mark.parametrize("family", ["trunk", "prefix", "ragged", "history", "cross"])
def test_flex_attention_mask_equals_the_mask_of_the_case(family):
    case = AttentionCase(next(each for each in CASES if each.family == family), "cpu", torch.float32)
    ragged = family == "ragged"
    mask_mod = contestants._flex_mask_mod(case, ragged=ragged)
    for sample, (rows, columns) in enumerate(zip(case.query_bounds, case.key_bounds, strict=True)):
        heads, row, column = torch.meshgrid(
            torch.arange(case.shape.heads), torch.arange(*rows), torch.arange(*columns), indexing="ij"
        )
        assert mask_mod(0, heads, row, column).equal(case.mask(sample).expand(len(heads), -1, -1))
    if ragged:
        assert not mask_mod(0, 0, torch.tensor(0), torch.tensor(case.shape.lengths[0])).any()


def test_sdpa_backend_is_named():
    query = torch.randn(1, 2, 16, 8)
    assert sdpa_backend(lambda: functional.scaled_dot_product_attention(query, query, query)) == "flash"
    assert sdpa_backend(lambda: query @ query.mT) == "math"


def test_failed_checks_are_reported_at_the_end(capsys, monkeypatch):
    broken = checks.CheckResult({}, ["compile gate: 2 kernels"], [], "the compile gate rejects 1 kernels: it spills")
    monkeypatch.setattr(module, "run_check", lambda name, on_gpu: broken)
    with pytest.raises(WorldError, match="the compile gate rejects 1 kernels: it spills"):
        run(replace(QUICK, families=(), checks=("gate",)))
    assert "compile gate: 2 kernels" in capsys.readouterr().out


def test_gate_check_counts_spilling_builds(monkeypatch):
    builds = [
        {"name": "one", "spilled": 0, "complaints": []},
        {"name": "two", "spilled": 8, "complaints": ["too much"]},
    ]

    def write_builds(arguments, interpreted):
        assert not interpreted
        with open(arguments[-1], "w") as file:
            json.dump(builds, file)

    monkeypatch.setattr(checks, "_run_python", write_builds)
    found = checks.check_gate()
    assert found.metrics == {"spilled_configurations": 1} and found.wrong.endswith("two too much")


@pytest.mark.slow
def test_errors_are_measured_in_the_interpreter_and_in_torch():
    found = checks.check_errors(on_gpu=False)
    assert set(found.content) == {"interpreter", "torch"} and not found.wrong
    forward, gradient = (found.metrics[f"worst_{part}_error_fp32"] for part in ("forward", "gradient"))
    assert forward is not None and 0 < forward < 5e-6
    assert gradient is not None and 0 < gradient < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("histroy",)}, "Did you mean 'history'"),
        ({"checks": ("gates",)}, "Did you mean 'gate'"),
        ({"families": (), "checks": ()}, "something to do"),
        ({"sizes": "huge"}, "sizes: got 'huge'"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"peak_tflops": 0.0}, "--peak-tflops"),
        ({"bandwidth": float("nan")}, "bandwidth: got nan"),
        ({"public_code": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        KernelBenchConfig(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_rejected():
    with pytest.raises(InputError, match="device: got cuda"):
        run(replace(QUICK, device="cuda"))


def test_every_family_has_a_headline_case_in_both_sizes():
    for size in ("small", "full"):
        assert {shape.family for shape in shapes(size) if shape.headline} == set(FAMILIES)
        for sweep in ("length", "density"):
            assert len({shape for shape in shapes(size) if shape.sweep == sweep}) >= 4


def test_report_without_rows_has_no_plots(tmp_path):
    module.write_report(tmp_path, KernelReport(metrics=dict.fromkeys(METRIC_NAMES)), "cpu", "saccade bench kernels")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["README.md", "kernels.json"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_case_is_measured_in_cuda_graphs():
    timer = KernelTimer("cuda", 3)
    shape = Shape("history", (596,), 2, 2, 64, slots=20, keep=0.25)
    rows = measure_case(shape, replace(QUICK, compiled=False), timer, Roofline(790e12, 4.3e12))
    found = {each.contestant: each for each in rows}
    assert not any(each.wrong for each in rows)
    assert set(found[OURS].seconds) == {"forward", "backward", "both", "plan"} and not found[OURS].remark
    assert found[SDPA_UNMASKED].backend and 0 < found[OURS].seconds["forward"] < 1
