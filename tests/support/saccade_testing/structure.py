"""Read the structure of the package: its modules, their imports of each other, and circular imports.

Imports inside functions and for type checking count like all others.
"""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter

from . import TESTS

ROOT = TESTS.parent
BASE_MODULES = ("errors", "disk", "machine", "ranges")
LAYERS = {
    **dict.fromkeys(BASE_MODULES, ("errors",)),
    "kernels": (),
    "perception": (*BASE_MODULES, "kernels"),
    "policy": (*BASE_MODULES, "kernels", "perception"),
    "training": (*BASE_MODULES, "policy"),
    "sim": (*BASE_MODULES, "policy.contract"),
    "robot": (*BASE_MODULES, "policy.contract"),
}
"""What each part of the package may import; `scripts` and `__init__.py` of the package may import everything."""


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
    """Return the modules that every module imports; the lazy `__init__.py` of the package is left out."""
    graph = {name: set() for name in find_modules() if name}
    for name, origin, _ in find_imports():
        if name and origin not in ("", name):
            graph[name].add(origin)
    return graph


def folder_graphs():
    """Return for every folder the graph of imports between its children (files and folders)."""
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


def find_cycle(graph):
    """Return a cycle of a graph as text, an empty string if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def duplicate_class_names():
    """Return the class names that are defined several times, with their modules."""
    places = defaultdict(list)
    for name, (_, tree) in find_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def imports_against_layers():
    """Return imports of a higher layer by a lower one, and pairs of children of a folder that import each other."""
    up = {
        f"{name} -> {origin}"
        for name, origin, _ in find_imports()
        if (part := name.split(".")[0]) in LAYERS
        and not any(origin == each or origin.startswith(f"{each}.") for each in (part, *LAYERS[part]))
    }
    both = {
        f"{folder}: {first} -> {second}"
        for folder, graph in folder_graphs().items()
        for first, seconds in graph.items()
        for second in seconds
        if first in graph.get(second, ())
    }
    return up | both


def count_modules():
    """Return the number of modules in every folder, without `__init__.py`."""
    files = defaultdict(int)
    for path, _ in find_modules().values():
        files[str(path.parent.relative_to(ROOT))] += path.name != "__init__.py"
    return files
