"""The hash of a world's sources: constants and code change it; comments, docstrings and formatting do not."""

import json
from pathlib import Path

import pytest

from saccade.sim.source_hash import hash_sources

SOURCE = '''"""A scene."""

SIZE = 1.0
"""In metres."""


class Scene:
    """What stands there."""

    def height(self, scale: float = 2) -> float:
        """Return the height."""
        return SIZE * scale
'''


def hash_of(folder: Path, source: str, name: str = "scene.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(source)
    return hash_sources(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A scene.", "Another text."),
        ("In metres.", "In m."),
        ("Return the height.", "Height."),
        ('    """What stands there."""\n\n', ""),
        ("SIZE = 1.0", "SIZE = (1.0)  # a comment"),
        ("SIZE * scale", "(\n            SIZE\n            * scale\n        )"),
        ("scale: float = 2", "scale: float = 0x2"),
    ],
)
def test_comments_docstrings_and_formatting_do_not_change_the_hash(tmp_path, old, new):
    assert old in SOURCE
    assert hash_of(tmp_path, SOURCE.replace(old, new)) == hash_of(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIZE = 1.0", "SIZE = 1.5"),
        ("SIZE = 1.0", "SIZE = 1"),
        ("SIZE * scale", "SIZE + scale"),
        ("scale: float = 2", "scale: float = None"),
        ("scale: float = 2", "scale: float"),
        ("return SIZE", 'return "A scene." or SIZE'),
    ],
)
def test_constants_and_code_change_the_hash(tmp_path, old, new):
    assert old in SOURCE
    assert hash_of(tmp_path, SOURCE.replace(old, new)) != hash_of(tmp_path, SOURCE)


def test_json_is_hashed_by_content_and_xml_by_bytes(tmp_path):
    content = {"tasks": [1, 2]}
    first = hash_of(tmp_path, json.dumps(content), "tasks.json")
    assert hash_of(tmp_path, json.dumps(content, indent=4), "tasks.json") == first
    assert hash_of(tmp_path, json.dumps({"tasks": [2, 1]}), "tasks.json") != first
    assert hash_of(tmp_path, "<scene/>", "scene.xml") != hash_of(tmp_path, "<scene />", "scene.xml")


def test_file_names_change_the_hash_and_other_files_do_not(tmp_path):
    first = hash_of(tmp_path, SOURCE)
    (tmp_path / "notes.pyc").write_text("ignored")
    assert hash_sources(tmp_path) == first
    (tmp_path / "scene.py").rename(tmp_path / "other.py")
    assert hash_sources(tmp_path) != first


def test_hash_does_not_depend_on_the_python_version(tmp_path):
    # Computed with Python 3.12; a version that writes syntax trees differently must not change the hash.
    assert hash_of(tmp_path, SOURCE) == "589b0138ada99d5bf1cdb816d43fdbfe8f75752f5b02dc2e1666d05ca7cc5bb5"
