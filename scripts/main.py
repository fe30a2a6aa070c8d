"""The `saccade` command line: find the command, parse its options, and turn errors into one line and an exit code.

`--help` answers within a second: nothing heavy is imported here, and only the module of the chosen command is imported.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import inspect
import io
import os
import shutil
import sys
import textwrap
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SaccadeError, unknown_name

DISTRIBUTION = "lerobot_policy_saccade"
USAGE_ERROR, INTERRUPTED = 2, 130
MAX_HELP_WIDTH = 100

RESUME_HINT = "Everything on disk is kept. Repeat the command with --resume to continue."

DISK_WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""Errors of a disk that is full, read-only or not permitted. The user can fix them, so they count as bad input."""

OPENMP_SPIN_COUNT = "3000"
"""How many times a waiting thread of PyTorch polls before it sleeps: a hundredth of OpenMP's default.

An idle machine trains equally fast with it. On a busy machine, waiting threads keep other threads from running: with
this value two threads train 1.4 times as fast next to one busy process, and 2.5 times next to an evaluation.
"""


@dataclass(frozen=True)
class CommandSpec:
    """One command of the command line.

    Attributes:
        module: Module below `saccade.scripts`. Its function `run(options)` executes the command and returns the exit
            code.
        options: Name of the options in that module: a dataclass, or a union of dataclasses for subcommands.
        summary: What the command does, for `saccade --help`; begins with a verb.
        examples: Command lines for `--help`; the first one is shown by `saccade --help`, too.
        interrupt_hint: What the user can do after Ctrl-C or a full disk.
    """

    module: str
    options: str
    summary: str
    examples: tuple[str, ...]
    interrupt_hint: str = RESUME_HINT


