"""Build kernels for a GPU that is not there, and read off what they would need of it.

    python -m saccade.kernels.gate.compile [PART OF A NAME ...]

Triton's interpreter accepts what a GPU does not, and says nothing about registers. This compiles every kernel as it is
launched for compute capability 9.0, with the assembler that comes with Triton, and refuses one that keeps registers in
memory, needs more shared memory than a multiprocessor has, or does its products without tensor cores.
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
    """What a compiled case needs: registers of a thread, bytes, and how many products and copies it contains.

    Products of four warps and of one, and copies to shared memory that a program does not wait for.
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
    """Compile one case and inspect the machine code. Raises what Triton raises where it cannot be compiled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    began = time.perf_counter()
    signature = {name: case.types.get(name, "constexpr") for name in case.kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(case.kernel.arg_names)
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
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", text).group(1)) for word in ("REG", "STACK", "LOCAL"))
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


def try_compile(case: CompileCase) -> CompileResult:
    """Compile one case; one that cannot be compiled is a complaint like any other."""
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
        yield f"keeps {result.spilled} bytes of registers in memory, {case.spill} allowed"
    if result.shared > SHARED_MEMORY:
        yield f"needs {result.shared} bytes of shared memory, there are {SHARED_MEMORY}"
    if case.tensor_cores and not result.warpgroup_products + result.warp_products:
        yield "has no product on tensor cores"
    if case.pipelined and not result.copies:
        yield "waits for every load"


def cases() -> Iterator[CompileCase]:
    """Yield all shipped kernels, as they are launched."""
    from . import block_sparse_cases as attention
    from . import gather_norm_film_cases as rows
    from . import linear_attention_cases as linear
    from . import plan_cases as plan

    for family in (attention, plan, linear, rows):
        yield from family.cases()


def table(results: list[CompileResult]) -> str:
    """Return the results as a table of text."""
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
    """Compile what is asked for, print a table, and return 1 where something is refused."""
    parser = argparse.ArgumentParser(prog="python -m saccade.kernels.gate.compile", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of kernel names; all kernels without")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET: got 1, expected it unset: interpreted kernels cannot be compiled")
    results = []
    for case in cases():
        if not options.names or any(part in case.name for part in options.names):
            results.append(try_compile(case))
            print(table(results[-1:]).split("\n")[1], flush=True)
    refused = [result for result in results if result.complaints]
    print(f"\n{table(results)}\n\n{len(results)} kernels built, {len(refused)} refused")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if refused or not results else 0


if __name__ == "__main__":
    sys.exit(main())
