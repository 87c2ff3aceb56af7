"""The generated subject is sound, and the pictures show what the files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threevp_nerfstudio.capture.capture import load_capture, read_rgba, yaw_deg
from threevp_nerfstudio.capture.demo_look import dress, measure, shade, subdivide, vertex_normals
from threevp_nerfstudio.capture.demo_person import EYE_X, EYE_Z, MOUTH_Z, demo_template
from threevp_nerfstudio.capture.demo_script import expressions, turn_z
from threevp_nerfstudio.capture.synthetic import Demo, generate
from threevp_nerfstudio.capture.validate import signed_volume
from threevp_nerfstudio.errors import CaptureError


@pytest.fixture(scope="module")
def person():
    return demo_template(columns=48)


def test_the_person_is_closed_and_wound_outwards(person) -> None:
    directed = np.concatenate([person.faces[:, [0, 1]], person.faces[:, [1, 2]], person.faces[:, [2, 0]]])
    edges = {tuple(edge) for edge in directed.tolist()}
    assert len(edges) == len(directed)  # each edge once in each direction
    assert all((b, a) in edges for a, b in edges)
    assert signed_volume(person.vertices, person.faces) > 0


def test_the_mouth_opens(person) -> None:
    jaw = person.expression_basis[person.expression_names.index("jawOpen")]
    middle = np.flatnonzero((np.abs(person.vertices[:, 0]) < 0.006) & (np.abs(person.vertices[:, 2] - MOUTH_Z) < 1e-6))
    front = middle[np.argsort(person.vertices[middle, 1])[:4]]
    drop = jaw[front, 2]
    assert drop.min() < -0.015  # the lower lip falls
    assert np.abs(drop).min() < 1e-4  # the upper lip stays


def test_blendshapes_leave_the_back_of_the_head_alone(person) -> None:
    behind = person.vertices[:, 1] > 0.04
    assert np.abs(person.expression_basis[:, behind]).max() < 1e-6


def test_measurements_find_eyes_and_mouth(person) -> None:
    anatomy = measure(person)
    np.testing.assert_allclose(np.abs(anatomy.eyes[:, 0]), EYE_X, atol=0.004)
    np.testing.assert_allclose(anatomy.eyes[:, 2], EYE_Z, atol=0.004)
    np.testing.assert_allclose(anatomy.mouth[2], MOUTH_Z, atol=0.006)
    assert anatomy.scale == pytest.approx(1.0, abs=0.1)


def test_subdivision_keeps_the_surface(person) -> None:
    fine = subdivide(person)
    assert len(fine.faces) == 4 * len(person.faces)
    assert signed_volume(fine.vertices, fine.faces) == pytest.approx(
        signed_volume(person.vertices, person.faces), rel=1e-4
    )
    np.testing.assert_allclose(fine.skin_weights.sum(1), 1, atol=1e-6)


def test_hair_and_clothes_stand_off_the_template(person) -> None:
    subject = dress(person, seed=0)
    offset = np.linalg.norm(subject.template.vertices - subject.bare, axis=1)
    hair = subject.hair > 0.9
    assert 0.012 < offset[hair].mean() < 0.035
    face = (np.abs(subject.bare[:, 2] - 0.87) < 0.03) & (subject.bare[:, 1] < -0.06)
    assert offset[face].max() < 1e-6


def test_normals_of_the_person_point_outwards_on_the_crown(person) -> None:
    normals = vertex_normals(person.vertices.astype(np.float64), person.faces)
    assert normals[person.vertices[:, 2].argmax(), 2] > 0.9


def test_the_light_stands_still_in_the_room() -> None:
    """Turning subject, camera and room together changes nothing; turning the subject alone does."""
    rng = np.random.default_rng(0)
    n, to_camera = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 50, 3)))
    colour, gloss = rng.uniform(0.1, 0.6, (50, 3)), np.full(50, 0.1)
    R = turn_z(1.1)[:3, :3]
    still = shade(colour, n, to_camera, gloss, np.eye(3))
    np.testing.assert_allclose(shade(colour, n @ R.T, to_camera @ R.T, gloss, R), still, atol=1e-12)
    assert np.abs(shade(colour, n @ R.T, to_camera @ R.T, gloss, np.eye(3)) - still).max() > 0.05


def test_every_channel_moves_and_the_seed_decides(person) -> None:
    values = expressions(person.expression_names, 120, 30.0, seed=3)
    assert (values.max(0) > 0.4).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert (values == expressions(person.expression_names, 120, 30.0, seed=3)).all()
    assert (values != expressions(person.expression_names, 120, 30.0, seed=4)).any()


def test_the_generated_capture_is_valid_and_holds_out_views_and_expressions(tiny_capture: Path) -> None:
    capture = load_capture(tiny_capture)
    frames = capture.frames
    kinds = {(s, q) for s, q in zip(frames.split.tolist(), frames.sequence.tolist(), strict=True)}
    assert kinds == {
        ("train", "static"),
        ("train", "dynamic"),
        ("val", "static"),
        ("val", "dynamic"),
        ("test", "dynamic"),
    }
    static = frames.sequence == "static"
    assert np.ptp(yaw_deg(frames.camera_to_world[static])) > 300
    assert np.abs(capture.motion.expression[frames.motion_index[static]]).max() == 0
    elevation = np.degrees(np.arcsin(frames.camera_to_world[frames.split == "test", 2, 2]))
    assert elevation.max() > 19
    assert elevation.min() < -14


def test_the_room_turns_with_the_camera_when_the_chair_turns(tiny_capture: Path) -> None:
    frames = load_capture(tiny_capture).frames
    still = frames.split != "test"
    in_room = np.linalg.inv(frames.room_to_world[still]) @ frames.camera_to_world[still]
    np.testing.assert_allclose(in_room, np.broadcast_to(in_room[0], in_room.shape), atol=1e-9)


def test_pictures_show_a_subject_on_nothing(tiny_capture: Path) -> None:
    frames = load_capture(tiny_capture).frames
    for i in (0, len(frames) // 2):
        alpha = read_rgba(frames, i)[..., 3]
        assert 0.2 < (alpha > 127).mean() < 0.8
        assert ((alpha > 0) & (alpha < 255)).any()  # edges are smooth
        assert alpha[0].max() == 0  # air over the head


def test_the_demo_never_writes_into_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CaptureError, match="not an empty folder"):
        generate(Demo(tmp_path, quiet=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"static_frames": 0}, "at least one frame"),
        ({"size": 4}, "--size"),
        ({"fov_deg": 120.0}, "--fov-deg"),
        ({"motion": Path("motion.npz")}, "--template"),
        ({"template": Path("nowhere.npz")}, "nowhere.npz is missing"),
    ],
)
def test_the_demo_refuses_settings_that_make_no_capture(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        generate(Demo(tmp_path / "out", quiet=True, **changes))
    assert not (tmp_path / "out").exists()


def test_another_template_can_be_dressed(portrait_a: Path, tmp_path: Path) -> None:
    counts = {"static_frames": 2, "dynamic_frames": 3, "test_frames": 1}
    given = {"template": portrait_a / "template.npz", "motion": portrait_a / "motion.npz"}
    output = generate(Demo(tmp_path / "out", size=32, quiet=True, **counts, **given))
    assert len(load_capture(output).template.expression_names) == 52
