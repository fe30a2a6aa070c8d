"""The house: imports point one way, names are unique, folders and files stay small.

CONTRIBUTING.md draws the floors. Imports inside functions and for type checking count like all others.
"""

import ast
from collections import defaultdict
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


def find_modules():
    """Return the dotted names below the package of all its modules, with their files."""
    folders = ("kernels", "perception", "policy", "training", "sim", "robot", "scripts")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in files
    }
    names.pop("lerobot_policy_saccade")  # the plugin, beside the package
    return names


MODULES = find_modules()


def imports_of(name, path):
    """Yield the module and the imported name of every import of the package's own modules in a file."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
            yield (inner, None) if inner in MODULES else (origin, alias.name)


GRAPH = {
    name: {origin for origin, _ in imports_of(name, path) if origin not in ("", name)}
    for name, path in MODULES.items()
    if name
}


def children_of_folders():
    """Return for every folder which of its children (files and folders) import which."""
    folders = defaultdict(lambda: defaultdict(set))
    for name, origins in GRAPH.items():
        for origin in origins:
            first, second = name.split("."), origin.split(".")
            shared = 0
            while shared < min(len(first), len(second)) and first[shared] == second[shared]:
                shared += 1
            if shared < len(first) and shared < len(second):
                folders[".".join(first[:shared])][first[shared]].add(second[shared])
    return folders


def test_every_import_finds_its_module():
    lost = {(name, origin) for name, origins in GRAPH.items() for origin in origins if origin not in MODULES}
    assert not lost


def test_no_modules_import_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("folder", sorted(children_of_folders()))
def test_what_is_in_a_folder_can_be_put_in_an_order_in_which_imports_point_one_way(folder):
    try:
        TopologicalSorter(children_of_folders()[folder]).prepare()
    except CycleError as error:
        pytest.fail(f"{folder or 'the package'}: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("part", FLOORS)
def test_no_import_goes_up_the_floors(part):
    allowed = (part, *FLOORS[part])
    up = {
        f"{name} -> {origin}"
        for name, origins in GRAPH.items()
        if name.split(".")[0] == part
        for origin in origins
        if not any(origin == each or origin.startswith(f"{each}.") for each in allowed)
    }
    assert not up


def test_no_class_name_stands_for_two_things():
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_private_name_is_imported_from_another_file():
    private = {
        f"{name}: {origin}.{imported}"
        for name, path in MODULES.items()
        for origin, imported in imports_of(name, path)
        if imported and imported.startswith("_") and not imported.startswith("__")
    }
    assert not private


def test_folders_and_files_stay_small():
    files = defaultdict(int)
    for path in MODULES.values():
        files[path.parent] += path.name != "__init__.py"
    full = {str(folder.relative_to(ROOT)): count for folder, count in files.items() if count > MOST_FILES}
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not full and not long
