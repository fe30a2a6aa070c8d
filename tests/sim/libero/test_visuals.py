"""Test the fast visuals: fewer triangles of the same shape, and unchanged physics."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.libero import visuals


def ball(rings=40):
    """Return a ball of radius 0.5 around (1, 2, 3) as vertices and faces."""
    azimuth, polar = np.meshgrid(np.linspace(0, 2 * np.pi, rings, endpoint=False), np.linspace(0, np.pi, rings))
    points = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1) / 2
    index = np.arange(rings * rings).reshape(rings, rings)
    here, right = index[:-1], np.roll(index, -1, axis=1)[:-1]
    below, corner = index[1:], np.roll(index, -1, axis=1)[1:]
    faces = np.concatenate(
        [np.stack(each, axis=-1).reshape(-1, 3) for each in ((here, below, right), (right, below, corner))]
    )
    return points.reshape(-1, 3) + np.array([1, 2, 3]), faces


def test_simplified_mesh_keeps_its_position_and_shape():
    vertices, faces = ball()
    fewer, triangles = visuals.cluster_vertices(vertices, faces)
    assert len(triangles) < 0.8 * len(faces) and triangles.max() < len(fewer)
    radii = np.linalg.norm(fewer - [1, 2, 3], axis=1)
    assert radii.min() > 0.48 and radii.max() <= 0.5 + 1e-9


def test_mesh_is_read_in_the_frame_of_its_file(tmp_path):
    vertices, faces = ball()
    (tmp_path / "ball.stl").write_bytes(visuals.encode_stl(vertices, faces))
    read, triangles = visuals.read_mesh(tmp_path / "ball.stl")
    np.testing.assert_allclose(read.min(axis=0), vertices.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(read.max(axis=0), vertices.max(axis=0), atol=1e-4)
    assert len(triangles) > 0.9 * len(faces)


def test_meshes_are_simplified_once_and_small_meshes_never(tmp_path):
    source, cache = tmp_path / "ball.stl", tmp_path / "cache"
    source.write_bytes(visuals.encode_stl(*ball()))
    target = visuals.simplify_mesh_file(source, cache)
    assert target.parent == cache and target.stat().st_size < source.stat().st_size
    written = target.stat().st_mtime_ns
    assert visuals.simplify_mesh_file(source, cache) == target and target.stat().st_mtime_ns == written
    small = tmp_path / "small.stl"
    small.write_bytes(visuals.encode_stl(*ball(rings=8)))
    assert visuals.simplify_mesh_file(small, cache) == small
    assert len(list(cache.iterdir())) == 1


def test_only_visual_geometries_are_changed(tmp_path):
    folder = tmp_path / "robosuite"
    folder.mkdir()
    for name in ("drawn", "solid", "both"):
        (folder / f"{name}.stl").write_bytes(visuals.encode_stl(*ball()))
    scene = f"""
    <mujoco><asset>
      <mesh name="drawn" file="{folder}/drawn.stl"/><mesh name="solid" file="{folder}/solid.stl"/>
      <mesh name="both" file="{folder}/both.stl"/><mesh name="thing" file="{tmp_path}/thing.stl"/>
      <material name="mirror" reflectance="0.5" specular="0.2"/>
    </asset><worldbody>
      <geom type="mesh" mesh="drawn" group="1" contype="0" conaffinity="0"/><geom type="mesh" mesh="solid" group="0"/>
      <geom type="mesh" mesh="both" group="1"/><geom type="mesh" mesh="both" group="0"/>
      <geom type="mesh" mesh="thing" group="1"/>
    </worldbody></mujoco>"""
    changed = ElementTree.fromstring(visuals.simplify_scene(scene, tmp_path / "cache"))
    files = {mesh.get("name", ""): mesh.get("file", "") for mesh in changed.iter("mesh")}
    assert files["drawn"].startswith(str(tmp_path / "cache"))
    assert files["solid"] == f"{folder}/solid.stl" and files["both"] == f"{folder}/both.stl"
    assert files["thing"] == f"{tmp_path}/thing.stl"
    material, quality = changed.find("asset/material"), changed.find("visual/quality")
    assert material is not None and material.attrib == {"name": "mirror", "specular": "0.2"}
    assert quality is not None and quality.get("offsamples") == "0"


def test_unknown_visuals_are_refused():
    with pytest.raises(InputError, match="visuals: got 'quick', expected stock or fast"):
        visuals.check_visuals("quick")
