"""Landmarks are believed where faces can be, the turn is found, focal lengths are read, and stages go on where they stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from threevp_nerfstudio.errors import FootageError, TrackError
from threevp_nerfstudio.tracking.camera import (
    CameraEstimate,
    first_estimate,
    focal_from_tags,
    focal_px,
    judge_sfm,
    pinhole,
)
from threevp_nerfstudio.tracking.framing import parse_crop, subject_box
from threevp_nerfstudio.tracking.ingest import Geometry
from threevp_nerfstudio.tracking.landmarks import (
    COUNT,
    Landmarks,
    assemble,
    believable,
    head_box,
    split_runs,
    user_landmarks,
    yaw_of,
)
from threevp_nerfstudio.tracking.settings import STAGES, TrackSettings
from threevp_nerfstudio.tracking.sfm_worker import middle
from threevp_nerfstudio.tracking.split import find_split, split_at
from threevp_nerfstudio.tracking.stages import Job, Workspace, run_stages, stage_keys

FPS = 30.0


def face(yaw_deg: float, at: tuple[float, float] = (128.0, 128.0), opening: float = 0.0) -> np.ndarray:
    """A crude face mesh on a head of 40 pixels' radius, turned; positive yaw shows the subject's left."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-25, 25, (COUNT, 3))
    points[:, 2] = -np.sqrt(np.maximum(1600 - points[:, 0] ** 2 - points[:, 1] ** 2, 0))
    points[454], points[234] = (38, 0, -5), (-38, 0, -5)
    points[10], points[152] = (0, -45, -30), (0, 45, -30)
    points[33], points[263] = (-20, -10, -30), (20, -10, -30)
    points[1] = (0, 5, -48)
    points[13], points[14] = (0, 20, -38), (0, 20 + 40 * opening, -38)
    a = np.radians(-yaw_deg)  # the subject's left to the front: turned to the picture's left
    R = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    return points @ R.T + np.array([*at, 0.0])


def landmarks(yaw: np.ndarray, opening: np.ndarray | None = None) -> Landmarks:
    """As a detector sees a head with these yaws; NaN: no face."""
    opening = np.zeros(len(yaw)) if opening is None else opening
    found = [[] if np.isnan(y) else [face(y, opening=o)] for y, o in zip(yaw, opening, strict=True)]
    return assemble(found, np.arange(len(yaw)) / FPS)


def turn(frames: int, direction: int = 1, seen: float = 80.0) -> np.ndarray:
    yaw = direction * np.linspace(0, 360, frames, endpoint=False)
    yaw = (yaw + 180) % 360 - 180
    return np.where(np.abs(yaw) < seen, yaw, np.nan)


def test_yaw_of_a_mesh():
    for yaw in (-60.0, 0.0, 35.0):
        assert yaw_of(face(yaw)) == pytest.approx(yaw, abs=1.0)


@pytest.mark.parametrize("direction", [1, -1])
def test_the_end_of_a_full_turn(direction: int):
    rng = np.random.default_rng(0)
    talk = 50 * np.sin(np.arange(200) / 15)
    found = find_split(landmarks(np.concatenate([turn(180, direction), talk]) + rng.normal(0, 0.5, 380)), np.arange(380) / FPS)
    assert found.full_turn and abs(found.end - 180) <= 3 and found.start == 0


@pytest.mark.parametrize("direction", [1, -1])
def test_a_quick_turn_of_a_face_between_long_hair(direction: int):
    """It is seen up to 39 degrees, for half a second at the start."""
    yaw = np.concatenate([turn(100, direction, seen=39.0), 35 * np.sin(np.arange(140) / 18)])
    yaw[45:50] = 3.0  # a face seen on the hair
    seen = landmarks(yaw)
    assert (seen.score[:10] > 0.5).all() and (seen.score[90:] > 0.5).all() and (seen.score[45:50] == 0).all()
    found = find_split(seen, np.arange(240) / FPS)
    assert found.full_turn and abs(found.end - 100) <= 3


def test_no_full_turn_is_told():
    yaw = 40 * np.sin(np.arange(300) / 30)
    opening = np.where(np.arange(300) > 120, 0.5 * np.abs(np.sin(np.arange(300) / 4)), 0.0)
    found = find_split(landmarks(yaw, opening), np.arange(300) / FPS)
    assert not found.full_turn and 30 <= found.end <= 150 and "no full turn was seen" in found.note


