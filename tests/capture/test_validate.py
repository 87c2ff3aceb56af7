"""The report says how well the template fits its mattes, and what the capture leaves out."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threevp_nerfstudio import cli
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.capture.coverage import SECTORS, channels, coverage_warnings, sector_of, yaw_gaps
from threevp_nerfstudio.capture.silhouette import PosedTemplate, iou, matte_at
from threevp_nerfstudio.capture.validate import examine


def test_sectors_are_centred_on_the_front() -> None:
    yaw = np.array([0, 22.4, -22.4, 22.6, 90, 180, -179, -90, -45.0])
    names = [SECTORS[k] for k in sector_of(yaw)]
    assert names == ["front"] * 3 + ["front left", "left", "back", "back", "right", "front right"]


def test_gaps_of_the_turn_close_over_the_back() -> None:
    assert yaw_gaps(np.arange(-180, 180, 10.0), 20.0) == []
    assert yaw_gaps(np.array([0.0, 30, 60, 300, 330]), 40.0) == [(60.0, 300.0)]
    assert yaw_gaps(np.array([20.0, 200.0]), 170.0) == [(20.0, 200.0), (200.0, 380.0)]
    assert yaw_gaps(np.zeros(0), 40.0) == [(0.0, 360.0)]


def test_plain_warnings() -> None:
    yaw = np.concatenate([np.arange(-150, 151, 10.0), [0.0, 0.0]])
    n = len(yaw)
    split = np.array(["train"] * (n - 1) + ["val"])
    sequence = np.array(["static"] * (n - 2) + ["dynamic"] * 2)
    psi = np.zeros((n, 2), dtype=np.float32)
    psi[3, 0], psi[-1, 1] = 0.9, 0.8
    said = " / ".join(
        coverage_warnings(yaw, split, sequence, channels(("jawOpen", "smile"), psi, split), np.abs(psi).max(1))
    )
    assert "no training frames between 150° and 210° of yaw" in said
    assert "1 static frames show an expression" in said
    assert "beyond the training range of smile" in said


def test_iou() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(1 / 3)


def test_the_template_fits_its_own_pictures_but_for_hair_and_clothes(tiny_capture: Path) -> None:
    report = examine(load_capture(tiny_capture), quiet=True)
    assert len(report.iou) == 48
    assert report.iou.min() > 0.75
    assert report.iou.mean() < 0.99
    assert sum(sum(c.values()) for c in report.frames_per_sector.values()) == 48


def test_a_wrong_pose_shows_in_the_iou(tiny_capture: Path) -> None:
    capture = load_capture(tiny_capture)
    off = capture.motion.root_translation + np.array([0.06, 0, 0], dtype=np.float32)
    shifted = replace(capture, motion=replace(capture.motion, root_translation=off))
    right, wrong = (examine(c, 12, quiet=True) for c in (capture, shifted))
    assert wrong.iou.mean() < right.iou.mean() - 0.05


def test_explicit_vertices_have_the_silhouette_of_the_rig(tiny_capture: Path) -> None:
    capture = load_capture(tiny_capture)
    posed = PosedTemplate(capture.template, capture.motion)
    rows = len(capture.motion)
    vertices = np.stack([posed.vertices(row).numpy() for row in range(rows)])
    explicit = Motion(capture.motion.times, vertices=vertices, conditioning=capture.motion.expression)
    again = PosedTemplate(capture.template, explicit)
    for i in (0, 30):
        mask = posed.silhouette(capture.frames, i, 40, 40)
        assert mask.any()
        assert (mask == again.silhouette(capture.frames, i, 40, 40)).all()


def test_a_reduced_matte_keeps_its_place() -> None:
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[20:, 30:, 3] = 255
    assert (matte_at(rgba, 6, 4) == (np.arange(4)[:, None] >= 2) & (np.arange(6) >= 3)).all()


def test_the_command_writes_report_and_contact_sheet(tiny_capture: Path, tmp_path: Path, capsys) -> None:
    cli.entry_point(["validate", str(tiny_capture), "--output", str(tmp_path), "--sheet-frames", "6"])
    assert "IoU" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["iou"]["mean"] > 0.75
    assert set(report["sectors"]) == set(SECTORS)
    assert Image.open(tmp_path / "overlay.png").size == (6 * 256, 256)


def test_the_command_fails_with_one_clear_error(tiny_capture: Path, tmp_path: Path, monkeypatch) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_capture, broken)
    (broken / "images" / "static_0003.png").unlink()
    monkeypatch.setattr(sys, "argv", ["threevp", "validate", str(broken)])
    with pytest.raises(SystemExit, match=r"error: .*static_0003\.png .* is missing"):
        cli.entry_point()


def test_the_bundled_sample_is_valid() -> None:
    sample = Path(__file__).parents[2] / "examples" / "portrait_sample"
    capture = load_capture(sample)
    assert {"train", "val", "test"} == set(capture.frames.split)
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) <= 8_000_000
    report = examine(capture, 16, quiet=True)
    assert report.iou.min() > 0.85
