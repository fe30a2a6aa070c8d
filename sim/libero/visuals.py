"""How a scene is rendered: as robosuite ships it, or several times faster on a machine without a GPU.

`stock` changes nothing. `fast` renders the robot, which has four fifths of all triangles, with a tenth of them, and
turns antialiasing and mirrors off. Only the rendering changes: collision geometries, masses and joints stay, so an
episode of given actions is bit-identical. Images differ, so do not mix results of the two.
"""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Literal, cast, get_args

import mujoco
import numpy as np

from ...disk import write_atomically
from ...errors import InputError, suggest

Visuals = Literal["stock", "fast"]

CELLS = 24
"""Grid cells along a mesh's longest side; the vertices within a cell become one."""

FEWEST_FACES = 800
"""Meshes with fewer triangles are not simplified."""

STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
"""One triangle of a binary STL file."""


def check_visuals(name: str) -> Visuals:
    """Return the name of the visuals; raises InputError for an unknown one."""
    if name not in get_args(Visuals):
        raise InputError("visuals", got=repr(name), expected="stock or fast", fix=suggest(name, get_args(Visuals)))
    return cast(Visuals, name)


def cache_folder() -> Path:
    """Return the cache for simplified meshes and for results of the physics check."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "saccade" / "libero"


def simplify_scene(scene: str, meshes: Path) -> str:
    """Return a scene with the changes of `fast`, for robosuite's `set_xml_processor`.

    Args:
        scene: The scene's MJCF XML.
        meshes: Folder for the simplified meshes.

    Returns:
        The changed XML.
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
    """Return the file of a simplified mesh, written at the first call.

    Args:
        source: A mesh file that MuJoCo reads.
        folder: Folder for simplified meshes.

    Returns:
        The simplified mesh's STL file in `folder`, or `source` if it has few triangles.
    """
    content = source.read_bytes()
    name = hashlib.sha256(content + f"/{CELLS}/{FEWEST_FACES}".encode()).hexdigest()[:16]
    target = folder / f"{source.stem}-{name}.stl"
    if target.is_file():
        return target
    vertices, faces = read_mesh(source)
    if len(faces) < FEWEST_FACES:
        return source
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(target, encode_stl(*cluster_vertices(vertices, faces)))
    return target


def read_mesh(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mesh with MuJoCo.

    Args:
        source: A mesh file that MuJoCo reads.

    Returns:
        Vertices float64 [n, 3] in the file's frame and units, and faces int [m, 3] that index them.
    """
    mj = cast(Any, mujoco)  # type checkers cannot see the names of its extension modules
    spec = mj.MjSpec()
    spec.add_mesh(name="mesh", file=str(source))
    spec.worldbody.add_geom(type=mj.mjtGeom.mjGEOM_MESH, meshname="mesh")
    model = spec.compile()
    rotation = np.zeros(9)
    mj.mju_quat2Mat(rotation, model.mesh_quat[0])
    # The compiler moves a mesh to its centre of mass and rotates it to its principal axes; undo both.
    vertices = model.mesh_vert.astype(np.float64) @ rotation.reshape(3, 3).T + model.mesh_pos[0]  # [n, 3]
    return vertices, model.mesh_face.copy()


def cluster_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Simplify a mesh: the vertices in each cell of a grid become their mean (Rossignac and Borrel, 1993).

    Args:
        vertices: float64 [n, 3].
        faces: int [m, 3].

    Returns:
        Fewer vertices [k, 3] and the faces [l, 3] that keep three different corners.
    """
    low = vertices.min(axis=0)
    side = np.ptp(vertices, axis=0).max() / CELLS
    cells = np.floor((vertices - low) / side).astype(np.int64)  # [n, 3]
    _, cluster, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)  # [n], [k]
    cluster = cluster.reshape(-1)
    sums = np.stack([np.bincount(cluster, weights=vertices[:, axis]) for axis in range(3)], axis=1)  # [k, 3]
    means = sums / counts[:, None]
    corners = cluster[faces]  # [m, 3]
    kept = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    return means, np.unique(corners[kept], axis=0)


def encode_stl(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Return a mesh (vertices [n, 3], faces [m, 3]) as a binary STL file."""
    triangles = np.zeros(len(faces), STL_TRIANGLE)
    triangles["corners"] = vertices[faces]  # [m, 3, 3]
    return bytes(80) + np.uint32(len(faces)).tobytes() + triangles.tobytes()


def _is_only_drawn(geom: ElementTree.Element) -> bool:
    """Tell whether a geometry is visual only: it takes no part in collisions."""
    return geom.get("group") == "1" or (geom.get("contype") == "0" and geom.get("conaffinity") == "0")


def _child(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    """Return the first child of this tag; add one if there is none."""
    found = parent.find(tag)
    return ElementTree.SubElement(parent, tag) if found is None else found
