"""The structure of the package: layered imports, unique names, small folders and files."""

from saccade_testing.structure import (
    count_modules,
    duplicate_class_names,
    find_cycle,
    find_imports,
    find_modules,
    folder_graphs,
    import_graph,
    imports_against_layers,
)

MAX_FILES, MAX_LINES = 16, 420


def test_every_import_finds_its_module():
    assert not {(name, origin) for name, origin, _ in find_imports() if origin and origin not in find_modules()}


def test_modules_have_no_circular_imports():
    assert find_cycle(import_graph()) == ""


def test_folders_have_no_circular_imports():
    cycles = {folder or "the package": find_cycle(graph) for folder, graph in folder_graphs().items()}
    assert not {folder: found for folder, found in cycles.items() if found}


def test_imports_respect_the_layers():
    assert not imports_against_layers()


def test_class_names_are_unique():
    assert not duplicate_class_names()


def test_private_names_are_not_imported():
    names = [(name, origin, imported) for name, origin, imported in find_imports() if imported]
    private = {each for each in names if each[2].startswith("_") and not each[2].startswith("__")}
    assert not private


def test_folders_and_files_are_small():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, (path, _) in find_modules().items()}
    assert not {folder: count for folder, count in count_modules().items() if count > MAX_FILES}
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}
