"""The declarations in pyproject.toml match the package and the environment."""

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text().split()
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
CODE = [path for path in FOLDERS if path.name not in ("tests", "build", "dist", "runs", "quickstart")]


def test_constraints_file_matches_pyproject():
    """Run `python .ci/pins.py` after a change of a pin in pyproject.toml."""
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == CONSTRAINTS
    assert sorted(CONSTRAINTS) == CONSTRAINTS


def test_constraints_are_exact_versions():
    assert not [line for line in CONSTRAINTS if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line)]
    assert "mujoco==3.3.2" in CONSTRAINTS and "lerobot==0.6.1" in CONSTRAINTS


def test_every_dependency_is_pinned():
    project = PROJECT["project"]
    required = [*project["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    required += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement).group().lower() for requirement in required}
    assert names - {project["name"]} <= {line.split("==")[0] for line in CONSTRAINTS}


def test_installed_versions_match_the_pins():
    mismatched = {}
    for line in CONSTRAINTS:
        name, version = line.split("==")
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        if installed.partition("+")[0] != version:
            mismatched[name] = (installed, version)
    assert not mismatched


def test_listed_packages_match_the_folders():
    found = {
        ".".join(("saccade", *path.parent.relative_to(ROOT).parts))
        for path in (inner for folder in CODE for inner in folder.rglob("__init__.py"))
    }
    assert {"saccade", *found} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_package_data_is_declared():
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    assert declared["saccade"] == ["py.typed", "starter/*"] and (ROOT / "py.typed").is_file()
    templates = [path for folder in CODE for path in folder.rglob("*.jinja")]
    assert templates and {path.parent for path in templates} == {ROOT / "sim" / "report"}
    assert declared["saccade.sim.report"] == ["*.jinja"]


def test_license_is_apache_2_0():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_check_script_is_executable_and_valid():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_contain_no_absolute_paths(name):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|opt)/", (ROOT / name).read_text())
