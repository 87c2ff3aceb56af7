"""Loading is strict: each way in which a capture can be wrong ends in one error that names file, finding and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.capture import load_capture, load_motion, load_template, read_rgba, yaw_deg
from threevp_nerfstudio.capture.frames import R_FRONTAL
from threevp_nerfstudio.errors import CaptureError

SIZE = (12, 10)
YAWS = (0.0, 90.0, 180.0, -90.0)


def tetrahedron_template() -> RiggedTemplate:
    return RiggedTemplate(
        vertices=np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], dtype=np.float32),
        faces=np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32),
        joint_names=("root", "head"),
        parents=np.array([-1, 0], dtype=np.int32),
        joints=np.zeros((2, 3), dtype=np.float32),
        skin_weights=np.full((4, 2), 0.5, dtype=np.float32),
        expression_names=("jawOpen",),
        expression_basis=np.zeros((1, 4, 3), dtype=np.float32),
        face_regions=np.array([0, 0, 1, 1], dtype=np.uint8),
        region_names=("skin", "eye"),
        body_model="tetrahedron",
        license="CC0-1.0",
    )


def camera(yaw: float) -> np.ndarray:
    """A camera 1 m from the vertical axis, at `yaw` degrees."""
    a = np.radians(yaw)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ R_FRONTAL
    matrix[:3, 3] = turn @ [0, -1, 0]
    return matrix


def picture(seed: int) -> np.ndarray:
    rgba = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[2:6, 2:6, 3] = 255
    return rgba


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid capture of four frames."""
    directory = tmp_path / "capture"
    (directory / "images").mkdir(parents=True)
    template = tetrahedron_template()
    template.save(directory / "template.npz")
    n = len(YAWS)
    Motion(
        times=np.arange(n, dtype=np.float32),
        joint_rotations=np.zeros((n, 2, 3), dtype=np.float32),
        root_translation=np.zeros((n, 3), dtype=np.float32),
        expression=np.zeros((n, 1), dtype=np.float32),
    ).save(directory / "motion.npz")
    frames = []
    for i, yaw in enumerate(YAWS):
        Image.fromarray(picture(i)).save(directory / "images" / f"{i}.png")
        frames.append(
            {
                "file_path": f"images/{i}.png",
                "transform_matrix": camera(yaw).tolist(),
                "time": i / 30,
                "motion_index": i,
                "split": "val" if i == 3 else "train",
                "sequence": "static" if i < 2 else "dynamic",
            }
        )
    document = {
        "threevp_version": 1,
        "camera_model": "OPENCV",
        "fl_x": 20.0,
        "fl_y": 21.0,
        "cx": 6.0,
        "cy": 5.0,
        "w": SIZE[0],
        "h": SIZE[1],
        "fps": 30,
        "frames": frames,
    }
    (directory / "transforms.json").write_text(json.dumps(document))
    return directory


