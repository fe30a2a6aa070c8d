"""One hash of a folder's sources that changes when results can change, and not when comments do."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

SOURCE_SUFFIXES = (".py", ".xml", ".json")


def hash_sources(folder: Path) -> str:
    """Return one sha256 over the sources below a folder, in the order of their names.

    Of a .py file it counts the syntax tree without docstrings, comments and formatting (type annotations count), of a
    .json file the parsed content, of a .xml file the bytes. File names count, too.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in SOURCE_SUFFIXES and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(_canonical_content(path)).digest())
    return digest.hexdigest()


def _canonical_content(path: Path) -> bytes:
    if path.suffix == ".py":
        return json.dumps(_canonical_tree(ast.parse(path.read_bytes()))).encode()
    if path.suffix == ".json":
        return json.dumps(json.loads(path.read_bytes())).encode()
    return path.read_bytes()


def _canonical_tree(node: Any) -> Any:
    """Return a syntax tree as nested lists without positions, docstrings and empty fields.

    Newer Python versions add fields to nodes, such as `type_params`; where they are empty they do not change the hash.
    """
    if isinstance(node, ast.AST):
        fields = (
            (name, value)
            for name, value in ast.iter_fields(node)
            if name != "kind" and value is not None and value != []  # kind: the prefix of u"text"
        )
        return [type(node).__name__, [[name, _canonical_tree(value)] for name, value in fields]]
    if isinstance(node, list):
        return [_canonical_tree(each) for each in node if not _is_bare_string(each)]
    return f"{type(node).__name__} {node!r}"


def _is_bare_string(statement: Any) -> bool:
    """Tell whether a statement is a docstring, or a string below a constant that documents it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
