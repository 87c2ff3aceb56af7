"""The template made from an SMPL-X file poses as the `smplx` package does; files that are something else are refused.

Runs on a synthetic file in the real schema. Set THREEVP_SMPLX_MODEL to your SMPLX_NEUTRAL.npz to run on that as well.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.body import synthetic_smplx
from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.smplx_body import TO_WORLD, joint_shift, smplx_body
from threevp_nerfstudio.body.smplx_file import ENVIRONMENT_VARIABLE, SmplxFile, find_model, read_smplx
from threevp_nerfstudio.capture.rig_files import load_template
from threevp_nerfstudio.errors import TemplateError

HAND_JOINTS = range(25, 55)


@pytest.fixture(scope="session")
def content(anny: BodyModel) -> dict[str, np.ndarray]:
    return synthetic_smplx.arrays(anny)


@pytest.fixture(scope="session")
def synthetic_path(content, tmp_path_factory) -> Path:
    return synthetic_smplx.write(tmp_path_factory.mktemp("smplx") / "SMPLX_NEUTRAL.npz", content)


@pytest.fixture(scope="module", params=["synthetic", "real"])
def model_path(request, synthetic_path: Path) -> Path:
    if request.param == "synthetic":
        return synthetic_path
    if not os.environ.get(ENVIRONMENT_VARIABLE):
        pytest.skip(f"no licensed model: set {ENVIRONMENT_VARIABLE} to your SMPLX_NEUTRAL.npz")
    return find_model(None)


@pytest.fixture(scope="module")
def file(model_path: Path) -> SmplxFile:
    return read_smplx(model_path)


@pytest.fixture(scope="module")
def reference(model_path: Path):
    import smplx

    return smplx.SMPLX(
        str(model_path), num_betas=10, num_expression_coeffs=20, use_pca=False, flat_hand_mean=True, dtype=torch.float64
    )


@pytest.fixture(scope="module")
def body(file: SmplxFile) -> BodyModel:
    return smplx_body(file, betas=10, expressions=20)


def random_inputs(seed: int, pose: float = 0.3, expression: float = 1.0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)

    def draw(n: int, scale: float) -> torch.Tensor:
        return torch.as_tensor(rng.normal(size=(2, n)) * scale)

    return {
        "betas": draw(10, 1.0)[:1].expand(2, 10),
        "global_orient": draw(3, pose),
        "body_pose": draw(63, pose),
        "jaw_pose": draw(3, pose),
        "leye_pose": draw(3, pose),
        "reye_pose": draw(3, pose),
        "left_hand_pose": torch.zeros(2, 45, dtype=torch.float64),
        "right_hand_pose": torch.zeros(2, 45, dtype=torch.float64),
        "transl": draw(3, 1.0),
        "expression": draw(20, expression),
    }


def our_pose(template, inputs) -> np.ndarray:
    """The same inputs through the rigged template: rotations turned into our axes."""
    from smplx.joint_names import JOINT_NAMES

    order = ("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose", "right_hand_pose")
    turn = torch.as_tensor(TO_WORLD)
    full = torch.cat([inputs[k].reshape(2, -1, 3) for k in order], 1) @ turn.mT
    joints = [JOINT_NAMES.index(n) for n in template.joint_names]
    rig = Rig.from_template(template, torch.float64)
    return rig.pose(full[:, joints], inputs["transl"] @ turn.mT, inputs["expression"]).numpy()


def their_pose(reference, inputs) -> np.ndarray:
    with torch.no_grad():
        return reference(**inputs).vertices.numpy() @ TO_WORLD.T


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=-1).max())


@pytest.mark.parametrize(("seed", "pose", "expression"), [(0, 0.3, 0.0), (3, 0.0, 1.0), (4, 0.3, 1.0), (5, 0.6, 2.0)])
def test_posing_equals_smplx_over_shapes_poses_and_expressions(body, reference, seed, pose, expression):
    inputs = random_inputs(seed, pose, expression)
    person = body.at(inputs["betas"][0].numpy())
    theirs = their_pose(reference, inputs)
    assert gap(our_pose(person.template, inputs), theirs) < 1e-6
    assert gap(our_pose(stored(person.template), inputs), theirs) < 1e-5, "as stored, float32"


def test_joints_follow_the_expression(body, file):
    """Without it jaw and eyes would turn about places that are off by what `joint_shift` says."""
    shift = joint_shift(file, 20)
    assert body.template.joint_basis.shape == (20, 55, 3)
    np.testing.assert_allclose(body.template.joint_basis, shift)
    moved = file.v_template + 2.0 * file.expression[:, :, 5]
    there = (file.J_regressor @ moved) @ TO_WORLD.T
    np.testing.assert_allclose(body.template.joints + 2.0 * shift[5], there, atol=1e-12)


def test_the_portrait_of_smplx_poses_as_its_body(body, reference):
    inputs = random_inputs(5)
    person = body.at(inputs["betas"][0].numpy())
    bust = crop(person)
    rows = {tuple(p): i for i, p in reversed(list(enumerate(person.template.vertices)))}
    kept = [rows[tuple(p)] for p in bust.template.vertices]
    # joints that were cropped away (legs, hands) also drive pose correctives, with nothing to say about a portrait
    for name in ("body_pose",):
        pose = inputs[name].reshape(2, 21, 3).clone()
        pose[:, [0, 1, 3, 4, 6, 7, 9, 10, 17, 18, 19, 20]] = 0
        inputs[name] = pose.reshape(2, 63)
    theirs = their_pose(reference, inputs)[:, kept]
    assert gap(our_pose(bust.template, inputs), theirs) < 1e-5
    assert gap(our_pose(stored(bust.template), inputs), theirs) < 1e-5, "as stored, float32"


def test_the_portrait_can_be_stored_and_has_its_parts(body, tmp_path):
    bust = crop(body, closed=True)
    stored(bust.template).save(tmp_path / "template.npz")
    back = load_template(tmp_path / "template.npz")
    names = {back.region_names[i] for i in np.unique(back.face_regions)}
    assert {"face", "lips", "eyelids", "eyes", "scalp", "neck", "torso", "arms", "cap"} <= names
    assert {"jaw", "neck", "head", "left_eye_smplhf"} <= set(back.joint_names)
    assert "non-commercial" in back.license
    assert len(bust.landmarks) >= 9


def test_a_part_file_decides_the_regions(file, tmp_path):
    import json

    head = np.flatnonzero(file.weights.argmax(1) == 15).tolist()
    part = tmp_path / "parts.json"
    part.write_text(json.dumps({"leftArm": head[:50]}))
    plain, parted = (smplx_body(file, segmentation=p).template for p in (None, part))
    arms = plain.region_names.index("arms")
    grown = set(np.flatnonzero(parted.face_regions == arms)) - set(np.flatnonzero(plain.face_regions == arms))
    assert grown and set(parted.faces[list(grown)].reshape(-1)) & set(head[:50])
    part.write_text(json.dumps({"head": [99999]}))
    with pytest.raises(TemplateError, match="belongs to another model"):
        smplx_body(file, segmentation=part)
    part.write_text("{")
    with pytest.raises(TemplateError, match="vertex part file"):
        smplx_body(file, segmentation=part)


def test_more_components_than_the_file_holds(file):
    with pytest.raises(TemplateError, match="--expressions 101"):
        smplx_body(file, expressions=101)


def test_a_missing_model_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(TemplateError, match="smpl-x.is.tue.mpg.de.*non-commercial"):
        find_model(None)
    with pytest.raises(TemplateError, match="holds no SMPLX_FEMALE.npz"):
        find_model(tmp_path, "female")
    with pytest.raises(TemplateError, match="does not exist"):
        find_model(tmp_path / "nothing.npz")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "elsewhere.npz"))
    with pytest.raises(TemplateError, match=f"{ENVIRONMENT_VARIABLE}: .*elsewhere"):
        find_model(None)


def bad(content, **changes):
    changed = {k: content[k] for k in ("v_template", "f", "J_regressor", "kintree_table", "lmk_faces_idx", "lmk_bary_coords", "weights")}
    changed["shapedirs"] = content["shapedirs"][:, :, :20]
    changed["posedirs"] = np.zeros((10475, 3, 486), dtype=np.float32)
    changed.update(changes)
    return {k: v for k, v in changed.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_template": np.zeros((6890, 3))}, "6890 vertices .SMPL or SMPL-H."),
        ({"v_template": np.zeros((5023, 3))}, "FLAME"),
        ({"posedirs": None}, "no 'posedirs'"),
        ({"posedirs": np.zeros((10475, 3, 207), dtype=np.float32)}, r"'posedirs' has shape \(10475, 3, 207\)"),
        ({"weights": np.array({"a": 1}, dtype=object)}, "'weights' is a pickled object"),
        ({"shapedirs": np.zeros((10475, 3, 10), dtype=np.float32)}, "10 components"),
        ({"f": np.full((4, 3), 20000)}, "'f' spans 20000"),
        ({"J_regressor": np.full((55, 10475), np.nan)}, "NaN"),
        ({"kintree_table": np.full((2, 55), 60)}, "parents before children"),
    ],
)
def test_files_that_are_no_smplx(content, tmp_path, changes, message):
    path = synthetic_smplx.write(tmp_path / "SMPLX_NEUTRAL.npz", bad(content, **changes))
    with pytest.raises(TemplateError, match=message):
        read_smplx(path)


def test_the_older_file_with_ten_components_is_read(content, tmp_path):
    path = synthetic_smplx.write(tmp_path / "SMPLX_NEUTRAL.npz", bad(content))
    file = read_smplx(path)
    assert file.shapedirs.shape[2] == 10 and file.expression.shape[2] == 10


def test_pickles_and_broken_files_are_refused(tmp_path):
    pickled = tmp_path / "SMPLX_NEUTRAL.pkl"
    pickled.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(TemplateError, match="run code.*NPZ"):
        read_smplx(pickled)
    broken = tmp_path / "SMPLX_NEUTRAL.npz"
    broken.write_bytes(b"not a zip")
    with pytest.raises(TemplateError, match="damaged"):
        read_smplx(broken)
