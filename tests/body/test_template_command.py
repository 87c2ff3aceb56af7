"""`threevp template` end to end: files, messages, refusals."""

import re

import numpy as np
import pytest
import torch
import trimesh

from tests.body import synthetic_smplx
from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.synthetic_scan import synthetic_scan
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.rig_files import load_motion, load_template
from threevp_nerfstudio.cli import entry_point
from threevp_nerfstudio.template_command import Template


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
    message = refusal("template", "--output", path, "--show", "--jaw")
    assert "--overwrite" in message and "--show alone" in message, "a template that was asked for is not silently the old one"
    path.with_name("texture.png").write_bytes(b"another template's")
    message = refusal("template", "--output", path.with_name("second.npz"), "--scan", tmp_path / "scan.obj")
    assert "texture.png exists" in message


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


def test_showing_an_existing_template_makes_nothing(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Template, "open_page", lambda self, path: shown.append(path))
    (tmp_path / "template.npz").write_bytes(b"old")
    threevp("template", "--output", tmp_path / "template.npz", "--show", "--port", 7123)
    assert shown == [tmp_path / "template.npz"] and (tmp_path / "template.npz").read_bytes() == b"old"


def test_conversions_from_the_command_line(anny: BodyModel, portrait: BodyModel, tmp_path, capsys):
    """Anny's motion drives the template of an SMPL-X file, by a conversion fitted and applied with commands."""
    model = synthetic_smplx.write(tmp_path / "SMPLX_NEUTRAL.npz", synthetic_smplx.arrays(anny))
    smplx, out, matrix = ("--model-path", model), tmp_path / "out.npz", tmp_path / "matrix.npz"
    threevp("template", "--body", "smplx", *smplx, "--expressions", 52, "--output", tmp_path / "smplx.npz")
    threevp("convert-expressions", "--to", "smplx", *smplx, "--expressions", 52, "--output", matrix)
    assert "of the motion (RMS) is lost" in capsys.readouterr().out
    stored(portrait.template).save(tmp_path / "anny.npz")
    source, target = load_template(tmp_path / "anny.npz"), load_template(tmp_path / "smplx.npz")
    opened = np.zeros((1, 52), dtype=np.float32)
    opened[0, source.expression_names.index("jawOpen")] = 0.5
    still = np.zeros((1, len(source.joint_names), 3), dtype=np.float32)
    Motion(np.zeros(1, dtype=np.float32), still, np.zeros((1, 3), dtype=np.float32), opened).save(tmp_path / "motion.npz")
    files = ("--motion", tmp_path / "motion.npz", "--source", tmp_path / "anny.npz", "--target", tmp_path / "smplx.npz")
    threevp("convert-expressions", "--conversion", matrix, *files, "--output", out)
    motion = load_motion(out, target)
    rig = Rig.from_template(target)
    rows = torch.as_tensor(motion.joint_rotations), torch.as_tensor(motion.root_translation), torch.as_tensor(motion.expression)
    lips = np.unique(target.faces[faces_in(target, ("lips",))])
    drop = (rig.pose(*rows)[0].numpy() - target.vertices)[lips]
    assert drop[:, 2].min() < -0.005, "the mouth opens"
    assert "--overwrite" in refusal("convert-expressions", "--conversion", matrix, *files, "--output", out)
    assert "come together" in refusal("convert-expressions", "--motion", tmp_path / "motion.npz", "--output", tmp_path / "x.npz")


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
