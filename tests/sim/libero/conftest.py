"""Assets for LIBERO's tests: boxes made on the spot, and the real ones where a folder is named."""

from __future__ import annotations

import importlib.util
import os

import pytest

from saccade.sim.libero.assets import ASSETS_VARIABLE, find_assets
from saccade.sim.libero.installation import package_folder

NOT_INSTALLED = "hf-libero and robosuite are not installed: uv sync --extra libero"


@pytest.fixture(scope="session")
def installed():
    """The packages' folder; skips the test where they are not installed."""
    if importlib.util.find_spec("libero") is None or importlib.util.find_spec("robosuite") is None:
        pytest.skip(NOT_INSTALLED)
    return package_folder()


@pytest.fixture(scope="session")
def boxes(installed, tmp_path_factory):
    """Assets made of boxes, for task 0 of libero_object alone."""
    from saccade_testing.synthetic_assets import write_synthetic_assets

    return write_synthetic_assets(tmp_path_factory.mktemp("assets") / "boxes")


@pytest.fixture(scope="session")
def pack(installed):
    """The assets of all 40 tasks."""
    if not os.environ.get(ASSETS_VARIABLE):
        pytest.skip(f"{ASSETS_VARIABLE} names no folder of LIBERO's assets")
    return find_assets()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep simplified meshes and remembered measurements out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
