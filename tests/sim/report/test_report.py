"""The report: every episode, its videos and metrics, and no reference outside its folder."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.evaluation.episode import run_episode
from saccade.sim.evaluation.records import RecordFile, error_record
from saccade.sim.evaluation.run_folder import prepare_run_folder, read_evaluation
from saccade.sim.json_files import read_json
from saccade.sim.perturbation.job import Job
from saccade.sim.report import report
from saccade.sim.video import poster, write_video
from saccade.sim.video_recorder import VIEW_HEIGHT, VideoRecorder, draw_tokens
from saccade_testing.fake_world import FakeActor, FakeEnv

CONTRACT = {
    "cameras": [{"name": "front", "height": 16, "width": 16, "rotation_degrees": 0, "crop": 1.0}],
    "state": {"names": ["pan"], "units": ["degrees"]},
    "action": {"names": ["pan"], "units": ["degrees"], "kind": "absolute", "frame": "joint", "gripper": None},
    "control_hz": 10.0,
    "chunk": 4,
    "execute": 2,
    "normalization": {"method": "quantile_relative"},
}
FINGERPRINT = {"renderer": {"backend": "egl", "renderer": "soft"}, "packages": {"mujoco": "3.3.2"}, "cores": 2}


def run_of(label: str = "policy <one>", instruction_from: str = "task") -> dict:
    return {
        "label": label,
        "command": "saccade eval --episodes 3",
        "started": "2026-01-02T03:04:05+00:00",
        "checkpoint": {"name": "starter", "digest": "abc"},
        "protocol": {"seed": 0, "instruction_from": instruction_from},
        "contract": CONTRACT,
        "provenance": {"commit": "1234", "packages": {"torch": "2"}, "files": {"config.json": {"bytes": 3}}},
        "tasks": [["fake", "reach"], ["fake", "lift"]],
        "planned": 7,
    }


def make_run(folder, *, swap_object: bool = False, label: str = "policy <one>", with_videos: bool = True):
    run, swap = run_of(label), "object" if swap_object else None
    prepare_run_folder(folder, run, FINGERPRINT, resume=False, overwrite=False)
    file = RecordFile(folder / "records.jsonl")
    for task in ("lift", "reach"):
        for state in range(3):
            # Odd states pick the ball, which an even seed requests.
            job = Job("fake", task, state, state + swap_object, swap=swap)
            video_recorder = VideoRecorder()
            record = run_episode(FakeEnv(task), FakeActor(), job, step_callback=video_recorder)
            if with_videos:
                video_recorder.save(folder / "videos" / f"{job.file_stem}.mp4", 10)
                record = replace(record, video=f"videos/{job.file_stem}.mp4")
            file.append(record)
    file.append(error_record(Job("fake", "lift", 3, 3, swap=swap), "Traceback\nRuntimeError: lost", 2))
    return read_evaluation(folder)


class Page(HTMLParser):
    """Checks that tags are closed, and collects the addresses that a page refers to."""

    EMPTY = frozenset({"meta", "line", "rect", "circle", "path", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "poster") and value]

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "poster") and value]

    def handle_endtag(self, tag):
        if tag in self.EMPTY:
            return
        # HTML closes these tags implicitly.
        while self.open and self.open[-1] != tag and self.open[-1] in ("dt", "dd", "li", "p"):
            self.open.pop()
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def episodes_of(text: str) -> list[dict]:
    return json.loads(re.search(r'id="episodes">(.*?)</script>', text, re.DOTALL)[1])


def test_page_is_valid_html_and_refers_to_its_folder_only(tmp_path):
    text = report.write_report([make_run(tmp_path)], tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:") or (tmp_path / address).is_file() for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "policy &lt;one&gt;" in text and "policy <one>" not in text.split('id="episodes"')[0]


def test_page_shows_the_metrics_of_the_records(tmp_path):
    text = report.write_report([make_run(tmp_path)], tmp_path / "report.html").read_text()
    # Even initial states succeed: 0 and 2 of both tasks; the error is shown and not counted.
    assert "4 of 6 episodes · 95 % interval 30.0 to 90.3 % · 1 could not be run" in text
    assert text.index("“reach the cube”") < text.index("“lift the can”")
    for phrase in ("quantile_relative", "rotation 0°", "saccade eval --episodes 3", "3.3.2", "another object picked"):
        assert phrase in text
    assert "files.config.json" not in text


def test_page_has_every_episode_and_embeds_videos(tmp_path):
    text = report.write_report([make_run(tmp_path)], tmp_path / "report.html").read_text()
    episodes = episodes_of(text)
    assert len(episodes) == 7
    assert ["note", "RuntimeError: lost"] in next(each for each in episodes if each["tone"] == "error")["facts"]
    video = tmp_path / "video.mp4"
    video.write_bytes(base64.b64decode(episodes[0]["video"].partition("base64,")[2]))
    assert poster(video).size == (2 * VIEW_HEIGHT, VIEW_HEIGHT)


def test_videos_beyond_the_size_limit_are_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 0)
    evaluation = make_run(tmp_path / "run")
    text = report.write_report([evaluation], tmp_path / "report.html").read_text()
    videos = [each["video"] for each in episodes_of(text) if each["video"]]
    assert len(videos) == 6
    assert all(video.startswith("run/videos/") and (tmp_path / video).is_file() for video in videos)


def test_incomplete_run_without_videos_has_a_report(tmp_path):
    evaluation = make_run(tmp_path, with_videos=False)
    evaluation.run["planned"] = 9
    text = report.write_report([evaluation], tmp_path / "report.html").read_text()
    assert "2 still to run" in text
    assert "<figure" not in text


def test_report_shows_two_runs_and_a_swapped_instruction(tmp_path):
    runs = [make_run(tmp_path / "before"), make_run(tmp_path / "swapped", swap_object=True, label="swapped")]
    runs[1].fingerprint["packages"]["mujoco"] = "3.4.0"
    text = report.write_report(runs, tmp_path / "report.html").read_text()
    assert Page(text).open == []
    assert "picked the other, requested object" in text and "lower is better" not in text
    assert "packages.mujoco: 3.3.2 and 3.4.0" in text
    assert "The policy follows the instruction" in text
    assert len(episodes_of(text)) == 14


def test_runs_of_the_same_episodes_are_compared_in_pairs(tmp_path):
    before, after = make_run(tmp_path / "before", label="before"), make_run(tmp_path / "after", label="after")
    better = tuple(
        replace(record, outcome="success") if record.outcome == "failure" else record for record in after.records
    )
    text = report.write_report([before, replace(after, records=better)], tmp_path / "report.html").read_text()
    assert Page(text).open == []
    assert "after against before" in text and "The 6 episodes that both runs share" in text
    # Two discordant episodes, both won: McNemar's exact p-value is 0.5.
    assert "No significant difference" in text and "p = 0.5 (McNemar" in text
    assert text.count("initial state 1: the failure") == 2 * 2
    assert "+33.3" in text


def test_runs_with_different_success_criteria_are_not_compared(tmp_path):
    runs = [make_run(tmp_path / "before"), make_run(tmp_path / "swapped", swap_object=True, label="swapped")]
    assert "McNemar" not in report.write_report(runs, tmp_path / "report.html").read_text()


def test_instructions_are_escaped(tmp_path):
    evaluation = make_run(tmp_path)
    hostile = replace(evaluation.records[0], instruction="</script><b>\"'&", initial_state=9)
    changed = replace(evaluation, records=(hostile, *evaluation.records[1:]))
    text = report.write_report([changed], tmp_path / "report.html").read_text()
    assert Page(text).open == []
    assert hostile.instruction in [each["instruction"] for each in episodes_of(text)]


def test_run_folder_is_not_mixed_or_overwritten_unasked(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, with_videos=False)
    with pytest.raises(InputError, match="--resume"):
        prepare_run_folder(folder, run_of(), FINGERPRINT, resume=False, overwrite=False)
    prepare_run_folder(folder, run_of(), FINGERPRINT, resume=True, overwrite=False)
    other = {**FINGERPRINT, "packages": {"mujoco": "3.4.0"}}
    with pytest.raises(InputError, match=r"packages\.mujoco: 3\.3\.2 and 3\.4\.0"):
        prepare_run_folder(folder, run_of(), other, resume=True, overwrite=False)
    with pytest.raises(InputError, match="protocol"):
        prepare_run_folder(folder, run_of(instruction_from="paraphrase"), FINGERPRINT, resume=True, overwrite=False)
    prepare_run_folder(folder, run_of(), other, resume=False, overwrite=True)
    assert not (folder / "records.jsonl").exists()
    with pytest.raises(InputError, match="no episodes"):
        read_evaluation(folder)


def test_run_folder_without_episodes_is_replaced(tmp_path):
    prepare_run_folder(tmp_path / "run", run_of(), FINGERPRINT, resume=False, overwrite=False)
    other = run_of(instruction_from="paraphrase")
    prepare_run_folder(tmp_path / "run", other, FINGERPRINT, resume=False, overwrite=False)
    assert read_json(tmp_path / "run" / "run.json")["protocol"] == other["protocol"]


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        prepare_run_folder(tmp_path, run_of(), FINGERPRINT, resume=False, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="run folder"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_videos_have_formats_that_browsers_play(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    frames = [np.full((33, 51, 3), shade, np.uint8) for shade in range(0, 250, 25)]
    write_video(path, frames, 15)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("h264", "vp9", "libvpx-vp9")
        assert (stream.pix_fmt, stream.width, stream.height) == ("yuv420p", 50, 32)
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    assert np.allclose(shades, range(0, 250, 25), atol=6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_invalid_videos_are_refused(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "video.mp4", [], 15)
    with pytest.raises(InputError, match=r"video\.gif"):
        write_video(tmp_path / "video.gif", [frame], 15)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"video\.mp4: got .* expected a disk"):
        write_video(tmp_path / "file" / "video.mp4", [frame], 15)


def test_kept_tokens_are_drawn_stronger_than_dropped_ones():
    layer = draw_tokens(np.array([[0.25, 0.5, 1.0, 1], [0.75, 0.5, 1.0, 0]]), 256, 256)
    kept, dropped = layer[:, :128, 3], layer[:, 128:, 3]
    assert kept.max() > 0.95 and 0 < dropped.max() < 0.7
    assert kept.sum() > 5 * dropped.sum()
    rows, columns = np.nonzero(kept)
    assert (rows.mean(), columns.mean()) == pytest.approx((128, 64), abs=1)
    heavy = draw_tokens(np.array([[0.5, 0.5, 1.0, 1]]), 256, 256)
    light = draw_tokens(np.array([[0.5, 0.5, 0.1, 1]]), 256, 256)
    assert np.ptp(np.nonzero(heavy[..., 3])[0]) > np.ptp(np.nonzero(light[..., 3])[0])
