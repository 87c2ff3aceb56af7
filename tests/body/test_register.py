"""A synthetic scan (posed, with hair and clothes, remeshed) is registered to within the targets, and its rig follows."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from threevp_nerfstudio.body import align
from threevp_nerfstudio.body.anny_body import anny_body
from threevp_nerfstudio.body.bake import bake, texels
from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.fit import fit_body
from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.register import Registration, drift_notes, heat_map, register
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.scan import Scan, clean
from threevp_nerfstudio.body.synthetic_scan import KnownScan, pose_rest, synthetic_scan
from threevp_nerfstudio.body.transfer import correspond, transfer
from threevp_nerfstudio.capture.rig_files import load_template
from threevp_nerfstudio.errors import TemplateError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery


@pytest.fixture(scope="session")
def lean() -> BodyModel:
    """Anny without local shape parameters: quick to fit."""
    return anny_body(local_shape=False)


@pytest.fixture(scope="session")
def known(lean: BodyModel) -> KnownScan:
    return synthetic_scan(crop(lean, closed=True), seed=3, voxel=0.005)


def placed(body: BodyModel, scan: Scan) -> Scan:
    """The scan, cleaned and aligned, as the command does it."""
    scan = clean(scan, "scan")
    return scan.moved(align.align_stated(scan, crop(body), "m", "+z", "-y").similarity.apply(scan.vertices))


@pytest.fixture(scope="session")
def registration(lean: BodyModel, known: KnownScan) -> Registration:
    return register(lean, placed(lean, known.scan), texture_size=256)


def groups(known: KnownScan) -> dict[str, np.ndarray]:
    region = np.array(known.person.region_names)[known.person.face_regions[known.face]]
    body = ~np.isin(region, ["cap", "eyes"])
    return {"skin": body & ~known.is_hair & ~known.is_cloth & ~np.isin(region, ["torso", "arms"]), "hair": known.is_hair & body}


def test_the_wrapped_surface_lies_on_the_scan(registration, known):
    assert known.is_hair.sum() > 500
    rows = groups(known)
    assert registration.distance[rows["skin"]].mean() < 0.001
    assert registration.distance[rows["hair"]].mean() < 0.002
    assert any(line.startswith("scalp") for line in registration.summary())


def test_the_wrapped_template_posed_as_the_scan_is_the_wrapped_surface(registration):
    t, fitted = registration.template, registration.fitted
    again = pose_rest(t, t.vertices, fitted.joint_rotations) + fitted.root_translation
    np.testing.assert_allclose(again, registration.wrapped.posed, atol=1e-9)


def test_blendshapes_move_lips_and_jaw_as_the_source_does(registration, known):
    truth, t = known.person, registration.wrapped.template
    found = correspond(registration.scan, registration.wrapped)
    region = np.array(truth.region_names)[truth.face_regions[known.face]]
    rows = np.isin(region, ["face", "lips"]) & ~known.is_cloth
    for name, limit in (("jawOpen", 0.1), ("mouthSmileLeft", 0.15), ("browInnerUp", 0.15)):
        k = truth.expression_names.index(name)
        there = np.einsum("nk,nkc->nc", known.bary, truth.expression_basis[k][truth.faces[known.face]])
        here = np.einsum("nk,nkc->nc", found.bary, t.expression_basis[k][t.faces[found.face]])
        strong = rows & (np.linalg.norm(there, axis=1) > 0.1 * np.linalg.norm(there, axis=1).max())
        error = np.linalg.norm(there - here, axis=1)[strong]
        assert np.quantile(error, 0.9) < limit * np.linalg.norm(there[strong], axis=1).max(), name


def test_eyes_and_teeth_follow_the_face_without_being_bent(registration):
    t, start = registration.template, registration.fitted.body.template
    rows = np.unique(t.faces[faces_in(t, ("teeth",))])
    before, after = start.vertices[rows], t.vertices[rows]
    fit = align.best_similarity(before, after)
    assert 0.8 < fit.scale < 1.25
    assert np.linalg.norm(fit.apply(before) - after, axis=1).max() < 2e-3


def test_the_texture_has_the_colours_of_the_scan(registration):
    t, texture = registration.template, registration.texture
    assert texture is not None and texture.shape == (256, 256, 3)
    neck = t.uvs[t.face_uvs[faces_in(t, ("neck",))]].mean(1)
    at = texture[((1 - neck[:, 1]) * 256).astype(int), (neck[:, 0] * 256).astype(int)].astype(int)
    assert (np.median(at, axis=0) == [120, 190, 120]).all(), "the scan's colour of the neck"


def test_eyes_have_the_colours_that_the_scan_shows_between_the_lids(registration, known):
    t = registration.template
    region = np.array(known.person.region_names)[known.person.face_regions[known.face]]
    near = cKDTree(known.scan.vertices[region == "eyes"]).query(known.scan.vertices)[0] < 0.006  # triangles are 5 mm wide
    colours = np.where(near[:, None], [20.0, 40.0, 200.0], [150.0, 110.0, 60.0])
    picture = bake(registration.wrapped, replace(registration.scan, colours=colours), 512)
    at, face, _ = texels(t, 512)
    eye = picture[tuple(at[faces_in(t, ("eyes",))[face]].T)].astype(float)
    blue = ((eye - [20, 40, 200]) ** 2).sum(1) < ((eye - [150, 110, 60]) ** 2).sum(1)
    assert len(eye) > 200 and blue.mean() > 0.9, "also under the lids and behind, and never the skin's colour"


def test_the_scans_own_mesh_is_rigged(registration, known, tmp_path):
    template, notes = transfer(registration.fitted, registration.wrapped, registration.scan)
    stored(template).save(tmp_path / "template.npz")
    back = load_template(tmp_path / "template.npz")
    assert "own scan" in back.body_model
    assert {"teeth", "tongue", "mouth_interior", "face", "scalp"} <= {back.region_names[i] for i in np.unique(back.face_regions)}
    count = len(template.vertices) - (faces_in(template, ("teeth", "tongue", "mouth_interior"))).sum()
    assert count > 0.8 * len(known.scan.vertices) - 5000
    posed = pose_rest(template, template.vertices, registration.fitted.joint_rotations) + registration.fitted.root_translation
    near = np.linalg.norm(posed[:1000, None] - registration.scan.vertices[None, :3000], axis=-1).min(1)
    assert np.quantile(near, 0.5) < 1e-6, "posed as scanned, it is the scan again"
    jaw = template.expression_basis[template.expression_names.index("jawOpen")]
    assert np.linalg.norm(jaw, axis=1).max() > 0.015
    assert any("opened" in n for n in notes) or not notes
    rig = Rig.from_template(stored(template))
    assert rig.vertices.shape[0] == len(template.vertices)


def test_the_heat_map_is_a_picture(registration):
    picture = heat_map(registration, size=64)
    assert picture.shape == (128, 256, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


# Alignment -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "up", "front"), [("cm", "+y", "+z"), ("m", "+z", "-y"), ("mm", "-x", "+y")])
def test_unit_and_axes_are_guessed(lean, known, unit, up, front):
    R, scale = align.axes_rotation(up, front), align.UNITS[unit]
    raw = known.scan.vertices @ R / scale + 3.0
    guess = align.guess_alignment(known.scan.moved(raw), crop(lean))
    assert (guess.unit, guess.up, guess.front) == (unit, up, front)
    assert guess.error < 0.9 * guess.runner_up, guess.text()
    assert guess.similarity.scale == pytest.approx(scale)
    known_axes = align.guess_alignment(known.scan.moved(raw), crop(lean), axes=(up, front))
    assert known_axes.unit == unit and not np.isfinite(known_axes.runner_up) and "next best" not in known_axes.text()
    stated = align.align_stated(known.scan.moved(raw), crop(lean), unit, up, front)
    apart = stated.similarity.apply(raw) - guess.similarity.apply(raw)
    assert np.linalg.norm(apart, axis=1).max() < 0.05


def test_similarity_is_recovered_exactly():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 3))
    truth = align.Similarity(2.5, align.axes_rotation("+y", "+x"), np.array([1.0, 2.0, 3.0]))
    found = align.best_similarity(a, truth.apply(a))
    np.testing.assert_allclose(found.apply(a), truth.apply(a), atol=1e-12)
    twice = truth.after(found)
    np.testing.assert_allclose(twice.apply(a), truth.apply(found.apply(a)), atol=1e-12)


def test_axes_become_the_world_frame():
    for up, front in (("+y", "+z"), ("-z", "+x"), ("+x", "-y")):
        R = align.axes_rotation(up, front)
        axis = {n: np.eye(3)[k] * s for n, (k, s) in align.AXES.items()}
        np.testing.assert_allclose(R @ axis[up], [0, 0, 1])
        np.testing.assert_allclose(R @ axis[front], [0, -1, 0])
        assert np.linalg.det(R) == pytest.approx(1)
    with pytest.raises(TemplateError, match="same axis"):
        align.axes_rotation("+y", "-y")
    with pytest.raises(TemplateError, match="one of"):
        align.axes_rotation("up", "-y")


def test_landmarks_place_a_scan(lean, tmp_path):
    body = crop(lean)
    truth = align.Similarity(0.01, align.axes_rotation("+y", "+z"), np.array([0.1, 0.0, 0.3]))
    raw = {n: (np.linalg.inv(0.01 * truth.R) @ (p - truth.translation)) for n, p in body.landmark_points().items()}
    path = tmp_path / "points.json"
    path.write_text(json.dumps({n: p.tolist() for n, p in raw.items()}))
    found = align.align_by_landmarks(align.read_landmarks(path, body), body)
    assert found.scale == pytest.approx(0.01)
    np.testing.assert_allclose(found.R, truth.R, atol=1e-9)


def test_landmarks_that_cannot_be_right(lean, tmp_path):
    body = crop(lean)
    good = {n: p.tolist() for n, p in body.landmark_points().items()}
    path = tmp_path / "points.json"

    def refused(content, message: str) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(TemplateError, match=message):
            align.align_by_landmarks(align.read_landmarks(path, body), body)

    refused("{", "cannot be read as landmarks")
    refused([1, 2], "holds a list")
    refused({"nose": [0, 0, 0]}, "unknown landmarks nose.*nose_tip")
    refused({"nose_tip": [0, 0]}, "three finite numbers")
    refused({k: good[k] for k in list(good)[:3]}, "four or more")
    refused({n: [float(i), 0, 0] for i, n in enumerate(good)}, "lie on a line")
    swapped = {**good, "chin": good["left_ear"]}
    refused(swapped, "mm from where the others put it")


def test_long_hair_does_not_drag_the_face_along(lean):
    """Hair that hides ears, neck and shoulders pulls closest points of all but the face."""
    known = synthetic_scan(crop(lean, closed=True), seed=12, voxel=0.006, long_hair=True)
    assert known.is_hair.mean() > 0.1
    scan = placed(lean, known.scan)
    to_world = align.best_similarity(known.scan.vertices, scan.vertices)
    fitted = fit_body(crop(lean, 0.2), scan)
    truth = dict(crop(lean, closed=True).landmarks)
    for name in ("nose_tip", "left_mouth", "right_mouth", "upper_lip", "left_eye_outer", "right_eye_inner"):
        here = fitted.posed[fitted.body.landmarks[name]].mean(0)
        there = to_world.apply(known.posed[truth[name]])[0]
        assert np.linalg.norm(here - there) < 0.008, name


def test_a_face_that_drifts_away_is_said(lean, registration):
    fitted, wrapped = registration.fitted, registration.wrapped
    assert drift_notes(lean, fitted, wrapped) == []
    away = replace(wrapped, posed=wrapped.posed + [0, 0, -0.04])
    assert "--landmarks" in drift_notes(lean, fitted, away)[0]


def test_an_impossible_unit_is_refused(lean, known):
    with pytest.raises(TemplateError, match="Check --scan-unit"):
        align.align_stated(known.scan, crop(lean), "mm", "+z", "-y")


def test_a_scan_with_a_hole_is_bridged_by_the_body_model(lean, known):
    scan = known.scan
    cheek = known.posed[crop(lean, closed=True).landmarks["left_mouth"][0]] + [0.02, 0.01, 0.02]
    keep = np.linalg.norm(scan.vertices - cheek, axis=1) > 0.012
    pierced = clean(Scan(scan.vertices, scan.faces[keep[scan.faces].all(1)]), "scan")
    assert any("holes" in n for n in pierced.notes)
    similarity = align.align_stated(pierced, crop(lean), "m", "+z", "-y").similarity
    result = register(lean, pierced.moved(similarity.apply(pierced.vertices)))
    hidden = similarity.apply(scan.vertices[~keep])
    gap = MeshQuery(result.wrapped.posed, result.wrapped.template.faces).nearest(hidden).distance
    assert gap.mean() < 0.002, "the cheek is where it was, although the scan does not show it"
