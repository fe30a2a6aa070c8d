import errno
import shlex
import subprocess
import sys

import pytest

from saccade.errors import InputError, WorldError
from saccade.scripts import report
from saccade.scripts.main import COMMANDS, OPENMP_SPIN_COUNT, limit_openmp_spinning, main, overview, parse

HEAVY = (
    "torch",
    "lerobot",
    "transformers",
    "mujoco",
    "gymnasium",
    "accelerate",
    "pyarrow",
    "matplotlib",
    "jinja2",
    "av",
)

PROBE = """
import sys, resource
from saccade.scripts.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, used.ru_utime + used.ru_stime, *(name for name in %r if name in sys.modules))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["bench", "sim", "--help"]]
)
def test_help_takes_less_than_a_second_and_imports_nothing_heavy(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE % (HEAVY,), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *text, last = done.stdout.splitlines()
    code, seconds, *heavy = last.split()
    assert code == "0" and not heavy
    assert float(seconds) < 1.0
    assert any("saccade" in line for line in text)
    if "sim" not in arguments:
        assert "examples:" in text and any(line.startswith("  saccade ") for line in text)


def test_the_module_runs_as_a_script():
    command = [sys.executable, "-m", "saccade.scripts.main", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("saccade 0.")


def examples():
    return [
        (name, shlex.split(example, comments=True))
        for name, command in COMMANDS.items()
        for example in command.examples
        if example.startswith("saccade")
    ]


@pytest.mark.parametrize(("name", "words"), examples())
def test_every_example_of_the_help_parses(name, words):
    import importlib

    assert words[:2] == ["saccade", name]
    module = importlib.import_module(f"saccade.scripts.{COMMANDS[name].module}")
    assert parse(name, COMMANDS[name], getattr(module, COMMANDS[name].options), words[2:]) is not None
    assert callable(module.run)


def test_no_command_prints_the_overview_as_an_error(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.strip() == overview()
    assert all(f"\n  {name} " in overview() for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["eval", "--episodes", "0"], "saccade: error: --episodes: got 0"),
        (["train", "--data", "x", "--out", "y", "--steps", "0"], "saccade: error: steps: got 0"),
        (["bench", "sim", "--task", "red_cub"], "Did you mean 'red_cube'?"),
        (["collect", "--out", "unused", "--suites", "desk_objects"], "Did you mean 'desk_object'?"),
        (["report", "no/such/folder"], "saccade: error: run folder: got no/such/folder"),
    ],
)
def test_bad_input_prints_one_line_and_exits_with_2(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("arguments", [["train", "--dat", "x"], ["eval", "--episodes", "many"], ["bench"]])
def test_wrong_usage_points_to_the_help(arguments, capsys):
    assert main(arguments) == 2
    assert f"saccade {arguments[0]} --help" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("n", got=1, expected="2", fix="Raise n."), 2, "saccade: error: n: got 1, expected 2. Raise n.\n"),
        (WorldError("no renderer"), 3, "saccade: error: no renderer\n"),
        (KeyboardInterrupt(), 130, "\nsaccade: interrupted. The evaluations are unchanged. Repeat the command.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/file"), 2, "writing a/file: got No space left on device"),
    ],
)
def test_each_error_has_its_exit_code(error, code, said, monkeypatch, capsys):
    def fail(config):
        raise error

    monkeypatch.setattr(report, "run", fail)
    assert main(["report", "folder"]) == code
    assert said in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(config):
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(report, "run", fail)
    with pytest.raises(FileNotFoundError):
        main(["report", "folder"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": OPENMP_SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_openmp_spinning_is_limited_unless_the_user_sets_it(before, after):
    environment = dict(before)
    limit_openmp_spinning(environment)
    assert environment == after