def test_a_head_that_looks_away_and_back_is_no_turn():
    yaw = np.concatenate([np.linspace(0, 80, 40), np.full(40, np.nan), np.linspace(80, 0, 40), np.zeros(100)])
    assert not find_split(landmarks(yaw), np.arange(220) / FPS).full_turn


def test_where_the_user_says():
    assert split_at(np.arange(100) / 10, 4.0).end == 40


def test_faces_on_the_back_of_the_head_are_not_believed():
    yaw = np.concatenate([turn(180), np.zeros(60)])
    hallucinated = yaw.copy()
    hallucinated[85:95] = 4.0
    hallucinated[110] = -10.0
    score = landmarks(hallucinated).score
    assert (score[85:95] == 0).all() and score[110] == 0
    assert (score[np.isfinite(yaw)] > 0.3).all()


def test_a_face_that_is_missed_for_a_moment_is_still_believed():
    yaw = np.zeros(90)
    yaw[40:44] = np.nan
    assert (landmarks(yaw).score[np.isfinite(yaw)] > 0.9).all()


def test_runs_break_where_no_head_can_turn_so_fast():
    yaw, times = np.array([0.0, 5.0, 80.0, 82.0, np.nan, 60.0]), np.arange(6) / FPS
    assert split_runs(yaw, times) == [(0, 2), (2, 4), (5, 6)]
    assert believable(np.full((6, COUNT, 2), np.nan), np.full(6, np.nan), times).tolist() == [0.0] * 6


def test_of_two_faces_the_same_one_is_followed():
    near, far = face(0, (80, 128)), face(0, (200, 128))
    found = assemble([[near], [far, near], [far, near]], np.arange(3) / FPS)
    np.testing.assert_allclose(found.points[:, :, 0].mean(1), 80, atol=5)
    assert found.faces.tolist() == [1, 2, 2]


def test_the_head_is_looked_for_in_the_upper_part():
    alpha = np.zeros((200, 300), np.uint8)
    alpha[40:100, 130:180], alpha[100:200, 80:230] = 255, 255
    x, y, w, h = head_box(alpha)
    assert x <= 130 and y <= 40 and x + w >= 180 and y + h >= 100 and head_box(0 * alpha) is None


def test_the_users_landmarks(tmp_path: Path):
    points = np.stack([face(0)[:, :2], face(30)[:, :2], face(0)[:, :2]])
    points[2] = np.nan
    np.savez(tmp_path / "l.npz", landmarks=points)
    found = user_landmarks(tmp_path / "l.npz", 3, 0.5, (20, 10), np.array([0, 1, 2]))
    np.testing.assert_allclose(found.points[0], (points[0] - [20, 10]) / 2)
    assert found.score.tolist() == [1, 1, 0] and found.yaw_deg[1] > 10
    with pytest.raises(FootageError, match="3 pictures, 5 were read"):
        user_landmarks(tmp_path / "l.npz", 5, 1.0, (0, 0), np.arange(5))
    np.savez(tmp_path / "m.npz", landmarks=points[:, :68])
    with pytest.raises(FootageError, match=r"shape \(3, 68, 2\)"):
        user_landmarks(tmp_path / "m.npz", 3, 1.0, (0, 0), np.arange(3))


GEOMETRY = Geometry((1920, 1080), (480, 40, 960, 960), (480, 480))


def test_the_camera_of_cut_and_scaled_pictures():
    camera = pinhole(1500.0, GEOMETRY)
    assert (camera.fx, camera.cx, camera.cy, camera.width) == (750.0, 240.0, 250.0, 480)


def test_focal_length_from_metadata():
    assert focal_from_tags({"com.apple.quicktime.camera.focal_length.35mm_equivalent": "26"}) == 26
    assert focal_from_tags({"focallengthin35mmfilm": "52"}) == 52
    assert focal_from_tags({"encoder": "Lavf 35mm", "focallength": "4.2"}) is None
    estimate = first_estimate(GEOMETRY, {"focallengthin35mmfilm": "43.2666"}, None, None, ())
    assert estimate.origin == "metadata" and not estimate.known
    assert estimate.camera.fx == pytest.approx(np.hypot(1920, 1080) / 2)