def edit_document(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "transforms.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))

    return apply


def edit_frame(**changes: object) -> Callable[[Path], None]:
    """Set keys of frames[1]; None removes the key."""

    def edit(document: dict) -> None:
        for key, value in changes.items():
            document["frames"][1].pop(key, None) if value is None else document["frames"][1].update({key: value})

    return edit_document(edit)


def edit_arrays(name: str, **changes: object) -> Callable[[Path], None]:
    """Replace arrays of an .npz; a callable maps the old array, None removes it."""

    def apply(directory: Path) -> None:
        with np.load(directory / name) as archive:
            arrays = {key: archive[key] for key in archive.files}
        for key, value in changes.items():
            if value is None:
                del arrays[key]
            else:
                arrays[key] = value(arrays[key].copy()) if callable(value) else np.asarray(value)
        np.savez(directory / name, **arrays)

    return apply


def with_entry(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return apply


def save_picture(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda directory: Image.fromarray(array).save(directory / name)


def all_opaque(directory: Path) -> None:
    for i in range(len(YAWS)):
        rgba = picture(i)
        rgba[..., 3] = 255
        Image.fromarray(rgba).save(directory / f"images/{i}.png")


def truncate(directory: Path) -> None:
    path = directory / "images/1.png"
    path.write_bytes(path.read_bytes()[:80])


def link_outside(directory: Path) -> None:
    outside = directory.parent / "outside.png"
    (directory / "images/1.png").rename(outside)
    (directory / "images/1.png").symlink_to(outside)


def pickled(directory: Path) -> None:
    np.savez(directory / "motion.npz", version=np.array(1), times=np.array([{}, None], dtype=object))


def rgb_and_mask(directory: Path, mask: np.ndarray | None) -> None:
    rgba = picture(1)
    Image.fromarray(rgba[..., :3]).save(directory / "images/1.png")
    if mask is not None:
        Image.fromarray(mask).save(directory / "mask.png")
    edit_frame(mask_path="mask.png")(directory)


scaled = camera(90)
scaled[:3, :3] *= 2
mirrored = camera(90)
mirrored[:3, 0] *= -1
not_a_number = camera(90)
not_a_number[0, 3] = np.nan

T, M, J = "template.npz", "motion.npz", "transforms.json"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    # transforms.json
    "no transforms.json": (lambda d: (d / J).unlink(), r"no transforms\.json.*threevp demo"),
    "invalid JSON": (lambda d: (d / J).write_text("{"), r"transforms\.json is not readable JSON"),
    "not an object": (lambda d: (d / J).write_text("[]"), r"holds a list"),
    "a scene": (edit_document(lambda t: t.pop("threevp_version")), r"not a tracked portrait.*nerfacto"),
    "other version": (edit_document(lambda t: t.update(threevp_version=2)), r"is version 2, .* reads version 1"),
    "no frames": (edit_document(lambda t: t.update(frames=[])), r"at least one frame"),
    "no train frames": (edit_document(lambda t: [f.update(split="test") for f in t["frames"]]), r"split 'train'"),
    "no fps": (edit_document(lambda t: t.pop("fps")), r"has no 'fps'"),
    "zero fps": (edit_document(lambda t: t.update(fps=0)), r"fps is 0"),
    "fisheye": (edit_document(lambda t: t.update(camera_model="OPENCV_FISHEYE")), r"undistort"),
    "no focal length": (edit_document(lambda t: t.pop("fl_x")), r"has no 'fl_x'"),
    "negative focal length": (edit_frame(fl_x=-1.0), r"frames\[1\]: fl_x is -1"),
    "fractional size": (edit_frame(w=11.5), r"whole pixels"),
    "higher distortion": (edit_frame(k3=0.1), r"k3 is not supported"),
    "distortion of text": (edit_frame(k1="none"), r"k1 is 'none'; a finite number"),
    "frame is no object": (edit_document(lambda t: t.update(frames=[3])), r"frames\[0\] is a int"),
    "no camera": (edit_frame(transform_matrix=None), r"frames\[1\] has no 'transform_matrix'"),
    "3x4 camera": (edit_frame(transform_matrix=camera(0)[:3].tolist()), r"not a 4x4 matrix"),
    "scaled camera": (edit_frame(transform_matrix=scaled.tolist()), r"not a rigid transform"),
    "mirrored camera": (edit_frame(transform_matrix=mirrored.tolist()), r"not a rigid transform.*mirroring"),
    "transposed camera": (edit_frame(transform_matrix=camera(90).T.tolist()), r"last row"),
    "NaN camera": (edit_frame(transform_matrix=not_a_number.tolist()), r"NaN or infinity"),
    "scaled room": (edit_frame(room_matrix=scaled.tolist()), r"room_matrix is not a rigid"),
    "no time": (edit_frame(time=None), r"has no 'time'"),
    "infinite time": (edit_frame(time=float("inf")), r"time is inf"),
    "motion index beyond": (edit_frame(motion_index=4), r"motion_index 4, but motion\.npz has 4 rows"),
    "negative motion index": (edit_frame(motion_index=-1), r"motion_index is -1"),
    "unknown split": (edit_frame(split="eval"), r"split is 'eval'; one of train, val, test"),
    "unknown sequence": (edit_frame(sequence="turn"), r"sequence is 'turn'; one of static, dynamic"),
    # pictures
    "absolute path": (edit_frame(file_path="/tmp/1.png"), r"leads out of the capture folder"),
    "parent path": (edit_frame(file_path="../1.png"), r"leads out of the capture folder"),
    "link outside": (link_outside, r"leads out of the capture folder"),
    "mask outside": (edit_frame(mask_path="../1.png"), r"mask_path .* leads out"),
    "one picture twice": (edit_frame(file_path="images/0.png"), r"frames\[0\] and frames\[1\] name the same"),
    "picture missing": (lambda d: (d / "images/1.png").unlink(), r"1\.png \(frames\[1\]\) is missing"),
    "picture unreadable": (lambda d: (d / "images/1.png").write_bytes(b"no"), r"1\.png .* not a readable picture"),
    "picture truncated": (truncate, r"1\.png"),
    "other size": (save_picture("images/1.png", np.ones((10, 10, 4), np.uint8)), r"is 10x10 .* says 12x10"),
    "RGB without matte": (save_picture("images/1.png", picture(1)[..., :3]), r"RGB and has no matte.*mask_path"),
    "grey picture": (save_picture("images/1.png", picture(1)[..., 0]), r"is of mode L"),
    "alpha and mask": (edit_frame(mask_path="images/2.png"), r"alpha channel and a 'mask_path'"),
    "mask missing": (lambda d: rgb_and_mask(d, None), r"mask\.png .* is missing"),
    "mask of other size": (lambda d: rgb_and_mask(d, np.ones((4, 4), np.uint8)), r"mask\.png .* is 4x4"),
    "coloured mask": (lambda d: rgb_and_mask(d, picture(1)[..., :3]), r"mattes as 8-bit grey"),
    "empty mask": (lambda d: rgb_and_mask(d, np.zeros(SIZE[::-1], np.uint8)), r"mask\.png: the matte is empty"),
    "empty alpha": (save_picture("images/1.png", picture(1) * np.uint8([1, 1, 1, 0])), r"1\.png: the matte is empty"),
    "opaque everywhere": (all_opaque, r"255 everywhere"),
    # template
    "no template": (lambda d: (d / T).unlink(), r"template\.npz is missing"),
    "damaged template": (lambda d: (d / T).write_bytes(b"PK no"), r"template\.npz is damaged"),
    "template version": (edit_arrays(T, version=7), r"template\.npz is version 7"),
    "key missing": (edit_arrays(T, joints=None), r"has no 'joints'"),
    "shapes disagree": (edit_arrays(T, joints=np.zeros((3, 3), np.float32)), r"'joints' has shape \(3, 3\); \(2, 3\)"),
    "integer vertices": (edit_arrays(T, vertices=lambda v: v.astype(int)), r"'vertices' holds int64"),
    "NaN vertices": (edit_arrays(T, vertices=with_entry((2, 1), np.nan)), r"'vertices' has 1 .*\(2, 1\)"),
    "face out of range": (edit_arrays(T, faces=with_entry((0, 0), 4)), r"'faces' spans 0 to 4, but there are 4"),
    "region out of range": (edit_arrays(T, face_regions=with_entry((0,), 2)), r"'face_regions' spans"),
    "holes in skin weights": (edit_arrays(T, skin_weights=with_entry((3, 1), 0.0)), r"1 vertices do not sum .*3: 0\.5"),
    "negative weight": (edit_arrays(T, skin_weights=lambda w: w + [[-1, 1]]), r"not negative"),
    "root not first": (edit_arrays(T, parents=np.array([1, -1])), r"'parents' starts with 1"),
    "parent after child": (edit_arrays(T, parents=np.array([-1, 1])), r"parents come before their children"),
    "two roots": (edit_arrays(T, parents=np.array([-1, -1])), r"one root"),
    "duplicate joints": (edit_arrays(T, joint_names=["a", "a"]), r"'joint_names' holds \['a'\] more than once"),
    "uvs alone": (edit_arrays(T, uvs=np.zeros((4, 2), np.float32)), r"'uvs' and 'face_uvs'"),
    "pose basis shape": (edit_arrays(T, pose_basis=np.zeros((3, 4, 3), np.float32)), r"'pose_basis' .*\(9, 4, 3\)"),
    # motion
    "no motion": (lambda d: (d / M).unlink(), r"motion\.npz is missing"),
    "pickled": (pickled, r"motion\.npz holds pickled objects"),
    "motion version": (edit_arrays(M, version=2), r"motion\.npz is version 2"),
    "motion key missing": (edit_arrays(M, expression=None), r"has no 'expression'"),
    "motion of another rig": (edit_arrays(M, joint_rotations=np.zeros((4, 5, 3), np.float32)), r"\(4, 2, 3\)"),
    "NaN rotations": (edit_arrays(M, joint_rotations=with_entry((1, 0, 0), np.nan)), r"'joint_rotations' has 1"),
    "rig and vertices": (edit_arrays(M, vertices=np.zeros((4, 4, 3), np.float32)), r"two accounts"),
    "confidence above one": (edit_arrays(M, confidence=np.full((4, 2), 1.5, np.float32)), r"'confidence' spans"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses(folder: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(CaptureError, match=message) as caught:
        load_capture(folder)
        read_all(folder)
    assert "\n" not in str(caught.value)


def read_all(directory: Path) -> None:
    frames = load_capture(directory, check_pictures=False).frames
    for i in range(len(frames)):
        read_rgba(frames, i)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="is not a folder"):
        load_capture(tmp_path / "nowhere")


def test_loads_every_frame_in_file_order(folder: Path) -> None:
    capture = load_capture(folder)
    frames = capture.frames
    assert capture.fps == 30
    assert capture.motion.rigged
    assert frames.size.tolist() == [list(SIZE)] * 4
    assert frames.split.tolist() == ["train", "train", "train", "val"]
    np.testing.assert_allclose(yaw_deg(frames.camera_to_world), YAWS, atol=1e-9)
    for i in range(4):
        assert (read_rgba(frames, i) == picture(i)).all()


def test_a_picture_with_a_mask_reads_like_one_with_alpha(folder: Path) -> None:
    rgb_and_mask(folder, picture(1)[..., 3])
    assert (read_rgba(load_capture(folder).frames, 1) == picture(1)).all()


def test_frames_may_override_intrinsics(folder: Path) -> None:
    edit_frame(fl_x=50.0, k1=0.1)(folder)
    frames = load_capture(folder).frames
    assert frames.focal[:, 0].tolist() == [20, 50, 20, 20]
    assert frames.distortion[:, 0].tolist() == [0, 0.1, 0, 0]


def test_without_a_room_matrix_the_room_turns_with_the_camera(folder: Path) -> None:
    room = load_capture(folder).frames.room_to_world
    np.testing.assert_allclose(room[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(room[1, :3, :3] @ [0, -1, 0], [1, 0, 0], atol=1e-12)
    assert (room[:, :3, 3] == 0).all()


def test_yaw_of_a_camera_behind_is_180_and_never_minus_180() -> None:
    behind = camera(180)[None]
    behind[0, 0, 3] = -0.0
    assert yaw_deg(behind).tolist() == [180.0]


def test_motion_without_a_rig(folder: Path) -> None:
    changes = {"joint_rotations": None, "root_translation": None, "expression": None}
    vertices = np.ones((4, 4, 3), np.float32)
    given = {"vertices": vertices, "conditioning": vertices[:, 0, :2], "conditioning_names": ["a", "b"]}
    edit_arrays(M, **changes, **given)(folder)
    motion = load_capture(folder).motion
    assert not motion.rigged
    assert motion.conditioning_names == ("a", "b")


def test_template_and_motion_survive_a_round_trip(folder: Path, tmp_path: Path) -> None:
    template = load_template(folder / T)
    template.save(tmp_path / "again.npz")
    again = load_template(tmp_path / "again.npz")
    for name, value in vars(template).items():
        assert np.array_equal(value, getattr(again, name)), name
    motion = load_motion(folder / M, template)
    motion.save(tmp_path / "motion_again.npz")
    assert np.array_equal(load_motion(tmp_path / "motion_again.npz", again).joint_rotations, motion.joint_rotations)


def test_loads_a_real_capture(portrait_a: Path) -> None:
    capture = load_capture(portrait_a)
    assert len(capture.frames) == 600
    assert {"train", "val"} == set(capture.frames.split)
