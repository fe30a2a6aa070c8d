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

from .case import Case

CAPABILITY = 90
SHARED_MEMORY = 227 * 1024
"""Bytes that a program may use on compute capability 9.0."""


@dataclass(frozen=True)
class Built:
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


def compile_case(case: Case) -> Built:
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
    built = Built(
        case.name,
        registers,
        stack + local,
        compiled.metadata.shared,
        len(re.findall(r"wgmma\.mma_async", assembly)),
        len(re.findall(r"mma\.sync", assembly)),
        len(re.findall(r"cp\.async\.c[ag]", assembly)),
        round(time.perf_counter() - began, 1),
    )
    built.complaints.extend(_complaints(case, built))
    return built


def attempt(case: Case) -> Built:
    """Compile one case; one that cannot be compiled is a complaint like any other."""
    from triton.compiler.errors import CompilationError

    began = time.perf_counter()
    try:
        return compile_case(case)
    except (CompilationError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        seconds = round(time.perf_counter() - began, 1)
        return Built(case.name, 0, 0, 0, 0, 0, 0, seconds, [f"cannot be compiled: {reason[0]}"])


def _complaints(case: Case, built: Built) -> Iterator[str]:
    if built.spilled > case.spill:
        yield f"keeps {built.spilled} bytes of registers in memory, {case.spill} allowed"
    if built.shared > SHARED_MEMORY:
        yield f"needs {built.shared} bytes of shared memory, there are {SHARED_MEMORY}"
    if case.tensor_cores and not built.warpgroup_products + built.warp_products:
        yield "has no product on tensor cores"
    if case.pipelined and not built.copies:
        yield "waits for every load"


def cases() -> Iterator[Case]:
    """Yield all shipped kernels, as they are launched."""
    from . import block_sparse_cases as attention
    from . import gather_norm_film_cases as rows
    from . import linear_attention_cases as linear
    from . import plan_cases as plan

    for family in (attention, plan, linear, rows):
        yield from family.cases()


def table(results: list[Built]) -> str:
    """Return the results as a table of text."""
    width = max([len(built.name) for built in results], default=4)
    lines = [f"{'kernel':{width}}  regs  spill  shared KiB  wgmma  mma  cp.async  seconds"]
    lines += [
        f"{built.name:{width}}  {built.registers:4d}  {built.spilled:5d}  {built.shared / 1024:10.1f}"
        f"  {built.warpgroup_products:5d}  {built.warp_products:3d}  {built.copies:8d}  {built.seconds:7.1f}"
        + "".join(f"  ! {complaint}" for complaint in built.complaints)
        for built in results
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
            results.append(attempt(case))
            print(table(results[-1:]).split("\n")[1], flush=True)
    refused = [built for built in results if built.complaints]
    print(f"\n{table(results)}\n\n{len(results)} kernels built, {len(refused)} refused")
    if options.json:
        options.json.write_text(json.dumps([asdict(built) for built in results], indent=1) + "\n")
    return 1 if refused or not results else 0


if __name__ == "__main__":
    sys.exit(main())
