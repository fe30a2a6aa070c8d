"""The compile gate: kernels build for compute capability 9.0 without a GPU, and what must not ship is refused."""

import os
from dataclasses import replace

import pytest

from saccade.kernels.gate.compile import CompileResult, cases, main, table, try_compile

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")


def named(part):
    return next(case for case in cases() if part in case.name)


def test_every_case_has_a_unique_name_and_types_for_all_arguments_but_constants():
    found = list(cases())
    assert len({case.name for case in found}) == len(found) > 80
    for case in found:
        assert set(case.types) | set(case.constants) == set(case.kernel.arg_names), case.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["forward 64 plain bf16", "query_gradient 128 plain bf16", "key_gradient 72 bias bf16", "list 3 columns"]
)
def test_kernels_build_and_keep_to_their_registers(name):
    result = try_compile(named(name))
    assert not result.complaints
    assert 0 < result.registers <= 255
    assert (result.warpgroup_products > 0) == ("list" not in name)


@pytest.mark.slow
def test_products_that_miss_the_tensor_cores_are_refused():
    case = named("forward 32 everything fp32")
    result = try_compile(replace(case, constants={**case.constants, "PRECISION": "ieee"}))
    assert "has no product on tensor cores" in result.complaints


def test_what_cannot_be_compiled_is_refused():
    case = named("key_choice")
    result = try_compile(replace(case, types={**case.types, "tiles": "i32"}))
    assert len(result.complaints) == 1 and result.complaints[0].startswith("cannot be compiled")
    assert "! cannot be compiled" in table([result])


def test_a_table_has_a_line_for_each_kernel():
    lines = table(
        [CompileResult("one", 100, 0, 2048, 4, 0, 8, 1.5), CompileResult("another", 255, 8, 1024, 0, 2, 0, 0.5)]
    ).split("\n")
    assert len(lines) == 3 and "another" in lines[2] and "2.0" in lines[1]


def test_command_fails_where_nothing_was_compiled(capsys):
    assert main(["no such kernel"]) == 1
    assert "0 kernels compiled" in capsys.readouterr().out
