"""Fixtures of LIBERO's tests: synthetic assets, and real ones where SACCADE_LIBERO_ASSETS names a folder."""

from __future__ import annotations

import importlib.util
import os

import pytest

from saccade.sim.libero.assets import ASSETS_VARIABLE, find_assets
from saccade.sim.libero.installation import package_folder

NOT_INSTALLED = "hf-libero and robosuite are not installed: uv sync --extra libero"


@pytest.fixture(scope="session")
def installed():
    """Return the folder of `libero.libero`; skip the test if LIBERO is not installed."""
    if importlib.util.find_spec("libero") is None or importlib.util.find_spec("robosuite") is None:
        pytest.skip(NOT_INSTALLED)
    return package_folder()


@pytest.fixture(scope="session")
def boxes(installed, tmp_path_factory):
    """Return synthetic assets made of boxes, only for task 0 of libero_object."""
    from saccade_testing.synthetic_assets import write_synthetic_assets

    return write_synthetic_assets(tmp_path_factory.mktemp("assets") / "boxes")


@pytest.fixture(scope="session")
def pack(installed):
    """Return the assets of all 40 tasks; skip the test without them."""
    if not os.environ.get(ASSETS_VARIABLE):
        pytest.skip(f"{ASSETS_VARIABLE} names no folder of LIBERO's assets")
    return find_assets()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep simplified meshes and results of the physics check out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
