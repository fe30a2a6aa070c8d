"""Compile all kernels for sm_90 without a GPU and check registers, shared memory and tensor cores.

    python -m saccade.kernels.gate.compile [PART OF A NAME ...]

Triton's interpreter accepts kernels that a GPU does not, and reports no registers. This compiles every kernel as it is
launched, for compute capability 9.0 with the assembler that Triton ships. It rejects a kernel that spills registers,
needs more shared memory than a multiprocessor has, or computes its products without tensor cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .case import CompileCase

CAPABILITY = 90
SHARED_MEMORY = 227 * 1024
"""Bytes that a program may use on compute capability 9.0."""


@dataclass(frozen=True)
class CompileResult:
    """What a compiled case needs of the GPU.

    Attributes:
        name: the case's name.
        registers: registers of a thread.
        spilled: bytes of spilled registers and of the stack.
        shared: bytes of shared memory.
        warpgroup_products: tensor-core products of four warps (wgmma).
        warp_products: tensor-core products of one warp (mma.sync).
        copies: asynchronous copies to shared memory (cp.async).
        seconds: compile time.
        complaints: why the case is rejected; empty if it is accepted.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    warpgroup_products: int
    warp_products: int
    copies: int
    seconds: float
    complaints: list[str] = field(default_factory=list)


def compile_case(case: CompileCase) -> CompileResult:
    """Compile one case and inspect its machine code; a compile error of Triton is raised."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    began = time.perf_counter()
    signature = {name: case.types.get(name, "constexpr") for name in case.kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(case.kernel.arg_names)
        if signature[name].startswith("*") or name in case.divisible
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=dict(case.constants), attrs=attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    text = usage.stdout + usage.stderr
    registers, stack, local = (_read_usage(text, word) for word in ("REG", "STACK", "LOCAL"))
    assembly = compiled.asm["ptx"]
    result = CompileResult(
        case.name,
        registers,
        stack + local,
        compiled.metadata.shared,
        len(re.findall(r"wgmma\.mma_async", assembly)),
        len(re.findall(r"mma\.sync", assembly)),
        len(re.findall(r"cp\.async\.c[ag]", assembly)),
        round(time.perf_counter() - began, 1),
    )
    result.complaints.extend(_complaints(case, result))
    return result


def _read_usage(text: str, word: str) -> int:
    """Return a number of cuobjdump's resource usage, such as the 32 of "REG:32"."""
    found = re.search(rf"{word}:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage: got no {word} in {text!r}, expected {word}:NUMBER")
    return int(found.group(1))


def try_compile(case: CompileCase) -> CompileResult:
    """Compile one case; a compile error becomes a complaint of the result."""
    from triton.compiler.errors import CompilationError

    began = time.perf_counter()
    try:
        return compile_case(case)
    except (CompilationError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        seconds = round(time.perf_counter() - began, 1)
        return CompileResult(case.name, 0, 0, 0, 0, 0, 0, seconds, [f"cannot be compiled: {reason[0]}"])


def _complaints(case: CompileCase, result: CompileResult) -> Iterator[str]:
    if result.spilled > case.spill:
        yield f"spills {result.spilled} bytes of registers, {case.spill} allowed"
    if result.shared > SHARED_MEMORY:
        yield f"needs {result.shared} bytes of shared memory, {SHARED_MEMORY} available"
    if case.tensor_cores and not result.warpgroup_products + result.warp_products:
        yield "has no product on tensor cores"
    if case.pipelined and not result.copies:
        yield "has no asynchronous load"


def cases() -> Iterator[CompileCase]:
    """Yield the cases of all kernels."""
    from . import block_sparse_cases, gather_norm_film_cases, linear_attention_cases, plan_cases

    for family in (block_sparse_cases, plan_cases, linear_attention_cases, gather_norm_film_cases):
        yield from family.cases()


def table(results: list[CompileResult]) -> str:
    """Return the results as a text table, with complaints behind an exclamation mark."""
    width = max([len(result.name) for result in results], default=4)
    lines = [f"{'kernel':{width}}  regs  spill  shared KiB  wgmma  mma  cp.async  seconds"]
    lines += [
        f"{result.name:{width}}  {result.registers:4d}  {result.spilled:5d}  {result.shared / 1024:10.1f}"
        f"  {result.warpgroup_products:5d}  {result.warp_products:3d}  {result.copies:8d}  {result.seconds:7.1f}"
        + "".join(f"  ! {complaint}" for complaint in result.complaints)
        for result in results
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile the kernels, print a table, and return 1 if any is rejected or none was compiled."""
    parser = argparse.ArgumentParser(
        prog="python -m saccade.kernels.gate.compile", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", help="compile only kernels whose name contains one of these; default: all")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET: got 1, expected it unset, because the interpreter compiles nothing")
    results = []
    for case in cases():
        if not options.names or any(part in case.name for part in options.names):
            results.append(try_compile(case))
            print(table(results[-1:]).split("\n")[1], flush=True)
    rejected = [result for result in results if result.complaints]
    print(f"\n{table(results)}\n\n{len(results)} kernels compiled, {len(rejected)} rejected")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if rejected or not results else 0


if __name__ == "__main__":
    sys.exit(main())
