"""The package as a whole: the cost of its import, public names, moved modules, and its folder `kernels`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saccade
from saccade.moved import MOVED
from saccade.policy.contract import Contract

ROOT = Path(saccade.__file__).parent


@pytest.fixture(scope="module")
def library_installed():
    """Return whether a library called `kernels` is installed."""
    return any(name == "kernels" for name in importlib.metadata.packages_distributions())


def python(*arguments: str, path: Path | None = None) -> str:
    """Run Python in the repository's root, which `-c` and `-m` put first on the path, and return what it prints."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_is_fast_and_loads_no_heavy_library():
    script = """
import json, sys, time
before, began = set(sys.modules), time.process_time()
import saccade
spent = time.process_time() - began
print(json.dumps([spent, sorted(set(sys.modules) - before), saccade.__version__]))
"""
    spent, loaded, version = json.loads(python("-c", script))
    assert spent < 0.1
    assert not {"numpy", "torch", "lerobot", "transformers", "mujoco", "gymnasium"} & {
        name.split(".")[0] for name in loaded
    }
    assert version == importlib.metadata.version("lerobot_policy_saccade")


def test_public_names_are_imported_on_first_use():
    assert saccade.Contract is Contract
    assert set(saccade.__all__) <= set(dir(saccade))
    with pytest.raises(AttributeError, match="Contrat"):
        _ = saccade.Contrat


def test_kernels_folder_is_no_library_for_transformers(library_installed):
    script = """
import saccade, saccade.kernels
from transformers.utils import is_kernels_available
print(is_kernels_available())
"""
    assert python("-c", script).split() == [str(library_installed)]


def test_kernels_folder_imported_before_is_removed():
    script = """
import kernels, sys
import saccade
print("kernels" in sys.modules)
"""
    assert python("-c", script).split() == ["False"]


def test_installed_kernels_library_is_found(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    script = """
import saccade, kernels, saccade.kernels
print(kernels.WHOSE, hasattr(saccade.kernels, "WHOSE"))
"""
    assert python("-c", script, path=tmp_path).split() == ["theirs", "False"]


def test_kernels_folder_under_pytest_in_the_root(tmp_path, library_installed):
    (tmp_path / "test_kernels.py").write_text(
        "import sys, saccade\n"
        "from transformers.utils import is_kernels_available\n"
        "def test_kernels():\n"
        f"    assert {str(ROOT)!r} in sys.path or '' in sys.path\n"
        f"    assert is_kernels_available() == {library_installed}\n"
    )
    options = ("--import-mode=importlib", "-p", "no:cacheprovider", "-q", "--rootdir", str(tmp_path))
    assert "1 passed" in python("-m", "pytest", *options, str(tmp_path))


def test_import_of_a_moved_module_names_its_new_path():
    with pytest.raises(ModuleNotFoundError, match="saccade.policy.actor has moved: import saccade.policy.inf"):
        importlib.import_module("saccade.policy.actor")
    with pytest.raises(ModuleNotFoundError, match="No module named 'saccade.policy.nowhere'"):
        importlib.import_module("saccade.policy.nowhere")


def test_new_paths_exist_and_old_ones_do_not():
    for old, new in MOVED.items():
        assert (ROOT / f"{new.replace('.', '/')}.py").is_file(), new
        assert not (ROOT / f"{old.replace('.', '/')}.py").is_file(), old


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("saccade.robot.client", "RemotePolicy"),
        ("saccade.policy", "read_checkpoint"),
        ("saccade.policy.contract", "Contract"),
        ("saccade.policy.checkpoint", "read_checkpoint"),
        ("lerobot_policy_saccade", "SaccadeConfig"),
    ],
)
def test_public_imports_of_0_1_0_still_work(module, name):
    assert hasattr(importlib.import_module(module), name)
