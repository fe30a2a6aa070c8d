"""The `saccade` command line: finds the command, reads its options, and turns errors into one line and an exit code.

Nothing heavy is imported here, and a command's module is imported only when that command was asked for: `--help`
answers within a second.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import inspect
import io
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SaccadeError, unknown_name

DISTRIBUTION = "lerobot_policy_saccade"
USAGE_ERROR, INTERRUPTED = 2, 130

RESUME_HINT = "What is on disk is kept: repeat the command with --resume to go on."

DISK_WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""What a disk says when it takes no more: the user can mend it, so it is bad input and no fault of the program."""


OPENMP_SPIN_COUNT = "3000"
"""How often a thread of torch's looks whether the others are done before it sleeps: a hundredth of OpenMP's own count.

An idle machine trains as fast with it. On a busy one, where threads that wait keep the others from running, two threads
train 1.4 times as fast beside one busy process, and 2.5 times beside an evaluation.
"""


@dataclass(frozen=True)
class CommandSpec:
    """A command: `module` holds its options, the type `options`, and `run(options)`, which returns the exit code."""

    module: str
    options: str
    summary: str
    examples: tuple[str, ...]
    interrupt_hint: str = RESUME_HINT


COMMANDS = {
    "quickstart": CommandSpec(
        module="quickstart.command",
        options="QuickstartConfig",
        summary="the whole way in 20 minutes: collect, train, evaluate, report",
        examples=(
            "saccade quickstart",
            "saccade quickstart --out first_try --demonstrations 30",
            "saccade quickstart --from-scratch    # hours: without the checkpoint that ships in the package",
        ),
        interrupt_hint="What is on disk is kept: repeat the command to go on where it stopped.",
    ),
    "collect": CommandSpec(
        module="collect",
        options="CollectConfig",
        summary="demonstrations of the desk's tasks or LIBERO's, as a LeRobotDataset",
        examples=(
            "saccade collect --out data/desk",
            "saccade collect --out data/cubes --suites desk_object --tasks red_cube green_cube --episodes 100",
            "saccade collect --out data/soup --suites libero_object --tasks 0 --visuals fast",
            "saccade collect --out data/desk --resume    # carry on after an interruption",
        ),
    ),
    "train": CommandSpec(
        module="train.command",
        options="TrainConfig",
        summary="a policy from demonstrations",
        examples=(
            "saccade train --data data/cubes --out runs/cubes --init starter --steps 1500",
            "saccade train --data data/desk data/cubes --out runs/scratch --steps 20000",
            "saccade train --data data/cubes --out runs/cubes --init starter --steps 1500 --resume",
            "accelerate launch -m saccade.scripts.main train --data data/desk --out runs/two_gpus",
        ),
    ),
    "eval": CommandSpec(
        module="evaluate.command",
        options="EvaluateConfig",
        summary="a policy judged in simulation, with intervals and a report",
        examples=(
            "saccade eval    # the starter, on the tasks that it knows",
            "saccade eval runs/cubes --suites desk_object --tasks red_cube --episodes 50 --out results/cubes",
            "saccade eval runs/goal --suites libero_goal --tasks 0 3 --protocol openvla",
            "saccade eval runs/cubes --swap object              # does it read, or does it guess?",
            "saccade eval starter --perturb all=1,3,5           # what is left when camera, light, words ... change?",
        ),
    ),
    "merge": CommandSpec(
        module="merge",
        options="MergeConfig",
        summary="several skills as one policy, which finds out which of them is asked for",
        examples=(
            "saccade merge runs/drawer runs/cubes -o runs/both",
            "saccade merge runs/drawer runs/cubes runs/pouring -o runs/three --merge all --method wudi --explain",
            "saccade merge runs/drawer runs/cubes --explain    # only look where they would disturb each other",
        ),
        interrupt_hint="Nothing was written; repeat the command.",
    ),
    "import": CommandSpec(
        module="import_checkpoint",
        options="ImportConfig",
        summary="a released CogVLA, OpenVLA-OFT, VLA-Adapter or MergeVLA checkpoint as one of ours",
        examples=(
            "saccade import downloads/cogvla-libero-goal --out runs/goal --platform libero",
            "saccade import downloads/oft --out runs/oft --platform libero --statistics libero_goal_no_noops",
            "saccade import downloads/cogvla --trunk-base downloads/openvla-7b --out runs/goal --platform libero",
        ),
        interrupt_hint="Nothing was written; repeat the command.",
    ),
    "serve": CommandSpec(
        module="serve",
        options="ServeConfig",
        summary="a policy for arms that do not carry it, over websocket",
        examples=(
            "saccade serve runs/cubes    # prints the address and a token made for this run",
            "saccade serve runs/cubes --port 8000 --token-file ~/.saccade_token --device cuda",
            "saccade serve runs/cubes --host 0.0.0.0 --certificate server.pem --key server.key --token-file token",
        ),
        interrupt_hint="Nothing is left behind.",
    ),
    "run": CommandSpec(
        module="run.command",
        options="RunConfig",
        summary="a policy that drives an arm: the virtual SO-101, or a real one",
        examples=(
            "saccade run starter --task desk_object/red_cube --episodes 3    # the virtual SO-101, no hardware",
            "saccade run --policy ws://127.0.0.1:8000 --token-file token --task desk_spatial/left",
            "saccade run starter --task desk_object/red_cube --record data/arm --live-file arm.rrd",
            "saccade run runs/arm --robot so101 --port /dev/ttyACM0 --robot-id my_arm --cameras front=opencv:0 "
            'wrist=opencv:2 --instruction "put the red cube in the bin"    # a dry run; then again with --move',
        ),
        interrupt_hint="The arm holds its pose; summary and flight record are in the run's folder.",
    ),
    "report": CommandSpec(
        module="report",
        options="ReportConfig",
        summary="the report of one evaluation, or of several side by side",
        examples=(
            "saccade report results/cubes",
            "saccade report results/before results/after --out results/comparison.html",
        ),
        interrupt_hint="Repeat the command; the evaluations are untouched.",
    ),
    "bench": CommandSpec(
        module="bench.command",
        options="BenchConfig",
        summary="how fast policies, kernels and the simulator are, how reliable the demonstrator",
        examples=(
            "saccade bench latency    # FLOPs, bytes and time of a decision, beside a dense policy and LeRobot's",
            "saccade bench kernels --families history --out kernels    # attention beside torch's, behind a check",
            "saccade bench sim",
            "saccade bench demonstrator --suites desk_spatial --out demonstrator.json",
        ),
        interrupt_hint="Repeat the command; a measurement starts anew.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 3 the world failed, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(overview(), file=sys.stderr)
        return USAGE_ERROR
    name, *options = arguments
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"saccade {importlib.metadata.version(DISTRIBUTION)}")
        return 0
    with _report_errors(name) as status:
        command = COMMANDS.get(name)
        if command is None:
            raise unknown_name("command", name, COMMANDS)
        limit_openmp_spinning(os.environ)
        module = importlib.import_module(f".{command.module}", __package__)
        status.code = module.run(parse(name, command, getattr(module, command.options), options))
    return status.code


def limit_openmp_spinning(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep soon where they wait, unless the user has said how; holds from torch's import on."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = OPENMP_SPIN_COUNT


def overview() -> str:
    """Return what `saccade --help` says."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: saccade COMMAND [OPTIONS]",
        "",
        "Vision-language-action policies that look where the instruction points: train, evaluate, deploy.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "examples:",
        *(f"  {command.examples[0]}" for command in COMMANDS.values()),
        "",
        "`saccade COMMAND --help` explains a command's options; `saccade --version` tells the version.",
    ]
    return "\n".join(lines)


def parse(name: str, command: CommandSpec, options: Any, arguments: Sequence[str]) -> Any:
    """Return a command's options as its dataclass; leaves with tyro's message and code 2 for a wrong usage.

    Raises the InputError of options whose values were refused by the dataclass itself.
    """
    import tyro

    # A choice of several dataclasses has no words of its own.
    purpose = inspect.getdoc(options) if isinstance(options, type) else f"Find out {command.summary}."
    description = "\n".join([purpose or "", "", "examples:", *(f"  {example}" for example in command.examples)])
    captured_stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured_stderr):
            return tyro.cli(
                options,
                args=arguments,
                prog=f"saccade {name}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as exit_error:
        # tyro draws a box around every ValueError; ours say in one line what to do, so they are brought back.
        cause: BaseException | None = exit_error
        while cause is not None:
            if isinstance(cause, SaccadeError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(captured_stderr.getvalue())
        raise


@dataclass
class _ExitStatus:
    """The exit code, once it is known."""

    code: int = 1


@contextlib.contextmanager
def _report_errors(name: str) -> Iterator[_ExitStatus]:
    """Turn what a user can mend into one line on stderr; anything else is a fault of ours and keeps its traceback."""
    status = _ExitStatus()
    try:
        yield status
    except SystemExit as exit_error:
        status.code = exit_error.code if isinstance(exit_error.code, int) else int(exit_error.code is not None)
    except SaccadeError as error:
        status.code = error.exit_code
        print(f"saccade: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        status.code = INTERRUPTED
        # The terminal has printed ^C, most often behind a progress bar.
        print(f"\nsaccade: interrupted. {COMMANDS[name].interrupt_hint}", file=sys.stderr)
    except OSError as error:
        if error.errno not in DISK_WRITE_ERRNOS:
            raise
        disk_error = InputError(
            f"writing {error.filename}" if error.filename else "writing to the disk",
            got=error.strerror,
            expected="a folder with free space that you may write to",
            fix=f"Make room, or choose another folder. {COMMANDS[name].interrupt_hint}",
        )
        status.code = disk_error.exit_code
        print(f"saccade: error: {disk_error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
