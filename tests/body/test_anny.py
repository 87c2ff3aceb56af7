"""The template made from Anny is Anny: same vertices for any shape, pose and facial action."""

import numpy as np
import pytest
import roma
import torch

from threevp_nerfstudio.body.anny_body import load_anny_mesh, pose_from_anny
from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.crop import crop, neck_height
from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.mesh import boundary_loops, components
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

BODY_PARTS = ("face", "lips", "eyelids", "eyes", "mouth_interior", "teeth", "tongue", "ears", "scalp", "neck", "torso", "arms")


@pytest.fixture(scope="module")
def reference():
    return load_anny_mesh(jaw=False, local_shape=True)


def random_pose(model, batch: int, seed: int, scale: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.eye(4, dtype=model.dtype).repeat(batch, len(model.bone_labels), 1, 1)
    turn = scale * torch.randn(batch, len(model.bone_labels), 3, generator=generator, dtype=model.dtype)
    delta[..., :3, :3] = roma.rotvec_to_rotmat(turn)
    delta[:, 0, :3, 3] = torch.randn(batch, 3, generator=generator, dtype=model.dtype)
    return delta


def posed_as_anny(template: RiggedTemplate, model, output, actions: torch.Tensor, dtype=torch.float64) -> np.ndarray:
    rotations, translation = pose_from_anny(model, output)
    joints = [model.bone_labels.index(n) for n in template.joint_names]
    rig = Rig.from_template(template, dtype)
    arguments = (torch.as_tensor(rotations[:, joints]), torch.as_tensor(translation), actions)
    return rig.pose(*(a.to(dtype) for a in arguments)).double().numpy()


def worst_gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance from our vertices to the same ones of Anny, matched through the kept order."""
    return float(np.linalg.norm(ours - theirs, axis=-1).max())


@pytest.mark.parametrize("seed", range(4))
def test_posing_equals_anny_over_shapes_poses_and_actions(anny: BodyModel, reference, seed: int):
    rng = np.random.default_rng(seed)
    model = reference.model
    P = len(model.phenotype_labels)
    values = rng.uniform(anny.identity.lower, anny.identity.upper)
    values[P:] *= 0.3
    given = dict(zip(anny.identity.names, values, strict=True))
    actions = torch.as_tensor(rng.uniform(0, 1, (2, 52)))
    output = model(
        pose_parameters=random_pose(model, 2, seed),
        phenotype_kwargs={n: given[n] for n in anny.identity.names[:P]},
        local_changes_kwargs={n: given[n] for n in anny.identity.names[P:]},
        facial_actions=actions,
    )
    theirs = output["vertices"].numpy()[:, np.unique(reference.faces)]
    person = anny.at(values)
    assert worst_gap(posed_as_anny(person.template, model, output, actions), theirs) < 1e-6
    bust = crop(person)
    kept = kept_rows(anny, bust)
    assert worst_gap(posed_as_anny(bust.template, model, output, actions), theirs[:, kept]) < 1e-6
    f32 = posed_as_anny(stored(bust.template), model, output, actions, torch.float32)
    assert worst_gap(f32, theirs[:, kept]) < 1e-5, "float32, as stored on disk, up to 3 m from the origin"


def kept_rows(whole: BodyModel, part: BodyModel) -> np.ndarray:
    """Indices of the part's vertices in the whole, found through a third shape."""
    rows = {tuple(p): i for i, p in enumerate(whole.at(whole.identity.default).template.vertices)}
    return np.array([rows[tuple(p)] for p in part.at(whole.identity.default).template.vertices])


def test_the_jaw_joint_equals_anny_posed_by_its_jaw():
    from threevp_nerfstudio.body.anny_body import anny_body

    body = anny_body(jaw=True, local_shape=False)
    mesh = load_anny_mesh(jaw=True, local_shape=False)
    assert "jaw" in body.template.joint_names
    actions = torch.rand(2, 52, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output = mesh.model(pose_parameters=random_pose(mesh.model, 2, 7), facial_actions=actions)
    theirs = output["vertices"].numpy()[:, np.unique(mesh.faces)]
    assert worst_gap(posed_as_anny(body.template, mesh.model, output, actions), theirs) < 1e-6
    assert body.template.joint_basis is not None, "the jaw's place follows jawOpen"
    still = mesh.model(pose_parameters=random_pose(mesh.model, 2, 8))
    at_rest = posed_as_anny(body.template, mesh.model, still, 0 * actions)
    assert worst_gap(at_rest, still["vertices"].numpy()[:, np.unique(mesh.faces)]) < 1e-6


def test_the_portrait_has_every_part_and_nothing_of_the_legs(portrait: BodyModel):
    t = portrait.template
    counts = {n: int((t.face_regions == i).sum()) for i, n in enumerate(t.region_names)}
    assert all(counts[part] > 0 for part in BODY_PARTS), counts
    assert counts["cap"] == 0
    assert t.vertices[:, 2].min() > neck_height(t) - 0.34
    np.testing.assert_allclose(t.skin_weights.sum(1), 1, atol=1e-6)
    assert {"neck01", "head", "eye.L", "eye.R", "spine01"} <= set(t.joint_names)
    assert not any("finger" in n or "foot" in n for n in t.joint_names)
    assert (np.diff(np.unique(t.faces)) == 1).all() and t.faces.max() == len(t.vertices) - 1
    assert t.face_uvs.max() < len(t.uvs) and t.uvs.min() >= 0 and t.uvs.max() <= 1


def test_a_closed_crop_has_no_holes_where_it_was_cut(anny: BodyModel, portrait: BodyModel):
    closed = crop(anny, closed=True)
    t = closed.template
    cap = faces_in(t, ("cap",))
    assert cap.any()
    assert len(boundary_loops(t.faces)) == len(boundary_loops(portrait.template.faces)) - 3, "torso and two arms"
    assert t.face_uvs is not None and len(t.face_uvs) == len(t.faces)


def test_a_longer_torso_keeps_more(anny: BodyModel, portrait: BodyModel):
    assert len(crop(anny, torso=0.2).template.vertices) < len(portrait.template.vertices)
    with pytest.raises(TemplateError, match="cuts into the head"):
        crop(anny, torso=-0.2)


def test_jaw_open_opens_the_mouth_and_moves_teeth_and_tongue(portrait: BodyModel):
    t = portrait.template
    action = t.expression_basis[t.expression_names.index("jawOpen")]
    points = portrait.landmarks
    assert action[points["lower_lip"], 2].mean() < -0.015
    assert abs(action[points["upper_lip"], 2].mean()) < 0.005
    lower = [c for c in np.unique(components(t.faces, len(t.vertices))[t.faces[faces_in(t, ("teeth",))]])]
    piece = components(t.faces, len(t.vertices))
    drop = sorted(float(action[piece == c, 2].mean()) for c in lower)
    assert drop[0] < -0.01 and abs(drop[-1]) < 1e-6, "lower teeth follow the jaw, upper teeth stay"


def test_landmarks_lie_where_a_face_has_them(portrait: BodyModel):
    p = portrait.landmark_points()
    assert len(p) == 12
    assert p["left_eye_outer"][0] > p["left_eye_inner"][0] > 0 > p["right_eye_inner"][0] > p["right_eye_outer"][0]
    assert p["left_eye_outer"][2] > p["nose_tip"][2] > p["upper_lip"][2] > p["lower_lip"][2] > p["chin"][2]
    assert p["nose_tip"][1] < p["upper_lip"][1] < p["left_ear"][1], "the subject faces -y"
    np.testing.assert_allclose(p["left_ear"] * [-1, 1, 1], p["right_ear"], atol=2e-3)


def test_shape_parameters_are_checked(portrait: BodyModel):
    old = portrait.at(portrait.identity_from({"age": 0.9}))
    assert np.abs(old.template.vertices - portrait.template.vertices).max() > 1e-3
    with pytest.raises(TemplateError, match="no shape parameter 'agee'"):
        portrait.identity_from({"agee": 0.5})
    with pytest.raises(TemplateError, match="did you mean nose-"):
        portrait.identity_from({"nose": 0.5})
    with pytest.raises(TemplateError, match="outside 0 to 1"):
        portrait.identity_from({"age": 3.0})
