"""The input stages on tiny videos, good and bad, with a stand-in for the networks: the red and blue figure is the person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.tracking.footage_files import encode, room, scene
from tests.tracking.test_input import face, turn
from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking import steps_input
from threevp_nerfstudio.tracking.settings import STAGES, TrackSettings
from threevp_nerfstudio.tracking.stages import Workspace, run_stages
from threevp_nerfstudio.workers import sharing

INPUT = {
    "frames": steps_input.frames_stage,
    "mattes": steps_input.mattes_stage,
    "landmarks": steps_input.landmarks_stage,
    "camera": steps_input.camera_stage,
}
FRAMES = 60


def person(picture: np.ndarray) -> np.ndarray:
    """Saturated red or blue."""
    colour = picture.astype(int)
    return np.where(np.ptp(colour, axis=-1) > 35, 255, 0).astype(np.uint8)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch):
    """Stand-ins; the face detector plays a full turn of 40 pictures, then looks ahead. It counts them, so one worker sees them all."""
    yaw = np.concatenate([turn(40), np.zeros(1000)])
    seen = {"i": 0}

    def detector():
        def detect(picture: np.ndarray) -> list[np.ndarray]:
            if picture.shape[0] == 96:  # a whole one; heads are enlarged
                return []
            i = seen["i"]
            seen["i"] += 1
            if i >= FRAMES or np.isnan(yaw[i]):
                return []
            middle = (picture.shape[1] / 2, picture.shape[0] / 2)
            small = face(float(yaw[i]), (0.0, 0.0)) * (0.3 * picture.shape[1] / 128)
            return [small + np.array([*middle, 0.0])]

        return detect

    monkeypatch.setattr(steps_input, "person_segmenter", lambda: person)
    monkeypatch.setattr(steps_input, "face_detector", detector)
    monkeypatch.setattr(steps_input.mediapipe_home, "available", lambda: True)
    with sharing(1):
        yield


def run(output: Path, upto: str = "camera", **options) -> Workspace:
    """The input stages up to one of them; the rest does nothing."""
    count = STAGES.index(upto) + 1
    functions = {s: INPUT[s] if n < count else (lambda job: None) for n, s in enumerate(STAGES)}
    return run_stages(TrackSettings(output=output, sfm="off", size=96, **options), functions, console=Console(quiet=True))


@pytest.fixture(scope="module")
def wall() -> np.ndarray:
    return (room(96, 96).astype(int) // 6 + 100).astype(np.uint8)  # little colour: not a person


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, wall: np.ndarray) -> Path:
    return encode(tmp_path_factory.mktemp("video") / "me.mp4", scene(FRAMES, 96, 96, background=wall)[0], 30)


def test_from_a_video_to_footage(tmp_path: Path, video: Path, networks):
    workspace = run(tmp_path, video=video, focal_35mm=50.0)
    footage, estimate = steps_input.load_footage(workspace)
    truth = scene(FRAMES, 96, 96)[1]
    fits = [(m & (a > 127)).sum() / (m | (a > 127)).sum() for m, a in zip(truth, footage.alpha, strict=True)]
    assert np.mean(fits) > 0.95
    assert len(footage) == FRAMES and abs(int(footage.static.sum()) - 40) <= 2
    assert estimate.known and footage.landmark_score[:5].min() > 0.5 and footage.landmark_score[18:22].max() == 0


def test_a_subject_who_leaves_is_tracked_where_it_is(tmp_path: Path, wall: np.ndarray, networks):
    pictures = scene(FRAMES, 96, 96, background=wall)[0]
    pictures[20:30] = wall
    workspace = run(tmp_path, "mattes", video=encode(tmp_path / "v.mp4", pictures, 30))
    assert any("out of the picture" in note and "10 pictures" in note for note in workspace.notes()), workspace.notes()
    stored, rgb, alpha, rows = steps_input.selected(workspace)
    assert len(rows) == len(rgb) == len(alpha) == 50 and not {20, 29} & set(rows.tolist())
    assert (np.asarray(alpha) > 127).any((1, 2)).all()


def test_nobody_in_view(tmp_path: Path, wall: np.ndarray, networks):
    video = encode(tmp_path / "v.mp4", np.stack([wall] * 12), 30)
    with pytest.raises(FootageError, match="stage mattes: no person was found"):
        run(tmp_path / "o", "mattes", video=video)


def test_no_face(tmp_path: Path, video: Path, networks, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps_input, "face_detector", lambda: lambda picture: [])
    with pytest.raises(FootageError, match="no face was found in any picture"):
        run(tmp_path, "landmarks", video=video)


def test_two_people(tmp_path: Path, video: Path, networks, monkeypatch: pytest.MonkeyPatch):
    def two(picture: np.ndarray) -> list[np.ndarray]:
        return [face(0.0, (48.0, 40.0)) * 0.9, face(0.0, (40.0, 40.0)) * 0.8]

    monkeypatch.setattr(steps_input, "face_detector", lambda: two)
    monkeypatch.setattr(steps_input, "find_in", lambda picture, alpha, detect: [face(0.0, (48.0, 40.0))])
    workspace = run(tmp_path, "landmarks", video=video)
    assert any("two faces are in view" in note for note in workspace.notes())


def test_the_users_mattes_win(tmp_path: Path, video: Path, networks):
    folder = tmp_path / "mattes"
    folder.mkdir()
    for i in range(FRAMES):
        matte = np.zeros((96, 96), np.uint8)
        matte[20:90, 30:70] = 255
        Image.fromarray(matte).save(folder / f"{i:03d}.png")
    workspace = run(tmp_path / "o", "mattes", video=video, mattes=folder)
    _, _, alpha, _ = steps_input.selected(workspace)
    assert (alpha[7] == matte).all()
    (folder / "000.png").unlink()
    with pytest.raises(FootageError, match="59 pictures, 60 were read"):
        run(tmp_path / "o", "mattes", video=video, mattes=folder)


def test_a_plate_without_mediapipe(tmp_path: Path, video: Path, wall: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps_input.mediapipe_home, "available", lambda: False)
    Image.fromarray(wall).save(tmp_path / "plate.png")
    workspace = run(tmp_path / "o", "mattes", video=video, plate=tmp_path / "plate.png")
    _, _, alpha, _ = steps_input.selected(workspace)
    truth = scene(FRAMES, 96, 96)[1]
    assert np.mean([(m & (a > 127)).sum() / (m | (a > 127)).sum() for m, a in zip(truth, alpha, strict=True)]) > 0.93
    Image.fromarray(wall[:48]).save(tmp_path / "half.png")
    with pytest.raises(FootageError, match="must show the same view"):
        run(tmp_path / "o", "mattes", video=video, plate=tmp_path / "half.png")


def test_a_small_subject_is_cut_out(tmp_path: Path, networks):
    wide = np.full((96, 240, 3), 120, np.uint8)
    pictures = np.stack([wide] * 24)
    pictures[:, :, 100:180] = scene(24, 96, 80, background=np.full((96, 80, 3), 120, np.uint8))[0]
    workspace = run(tmp_path, "frames", video=encode(tmp_path / "v.mp4", pictures, 30))
    stored = steps_input.Stored.load(workspace)
    x, y, w, h = stored.geometry.crop
    assert 60 < x < 125 and w < 140 and h > 80
    assert any("cut to the subject" in note for note in workspace.notes())


def test_two_videos(tmp_path: Path, video: Path, networks):
    workspace = run(tmp_path, "landmarks", static=video, dynamic=video)
    footage_split = steps_input.read_json(workspace.root / "landmarks" / "split.json")
    assert footage_split["end"] == FRAMES


def test_what_makes_no_sense_is_refused(tmp_path: Path, video: Path, networks):
    for options, message in (
        ({}, "give either --video"),
        ({"video": video, "static": video}, "give either --video"),
        ({"static": video}, "come together"),
        ({"video": video, "stride": 0}, "leave no picture"),
        ({"video": video, "start": 1.8}, "too few to track"),
    ):
        with pytest.raises(FootageError, match=message):
            run(tmp_path, "frames", **options)
