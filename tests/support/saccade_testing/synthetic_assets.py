"""Synthetic LIBERO assets: boxes instead of meshes, enough to build task 0 of libero_object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from saccade.sim.libero.assets import Assets, inspect_folder

SUITE, TASK = "libero_object", "0"

SCENE = """
<mujoco model="arena">
  <asset>
    <texture name="texplane" type="2d" file="../textures/any.png"/>
    <texture name="tex-wall" type="2d" file="../textures/any.png"/>
    <material name="floorplane" texture="texplane" texrepeat="3 3" reflectance="0.4"/>
  </asset>
  <worldbody>
    <body name="floor">
      <geom name="floor" type="plane" group="1" material="floorplane" size="3 3 .125" condim="3"/>
    </body>
    <light name="lamp" pos="1 1 4" dir="0 -.15 -1" diffuse=".8 .8 .8" castshadow="false"/>
    <camera name="frontview" mode="fixed" pos="1.0 0 1.45" quat="0.56 0.43 0.43 0.56"/>
    <camera name="agentview" mode="fixed" pos="0.5 0 1.35" quat="0.653 0.271 0.271 0.653"/>
  </worldbody>
</mujoco>
"""

OBJECT = """
<mujoco model="{name}">
  <worldbody>
    <body>
      <body name="object">
        {geometry}
      </body>
      <site name="bottom_site" pos="0 0 -{half}" size="0.005" rgba="0 0 0 0"/>
      <site name="top_site" pos="0 0 {half}" size="0.005" rgba="0 0 0 0"/>
      <site name="horizontal_radius_site" pos="0.025 0.025 0" size="0.005" rgba="0 0 0 0"/>
    </body>
  </worldbody>
</mujoco>
"""

BOX = (
    '<geom type="box" size="{size}" pos="{pos}" rgba="{colour} 1" group="0" density="100" friction="0.95 0.3 0.1"/>\n'
    '<geom type="box" size="{size}" pos="{pos}" rgba="{colour} 1" group="1" contype="0" conaffinity="0"/>\n'
)

COLOURS = {
    "alphabet_soup": ".8 .1 .1",
    "salad_dressing": ".1 .7 .1",
    "cream_cheese": ".2 .2 .9",
    "milk": ".9 .9 .9",
    "tomato_sauce": ".9 .5 .1",
    "butter": ".9 .9 .2",
}


def write_synthetic_assets(folder: Path) -> Assets:
    """Write the assets into a new folder and return them, checked."""
    (folder / "scenes").mkdir(parents=True)
    (folder / "scenes" / "libero_floor_base_style.xml").write_text(SCENE)
    (folder / "textures").mkdir()
    generator = np.random.default_rng(0)
    for name in ("light-gray-floor-tile.png", "light-gray-plaster.png"):
        shades = generator.integers(120, 200, (16, 16, 1), dtype=np.uint8)
        Image.fromarray(np.repeat(shades, 3, axis=2)).save(folder / "textures" / name)
    for name, colour in COLOURS.items():
        box = BOX.format(size="0.03 0.03 0.04", pos="0 0 0", colour=colour)
        _write(folder / "stable_hope_objects" / name, OBJECT.format(name=name, geometry=box, half=0.04))
    _write(folder / "stable_scanned_objects" / "basket", OBJECT.format(name="basket", geometry=_basket(), half=0.06))
    needed = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return inspect_folder(folder, needed, source="synthetic")


def _basket() -> str:
    """Return the geometry of a basket: a bottom, four walls and the region to put objects into."""
    walls = [("0.1 0.1 0.005", "0 0 -0.05")]
    walls += [(f"{half_x} {half_y} 0.05", f"{x} {y} 0") for half_x, half_y, x, y in _SIDES]
    boxes = "".join(BOX.format(size=size, pos=pos, colour=".5 .3 .2") for size, pos in walls)
    return (
        boxes
        + '<site name="contain_region" type="box" pos="0 0 0.02" quat="1 0 0 0" size="0.09 0.09 0.07" rgba="0 0 0 0"/>'
    )


_SIDES = ((0.005, 0.1, 0.1, 0), (0.005, 0.1, -0.1, 0), (0.1, 0.005, 0, 0.1), (0.1, 0.005, 0, -0.1))
"""Half extents along x and y and position of the basket's four walls, in metres."""


def _write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.xml").write_text(text)
