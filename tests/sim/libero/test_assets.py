"""Test LIBERO's assets from a folder and from the hub: missing files are named, stand-ins are listed."""

import json

import pytest

from saccade.errors import InputError, WorldError
from saccade.sim.libero import assets

NEEDED = ("scenes/a.xml", "textures/b.png")


@pytest.fixture
def folder(tmp_path):
    for name in NEEDED:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    return tmp_path


def test_list_of_files_covers_the_four_suites():
    needed = assets.needed_files()
    assert len(needed) == len(set(needed)) > 150
    assert "scenes/libero_tabletop_base_style.xml" in needed and assets.MANIFEST not in needed


def test_complete_folder_is_described(folder):
    found = assets.find_assets(folder, NEEDED)
    assert found.describe() == {"sha256": found.sha256, "source": "folder", "stand_ins": []}
    (folder / "notes.txt").write_text("not needed, so it changes nothing")
    assert assets.find_assets(folder, NEEDED) == found
    (folder / "textures/b.png").write_text("another picture")
    assert assets.find_assets(folder, NEEDED).sha256 != found.sha256


def test_missing_files_are_named(folder):
    (folder / "textures/b.png").unlink()
    with pytest.raises(InputError, match=r"got no textures/b.png, expected every file"):
        assets.find_assets(folder, NEEDED)
    with pytest.raises(InputError, match=r"and 4 more"):
        assets.find_assets(folder, [f"meshes/{number}.msh" for number in range(9)])
    with pytest.raises(InputError, match="no folder.*--libero-assets or SACCADE_LIBERO_ASSETS"):
        assets.find_assets(folder / "nowhere", NEEDED)


def test_stand_ins_are_listed(folder):
    (folder / assets.MANIFEST).write_text(json.dumps({"stand_ins": [{"file": "textures/b.png", "how": "plain"}]}))
    assert assets.find_assets(folder, NEEDED).stand_ins == ("textures/b.png",)
    for broken in ("{", "[]", '{"stand_ins": [{}]}'):
        (folder / assets.MANIFEST).write_text(broken)
        with pytest.raises(InputError, match="no list of stand-ins"):
            assets.find_assets(folder, NEEDED)


def test_folder_can_be_set_by_environment_variable(folder, monkeypatch):
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(folder))
    assert assets.find_assets(needed=NEEDED).folder == folder


def test_other_machine_needs_the_same_files(folder, tmp_path, monkeypatch):
    found = assets.find_assets(folder, NEEDED)
    assert assets.same_assets(found) is found
    elsewhere = assets.Assets(tmp_path / "elsewhere", found.sha256, "folder")
    monkeypatch.setattr(assets, "needed_files", lambda: NEEDED)
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(folder))
    assert assets.same_assets(elsewhere).folder == folder
    (folder / "textures/b.png").write_text("another picture")
    with pytest.raises(InputError, match="as on the machine that started the evaluation"):
        assets.same_assets(elsewhere)


def test_hub_is_the_default_and_its_commit_is_recorded(folder, monkeypatch):
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.delenv(assets.ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = assets.find_assets(needed=NEEDED)
    assert found.source == f"hub lerobot/libero-assets@{folder.name}"
    assert asked == {"repository": "lerobot/libero-assets", "repo_type": "dataset", "revision": assets.REVISION}


def test_unreachable_hub_gives_one_clear_error(monkeypatch):
    def snapshot(*_, **__):
        raise OSError("no route to host")

    monkeypatch.delenv(assets.ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(WorldError, match=r"no route to host.*--libero-assets or SACCADE_LIBERO_ASSETS"):
        assets.find_assets(needed=NEEDED)