def test_focal_length_from_the_user():
    estimate = first_estimate(GEOMETRY, {"focallengthin35mmfilm": "26"}, 1500.0, None, (0.1, 0.0, 0.0, 0.0))
    assert estimate.known and estimate.camera.fx == 750 and estimate.camera.distortion[0] == 0.1
    assert first_estimate(GEOMETRY, {}, None, 50.0, ()).camera.fx == pytest.approx(focal_px(50.0, 1920, 1080) / 2)
    for wrong, message in (
        ({"focal": 1.0, "focal_35mm": 2.0, "distortion": ()}, "give one of them"),
        ({"focal": -1.0, "focal_35mm": None, "distortion": ()}, "is positive"),
        ({"focal": None, "focal_35mm": None, "distortion": (0.1,)}, "four numbers"),
    ):
        with pytest.raises(FootageError, match=message):
            first_estimate(GEOMETRY, {}, **wrong)


def test_structure_from_motion_counts_only_when_it_stands_on_enough():
    guess = CameraEstimate(pinhole(1500.0, GEOMETRY), "guess")
    good = {"registered": 45, "focal": 800.0, "error_px": 0.8, "span_deg": 170.0}
    assert judge_sfm(guess, good, 48).origin == "sfm" and judge_sfm(guess, good, 48).camera.fx == 800.0
    for worse in ({"registered": 10}, {"focal": 20.0}, {"error_px": 3.0}, {"span_deg": 20.0}):
        kept = judge_sfm(guess, {**good, **worse}, 48)
        assert kept.origin == "guess" and kept.camera.fx == 750.0 and "--focal-35mm" in kept.notes[-1]


def test_of_several_reconstructions_the_middle_one_counts():
    found = [{"registered": n, "focal": f} for n, f in ((48, 1691.0), (47, 1674.0), (20, 900.0), (48, 1740.0), (46, 1686.0))]
    assert middle(found)["focal"] == 1686.0
    assert middle([{"registered": 0, "focal": 0.0}])["registered"] == 0


def test_crops():
    assert parse_crop("auto") is None and parse_crop("10,20,300,400") == (10, 20, 300, 400)
    with pytest.raises(FootageError, match="left,top,width,height"):
        parse_crop("10,20")
    P = np.zeros((100, 200), np.uint8)
    P[10:60, 30:80], P[90:93, 190:193] = 255, 255
    assert subject_box(P) == (30, 10, 80, 60) and subject_box(0 * P) is None


class Recorded:
    """Stages that write down that they ran; one may fail."""

    def __init__(self, fails: str | None = None) -> None:
        self.ran: list[str] = []
        self.fails = fails

    def functions(self) -> dict:
        def make(stage):
            def run(job: Job) -> None:
                if stage == self.fails:
                    raise FootageError("frame 12 is empty; do this")
                self.ran.append(stage)
                job.progress("working", 1, 2)
                job.note(f"{stage} was here")

            return run

        return {stage: make(stage) for stage in STAGES}


def run(settings: TrackSettings, start_from=None, fails=None) -> list[str]:
    stages = Recorded(fails)
    run_stages(settings, stages.functions(), start_from, Console(quiet=True))
    return stages.ran


def test_stages_run_once_and_again_where_settings_change(tmp_path: Path):
    settings = TrackSettings(output=tmp_path, video=Path("v.mp4"))
    assert run(settings) == list(STAGES)
    assert run(settings) == []
    assert Workspace.open(tmp_path).notes()[0] == "frames was here"
    settings.turn_end = 3.0
    assert run(settings) == list(STAGES[2:])
    settings.overlay = False
    assert run(settings) == ["report"]
    assert run(settings, "tracking") == ["tracking", "capture", "polish", "report"]
    settings.size = 256
    assert run(settings) == list(STAGES)


def test_a_failing_stage_says_which_and_the_same_command_goes_on(tmp_path: Path):
    settings = TrackSettings(output=tmp_path, video=Path("v.mp4"))
    with pytest.raises(FootageError, match=r"stage landmarks: frame 12 is empty; do this\n.*goes on from landmarks"):
        run(settings, fails="landmarks")
    assert run(settings) == list(STAGES[2:])


def test_from_needs_what_comes_before(tmp_path: Path):
    settings = TrackSettings(output=tmp_path, video=Path("v.mp4"))
    with pytest.raises(TrackError, match="frames was not done"):
        run(settings, "camera")
    run(settings)
    settings.stride = 2
    with pytest.raises(TrackError, match="--from frames"):
        run(settings, "camera")


def test_another_file_under_the_same_name_counts(tmp_path: Path):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"one")
    settings = TrackSettings(output=tmp_path / "o", video=video)
    before = stage_keys(settings)
    video.write_bytes(b"another")
    assert stage_keys(settings)["frames"] != before["frames"]
