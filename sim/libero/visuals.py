"""What a scene looks like: as robosuite ships it, or drawn several times faster on a machine without a GPU.

`stock` changes nothing. `fast` draws the robot, four fifths of all triangles, with a tenth of them, without
antialiasing and without mirrors. Only what is drawn changes: collision shapes, masses and joints stay, so that an
episode of given actions is the same to the last bit. Pictures differ, so results of the two must not be mixed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal, get_args

import mujoco
import numpy as np

from ...errors import InputError, suggest

Visuals = Literal["stock", "fast"]

CELLS = 24
"""Cells along a mesh's longest side; all corners within a cell become one."""

FEWEST_FACES = 800
"""Meshes with fewer triangles are left as they are."""

STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def check_visuals(name: str) -> Visuals:
    """Return the name of visuals; InputError for another one."""
    if name not in get_args(Visuals):
        raise InputError("visuals", got=repr(name), expected="stock or fast", fix=suggest(name, get_args(Visuals)))
    return name  # type: ignore[return-value]


def cache_folder() -> Path:
    """Return where simplified meshes are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "saccade" / "libero"


def simplify_scene(scene: str, meshes: Path) -> str:
    """Return a scene's XML with what `fast` changes; simplified meshes are kept in the folder `meshes`.

    Suits robosuite's `set_xml_processor`.
    """
    root = ElementTree.fromstring(scene)
    collides = {geom.get("mesh") for geom in root.iter("geom") if geom.get("mesh") and not _is_only_drawn(geom)}
    for mesh in root.iter("mesh"):
        path = Path(mesh.get("file", ""))
        if mesh.get("name") not in collides and "robosuite" in path.parts:
            mesh.set("file", str(simplify_mesh_file(path, meshes)))
    for material in root.iter("material"):
        material.attrib.pop("reflectance", None)
    visual = _child(root, "visual")
    _child(visual, "quality").set("offsamples", "0")
    return ElementTree.tostring(root, encoding="unicode")


def simplify_mesh_file(source: Path, folder: Path) -> Path:
    """Return the file of a mesh with fewer triangles, made at the first call; the mesh itself where it has few."""
    content = source.read_bytes()
    name = hashlib.sha256(content + f"/{CELLS}/{FEWEST_FACES}".encode()).hexdigest()[:16]
    target = folder / f"{source.stem}-{name}.stl"
    if target.is_file():
        return target
    vertices, faces = read_mesh(source)
    if len(faces) < FEWEST_FACES:
        return source
    folder.mkdir(parents=True, exist_ok=True)
    # Several workers may make the same mesh at once: each writes a file of its own, and the last one stays.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        file.write(encode_stl(*cluster_vertices(vertices, faces)))
    os.replace(file.name, target)
    return target


def read_mesh(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a mesh file's vertices float64 [n, 3], where the file has them, and faces int [m, 3]."""
    spec = mujoco.MjSpec()
    spec.add_mesh(name="mesh", file=str(source))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="mesh")
    model = spec.compile()
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.mesh_quat[0])
    # The compiler moves a mesh to its centre of mass and turns it to its principal axes.
    return model.mesh_vert.astype(np.float64) @ turn.reshape(3, 3).T + model.mesh_pos[0], model.mesh_face.copy()


def cluster_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a simplified mesh: the corners in each cell of a grid become their mean (Rossignac and Borrel, 1993)."""
    low = vertices.min(axis=0)
    side = np.ptp(vertices, axis=0).max() / CELLS
    cells = np.floor((vertices - low) / side).astype(np.int64)
    _, which, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    means = np.stack([np.bincount(which, weights=vertices[:, axis]) for axis in range(3)], axis=1) / counts[:, None]
    corners = which[faces]
    alive = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    return means, np.unique(corners[alive], axis=0)


def encode_stl(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Return a mesh as a binary STL file."""
    triangles = np.zeros(len(faces), STL_TRIANGLE)
    triangles["corners"] = vertices[faces]
    return bytes(80) + np.uint32(len(faces)).tobytes() + triangles.tobytes()


def _is_only_drawn(geom: ElementTree.Element) -> bool:
    return geom.get("group") == "1" or (geom.get("contype") == "0" and geom.get("conaffinity") == "0")


def _child(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = parent.find(tag)
    return ElementTree.SubElement(parent, tag) if found is None else found