COMMANDS = {
    "quickstart": CommandSpec(
        module="quickstart.command",
        options="QuickstartConfig",
        summary="collect demonstrations, train, evaluate and report, in 20 minutes",
        examples=(
            "saccade quickstart",
            "saccade quickstart --out first_try --demonstrations 30",
            "saccade quickstart --from-scratch    # takes hours: without the starter checkpoint",
        ),
        interrupt_hint="Everything on disk is kept. Repeat the command to continue.",
    ),
    "collect": CommandSpec(
        module="collect",
        options="CollectConfig",
        summary="collect demonstrations in simulation (desk or LIBERO) as a LeRobotDataset",
        examples=(
            "saccade collect --out data/desk",
            "saccade collect --out data/cubes --suites desk_object --tasks red_cube green_cube --episodes 100",
            "saccade collect --out data/soup --suites libero_object --tasks 0 --visuals fast",
            "saccade collect --out data/desk --resume    # continue after an interruption",
        ),
    ),
    "train": CommandSpec(
        module="train.command",
        options="TrainConfig",
        summary="train a policy on demonstrations",
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
        summary="evaluate a policy in simulation, with confidence intervals and a report",
        examples=(
            "saccade eval    # the starter checkpoint, on the tasks that it was trained on",
            "saccade eval runs/cubes --suites desk_object --tasks red_cube --episodes 50 --out results/cubes",
            "saccade eval runs/goal --suites libero_goal --tasks 0 3 --protocol openvla",
            "saccade eval runs/cubes --swap object    # does it follow the instruction?",
            "saccade eval starter --perturb all=1,3,5    # how robust is it to camera, light, language ...?",
        ),
    ),
    "merge": CommandSpec(
        module="merge",
        options="MergeConfig",
        summary="merge several skills into one policy, which selects the skill for each instruction",
        examples=(
            "saccade merge runs/drawer runs/cubes -o runs/both",
            "saccade merge runs/drawer runs/cubes runs/pouring -o runs/three --merge all --method wudi --explain",
            "saccade merge runs/drawer runs/cubes --explain    # only show where the skills conflict",
        ),
        interrupt_hint="Nothing was written. Repeat the command.",
    ),
    "import": CommandSpec(
        module="import_checkpoint",
        options="ImportConfig",
        summary="import a released checkpoint of CogVLA, OpenVLA-OFT, VLA-Adapter or MergeVLA",
        examples=(
            "saccade import downloads/cogvla-libero-goal --out runs/goal --platform libero",
            "saccade import downloads/oft --out runs/oft --platform libero --statistics libero_goal_no_noops",
            "saccade import downloads/cogvla --trunk-base downloads/openvla-7b --out runs/goal --platform libero",
        ),
        interrupt_hint="Nothing was written. Repeat the command.",
    ),
    "serve": CommandSpec(
        module="serve",
        options="ServeConfig",
        summary="serve a policy to other machines over websocket",
        examples=(
            "saccade serve runs/cubes    # prints the address and a new token",
            "saccade serve runs/cubes --port 8000 --token-file ~/.saccade_token --device cuda",
            "saccade serve runs/cubes --host 0.0.0.0 --certificate server.pem --key server.key --token-file token",
        ),
        interrupt_hint="The server is stopped. No files were written.",
    ),
    "run": CommandSpec(
        module="run.command",
        options="RunConfig",
        summary="run a policy on an arm: the virtual SO-101 or a real one",
        examples=(
            "saccade run starter --task desk_object/red_cube --episodes 3    # the virtual SO-101, no hardware",
            "saccade run --policy ws://127.0.0.1:8000 --token-file token --task desk_spatial/left",
            "saccade run starter --task desk_object/red_cube --record data/arm --live-file arm.rrd",
            (
                "saccade run runs/arm --robot so101 --port /dev/ttyACM0 --robot-id my_arm --cameras front=opencv:0 "
                'wrist=opencv:2 --instruction "put the red cube in the bin"    # a dry run; then again with --move'
            ),
        ),
        interrupt_hint="The arm holds its pose. The summary and the flight record are in the output folder (--out).",
    ),
    "report": CommandSpec(
        module="report",
        options="ReportConfig",
        summary="write the HTML report of one evaluation, or compare several",
        examples=(
            "saccade report results/cubes",
            "saccade report results/before results/after --out results/comparison.html",
        ),
        interrupt_hint="The evaluations are unchanged. Repeat the command.",
    ),
    "bench": CommandSpec(
        module="bench.command",
        options="BenchConfig",
        summary="measure the speed of policies, kernels and simulator, and the reliability of demonstrator and arm",
        examples=(
            "saccade bench latency    # FLOPs, memory and latency, compared with a dense policy and LeRobot's policies",
            "saccade bench kernels --families history --out kernels    # our attention compared with PyTorch's",
            "saccade bench sim",
            "saccade bench demonstrator --suites desk_spatial --out demonstrator.json",
        ),
        interrupt_hint="Repeat the command. `bench arm` and `bench merge` continue in --folder, others start again.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after `saccade`. Default: those of the process.

    Returns:
        The exit code: 0 success, 2 bad input, 3 the simulator or another part of the machine failed, 130 interrupted.
        Other errors are bugs and keep their traceback.
    """
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
    if name not in COMMANDS:
        return _report_error(unknown_name("command", name, COMMANDS))
    return _run_command(name, COMMANDS[name], options)


def _run_command(name: str, command: CommandSpec, arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; errors that the user can fix become one line on stderr."""
    limit_openmp_spinning(os.environ)
    try:
        module = importlib.import_module(f".{command.module}", __package__)
        return module.run(parse(name, command, getattr(module, command.options), arguments))
    except SystemExit as exit_error:  # tyro: --help, or a wrong usage
        return exit_error.code if isinstance(exit_error.code, int) else int(exit_error.code is not None)
    except SaccadeError as error:
        return _report_error(error)
    except KeyboardInterrupt:
        # The terminal has printed ^C, most often at the end of a progress bar.
        print(f"\nsaccade: interrupted. {command.interrupt_hint}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_WRITE_ERRNOS:
            raise
        return _report_error(
            InputError(
                f"writing {error.filename}" if error.filename else "writing to the disk",
                got=error.strerror,
                expected="a folder with free space that you may write to",
                fix=f"Free some disk space, or choose another folder. {command.interrupt_hint}",
            )
        )


def _report_error(error: SaccadeError) -> int:
    """Print an error as one line on stderr and return its exit code."""
    print(f"saccade: error: {error}", file=sys.stderr)
    return error.exit_code


def limit_openmp_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads sleep early, unless the user has set how they wait.

    Args:
        environment: The variables of the process; OpenMP reads them when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = OPENMP_SPIN_COUNT


def overview() -> str:
    """Return the text of `saccade --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: saccade COMMAND [OPTIONS]",
        "",
        "Train, evaluate and deploy vision-language-action policies that look where the instruction points.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "examples:",
        *(f"  {command.examples[0]}" for command in COMMANDS.values()),
        "",
        "`saccade COMMAND --help` lists the options of a command. `saccade --version` prints the version.",
    ]
    return "\n".join(lines)


def parse(name: str, command: CommandSpec, options: Any, arguments: Sequence[str]) -> Any:
    """Parse the arguments of a command with tyro.

    Args:
        name: Name of the command.
        command: Its summary and examples, for the help.
        options: The type to parse: a dataclass, or a union of dataclasses.
        arguments: The arguments after the name.

    Returns:
        An instance of `options`.

    Raises:
        InputError: The dataclass refused a value.
        SystemExit: The user asked for help (code 0), or the usage is wrong (code 2); tyro has printed why.
    """
    import tyro

    captured_stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured_stderr):
            return tyro.cli(
                options,
                args=arguments,
                prog=f"saccade {name}",
                description=_describe(name, command, options),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as exit_error:
        # tyro prints a ValueError in a box of several lines. An InputError is one line: find it and raise it again.
        cause: BaseException | None = exit_error
        while cause is not None:
            if isinstance(cause, SaccadeError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(captured_stderr.getvalue())
        raise


def _describe(name: str, command: CommandSpec, options: Any) -> str:
    """Return the text above the options in a command's help: the docstring of the options, and examples.

    tyro joins lines that begin with a letter. The paragraphs are wrapped here and indented, so that it keeps them.
    """
    if isinstance(options, type):
        purpose = inspect.getdoc(options) or ""
    else:  # a union of subcommands has no docstring
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        purpose = f"{summary}\n\n`saccade {name} SUBCOMMAND --help` lists the options of a subcommand."
    summary, *paragraphs = purpose.split("\n\n")
    width = min(shutil.get_terminal_size().columns, MAX_HELP_WIDTH)
    body = ["\n".join(textwrap.wrap(each, width, initial_indent="  ", subsequent_indent="  ")) for each in paragraphs]
    examples = "\n".join(["examples:", *(f"  {example}" for example in command.examples)])
    return "\n".join([" ".join(summary.split()), *body, "", examples])


if __name__ == "__main__":
    sys.exit(main())
