"""A track is written as a capture that the strict reader takes, and that shows what was tracked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tracking.known_track import known_track
from threevp_nerfstudio.capture.capture import load_capture, read_rgba
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.advice import advise, shown_expressions, thin_sectors, widest_opening_mm
from threevp_nerfstudio.tracking.evaluate import compare_captures
from threevp_nerfstudio.tracking.export import export_capture, hold_out, picture_names, straight_alpha
from threevp_nerfstudio.tracking.overlay import overlays
from threevp_nerfstudio.tracking.report import ReportData, head_jitter, worst_rows, write_report


@pytest.fixture(scope="module")
def known(tiny_capture: Path):
    return known_track(tiny_capture)


@pytest.fixture(scope="module")
def written(known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("track") / "capture"
    export_capture(*known, output, val_share=0.2)
    return output


def test_the_strict_reader_takes_it_and_finds_the_same_track(written: Path, tiny_capture: Path):
    found = compare_captures(load_capture(written), load_capture(tiny_capture))
    assert found.matched == found.total == 42
    assert found.all.rotation_p95_deg < 0.01 and found.all.position_max_mm < 0.1 and found.all.face_mm < 0.05
    assert abs(found.scale - 1) < 1e-4
    assert found.correlation["jaw opening"] > 0.999


def test_pictures_and_cameras_agree(written: Path, known):
    from threevp_nerfstudio.capture.silhouette import PosedTemplate, iou, matte_at

    capture = load_capture(written)
    posed = PosedTemplate(capture.template, capture.motion)
    for i in (0, 13, 30):
        matte = matte_at(read_rgba(capture.frames, i), 48, 48)
        assert iou(posed.silhouette(capture.frames, i, 48, 48), matte) > 0.75


def test_lost_pictures_are_left_out(known, tmp_path: Path):
    footage, fitted, track = known
    lost = np.zeros(len(track), dtype=bool)
    lost[[3, 25]] = True
    assert export_capture(footage, fitted, replace(track, lost=lost), tmp_path / "c", 0.2) == 40
    capture = load_capture(tmp_path / "c")
    assert not {3, 25} & set(capture.frames.motion_index.tolist())
    with pytest.raises(TrackError, match="every picture was lost"):
        export_capture(footage, fitted, replace(track, lost=~lost | lost), tmp_path / "d", 0.2)


def test_what_is_held_out_are_blocks_of_the_performance():
    static = np.arange(100) < 40
    split = hold_out(static, np.ones(100, dtype=bool), 0.2)
    assert (split[static] == "train").all() and (split == "val").sum() == 12
    assert np.count_nonzero(np.diff((split == "val").astype(int)) == 1) == 3
    assert (hold_out(static, np.arange(100) < 60, 0.2) == "train").all()  # too short a performance


def test_names_count_within_each_part():
    assert picture_names(np.array([True, True, False])) == ["static_0000.png", "static_0001.png", "dynamic_0000.png"]


def test_edges_take_the_subjects_colour():
    rgb = np.full((20, 20, 3), (0, 200, 0), np.uint8)  # green room
    rgb[:, 10:] = (200, 0, 0)
    alpha = np.zeros((20, 20), np.uint8)
    alpha[:, 10:] = 255
    alpha[:, 9] = 100
    rgb[:, 9] = (78, 122, 0)
    found = straight_alpha(rgb, alpha)
    assert (found[:, 12, :3] == (200, 0, 0)).all() and (found[..., 3] == alpha).all()
    assert found[10, 9, 0] > 170 and found[10, 9, 1] < 30


def test_report_is_one_page_with_everything(known, tmp_path: Path):
    footage, fitted, track = known
    lost = np.zeros(len(track), dtype=bool)
    lost[7] = True
    data = ReportData("me & co", footage, fitted, replace(track, lost=lost), ["a <note>"], ["turn all the way round"], {"frames": 1.5})
    numbers = write_report(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert numbers["lost"] == 1 and json.loads((tmp_path / "report.json").read_text())["lost_pictures"] == [7]
    assert page.count("<svg") == 4 and page.count("data:image/jpeg") >= 12
    assert "a &lt;note&gt;" in page and "me &amp; co" in page and "turn all the way round" in page
    assert 'src="http' not in page and "<script" not in page and "<link" not in page
    assert 7 in worst_rows(data.track)


def test_jitter_sees_shaking_and_not_motion(known):
    _, fitted, track = known
    moved = np.tile(np.eye(4), (len(track), 1, 1))
    moved[:, 0, 3] = 0.01 * np.arange(len(track))
    still = replace(track, T_camera_root=moved, joint_rotations=0 * track.joint_rotations)
    shift, turn = head_jitter(fitted.template, still)
    assert np.nanmax(shift) < 1e-6 and np.nanmax(turn) < 1e-3
    moved[::2, 1, 3] += 0.001
    assert np.nanmean(head_jitter(fitted.template, still)[0]) == pytest.approx(1.0, rel=0.01)


def test_advice_names_what_is_missing(known):
    footage, fitted, track = known
    said = advise(footage, fitted, replace(track, expression=0 * track.expression))
    assert any("mouth never open wider than 0 mm" in s for s in said)
    assert any("smile" in s and "hardly seen" in s for s in said)
    for most, words in ((100, "no frames between"), (40, "all pictures are between -")):
        beyond = np.abs(np.degrees(track.azimuth)) > most
        said = advise(footage, fitted, replace(track, lost=beyond))
        assert any(s.startswith(words) and "turn all the way round" in s for s in said), said


def test_mouth_opening_grows_with_the_jaw(known):
    _, fitted, track = known
    names = list(fitted.template.expression_names)
    rows = np.ones(len(track), dtype=bool)
    gaps = []
    for value in (0.0, 0.4, 0.9):
        expression = np.zeros_like(track.expression)
        expression[:, names.index("jawOpen")] = value
        posed = replace(track, expression=expression, joint_rotations=0 * track.joint_rotations)
        gaps.append(widest_opening_mm(fitted.template, posed, rows))
    assert gaps[0] < 0.5 < gaps[1] < gaps[2]
    assert shown_expressions(fitted.template, track, rows)["mouth opening"] > 0


def test_thin_sectors():
    assert thin_sectors(np.concatenate([np.linspace(0, 44, 20), [100.0]])) == [(90.0, 135.0, 1)]


def test_overlay_shows_the_template_on_the_subject(known):
    footage, fitted, track = known
    picture = next(iter(overlays(footage, fitted, track)))
    assert picture.shape == (48, 96, 3)
    drawn = (picture[:, 48:] < 250).any(-1)
    assert (drawn & (footage.alpha[0] > 127)).sum() > 0.8 * drawn.sum()
