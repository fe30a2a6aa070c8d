"""The house: imports point one way, names are unique, folders and files stay small.

CONTRIBUTING.md draws the floors. Imports inside functions and for type checking count like all others.
"""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = ("errors", "disk", "machine", "ranges")
FLOORS = {
    **{module: ("errors",) for module in GROUND},
    "kernels": (),
    "perception": (*GROUND, "kernels"),
    "policy": (*GROUND, "kernels", "perception"),
    "training": (*GROUND, "policy"),
    "sim": (*GROUND, "policy.contract"),
    "robot": (*GROUND, "policy.contract"),
}
"""What each part may import of the package; `scripts` and the package's own face may import everything."""

MOST_FILES, MOST_LINES = 16, 420


@cache
def find_modules():
    """Return the dotted names below the package of all its modules, with their files and syntax trees."""
    folders = ("kernels", "perception", "policy", "training", "sim", "robot", "scripts")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    modules = {}
    for path in files:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        modules[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    modules.pop("lerobot_policy_saccade")  # the plugin, beside the package
    return modules


@cache
def find_imports():
    """Return the package's own imports as (module, origin, name); the name is None where the origin is a module."""
    modules, found = find_modules(), []
    for name, (path, tree) in modules.items():
        package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                parts = package[: len(package) - node.level + 1]
                origin = ".".join([*parts, *(node.module or "").split(".")]).strip(".")
            elif node.module and node.module.split(".")[0] == "saccade":
                origin = node.module.removeprefix("saccade").lstrip(".")
            else:
                continue
            for alias in node.names:
                inner = f"{origin}.{alias.name}".strip(".")
                found.append((name, inner, None) if inner in modules else (name, origin, alias.name))
    return found


def import_graph():
    """Return for every module which modules it imports; the package's own face, which imports lazily, is left out."""
    graph = {name: set() for name in find_modules() if name}
    for name, origin, _ in find_imports():
        if name and origin not in ("", name):
            graph[name].add(origin)
    return graph


def folder_graphs():
    """Return for every folder which of its children (files and folders) import which."""
    folders = defaultdict(lambda: defaultdict(set))
    for name, origins in import_graph().items():
        for origin in origins:
            first, second = name.split("."), origin.split(".")
            shared = 0
            while shared < min(len(first), len(second)) and first[shared] == second[shared]:
                shared += 1
            if shared < len(first) and shared < len(second):
                folders[".".join(first[:shared])][first[shared]].add(second[shared])
    return folders


def circle(graph):
    """Return a circle of a graph as text, nothing where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def test_every_import_finds_its_module():
    assert not {(name, origin) for name, origin, _ in find_imports() if origin and origin not in find_modules()}


def test_no_modules_import_in_a_circle():
    assert circle(import_graph()) == ""


def test_what_is_in_a_folder_can_be_put_in_an_order_in_which_imports_point_one_way():
    circles = {folder or "the package": circle(graph) for folder, graph in folder_graphs().items()}
    assert not {folder: found for folder, found in circles.items() if found}


@pytest.mark.parametrize("part", FLOORS)
def test_no_import_goes_up_the_floors(part):
    allowed = (part, *FLOORS[part])
    up = {
        f"{name} -> {origin}"
        for name, origin, _ in find_imports()
        if name.split(".")[0] == part and not any(origin == each or origin.startswith(f"{each}.") for each in allowed)
    }
    assert not up


def test_no_class_name_stands_for_two_things():
    places = defaultdict(list)
    for name, (_, tree) in find_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_private_name_is_imported_from_another_file():
    names = [(name, origin, imported) for name, origin, imported in find_imports() if imported]
    private = {each for each in names if each[2].startswith("_") and not each[2].startswith("__")}
    assert not private


def test_folders_and_files_stay_small():
    files, long = defaultdict(int), {}
    for name, (path, _) in find_modules().items():
        files[path.parent] += path.name != "__init__.py"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            long[name] = lines
    full = {str(folder.relative_to(ROOT)): count for folder, count in files.items() if count > MOST_FILES}
    assert not full
    assert not long
