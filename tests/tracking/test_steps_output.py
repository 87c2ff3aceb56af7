"""From footage to capture and report through the real stages; fit and track are stand-ins that know the answer."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.tracking.known_track import known_track
from threevp_nerfstudio.capture.capture import load_capture, read_rgba
from threevp_nerfstudio.errors import FootageError, TrackError
from threevp_nerfstudio.polish.stage import polish_stage
from threevp_nerfstudio.track_command import Track as TrackCommand
from threevp_nerfstudio.tracking import steps_output
from threevp_nerfstudio.tracking.background import from_plate
from threevp_nerfstudio.tracking.ingest import Geometry
from threevp_nerfstudio.tracking.landmarks import COUNT
from threevp_nerfstudio.tracking.settings import STAGES
from threevp_nerfstudio.tracking.stages import Job, Workspace, run_stages
from threevp_nerfstudio.tracking.steps_output import load_track
from threevp_nerfstudio.tracking.store import PictureWriter, open_pictures, write_arrays, write_json


def stand_in_input(footage):
    """Input stages that write what they would have found in `footage`, which starts at 2 s of its video."""
    N, height, width = footage.rgb.shape[:3]
    geometry = Geometry((width, height), (0, 0, width, height), (width, height))

    def frames(job: Job) -> None:
        folder = job.workspace.folder("frames")
        with PictureWriter(folder / "rgb.npy", (height, width, 3)) as writer:
            for picture in footage.rgb:
                writer.append(picture)
        write_arrays(folder / "pictures.npz", times=footage.times + 2.0, clip=np.zeros(N, dtype=int))
        facts = {"first": 0, "last": N, "geometry": asdict(geometry), "has_alpha": False, "tags": {}, "fps": 30.0}
        write_json(folder / "frames.json", facts)

    def mattes(job: Job) -> None:
        folder = job.workspace.folder("mattes")
        with PictureWriter(folder / "all_alpha.npy", (height, width)) as writer:
            for alpha in footage.alpha:
                writer.append(alpha)
        write_arrays(folder / "mattes.npz", keep=np.ones(N, dtype=bool))
        from_plate(np.zeros((height, width, 3), np.uint8)).save(folder / "room.npz")

    def landmarks(job: Job) -> None:
        folder = job.workspace.folder("landmarks")
        write_arrays(folder / "landmarks.npz", points=np.full((N, COUNT, 2), np.nan), score=np.zeros(N), yaw_deg=np.full(N, np.nan))
        write_json(folder / "split.json", {"start": 0, "end": int(footage.static.sum()), "full_turn": True, "note": None})

    def camera(job: Job) -> None:
        content = {"camera": asdict(footage.camera), "origin": "user", "notes": []}
        write_json(job.workspace.folder("camera") / "camera.json", content)

    return {"frames": frames, "mattes": mattes, "landmarks": landmarks, "camera": camera}


@pytest.fixture
def known(tiny_capture: Path, monkeypatch: pytest.MonkeyPatch):
    footage, fitted, track = known_track(tiny_capture)
    calls: dict[str, object] = {}

    def fit(seen, options, body=None, template=None, progress=lambda *_: None):
        calls["fit"] = (len(seen), int(seen.static.sum()), options.focal_spread)
        progress("shape", 1, 1)
        return fitted

    def follow(seen, fitted, options, resume=None, settle=None, progress=lambda *_: None):
        calls["resume"] = resume
        lost = np.zeros(len(track), dtype=bool)
        lost[5] = True
        return replace(track, lost=lost)

    monkeypatch.setattr(steps_output, "fit_template", fit)
    monkeypatch.setattr(steps_output, "track", follow)
    return footage, calls


def test_the_whole_of_it(known, tmp_path: Path, tiny_capture: Path):
    footage, calls = known
    command = TrackCommand(output=tmp_path / "me", video=Path("v.mp4"), polish_steps=100)
    output = {
        "template": steps_output.template_stage,
        "tracking": steps_output.tracking_stage,
        "capture": steps_output.capture_stage,
        "polish": polish_stage,
        "report": command.report_and_overlay,
    }
    functions = {**stand_in_input(footage), **output}
    workspace = run_stages(command, functions, console=Console(quiet=True))
    assert calls["fit"] == (42, 20, 0.0) and calls["resume"].parent.name == "tracking"
    capture = load_capture(tmp_path / "me")
    assert len(capture.frames) == 41
    for name in ("report.html", "report.json", "overlay.mp4"):
        assert (tmp_path / "me" / name).stat().st_size > 1000
    assert any("1 of 42 pictures were lost" in note for note in workspace.notes())
    assert set(workspace.state) == set(STAGES)
    polished = load_track(workspace, polished=True)
    moved = np.linalg.norm((polished.T_camera_root - load_track(workspace).T_camera_root)[:, :3, 3], axis=1)
    assert 0 < np.median(moved) < 0.01 and moved[5] == 0  # which was lost
    np.testing.assert_allclose(capture.frames.camera_to_world, np.delete(polished.camera_to_world(), 5, 0), atol=1e-5)
    assert any("poses were corrected by" in note for note in workspace.notes())
    remade, rows = open_pictures(workspace.root / "polish" / "alpha.npy"), np.delete(np.arange(42), 5)
    assert np.array_equal(remade[5], footage.alpha[5]) and not np.array_equal(remade, footage.alpha)
    assert all(np.array_equal(read_rgba(capture.frames, n)[..., 3], remade[i]) for n, i in enumerate(rows))
    command.polish = False
    workspace = run_stages(command, functions, console=Console(quiet=True))
    assert np.array_equal(load_track(workspace, polished=True).T_camera_root, load_track(workspace).T_camera_root)
    as_tracked = load_capture(tmp_path / "me").frames.camera_to_world
    np.testing.assert_allclose(as_tracked, np.delete(load_track(workspace).camera_to_world(), 5, 0), atol=1e-5)
    assert not (workspace.root / "polish" / "alpha.npy").exists()
    frames = load_capture(tmp_path / "me").frames
    assert all(np.array_equal(read_rgba(frames, n)[..., 3], footage.alpha[i]) for n, i in enumerate(rows))
    assert capture.motion.times[0] == pytest.approx(0.0)
    import json

    assert json.loads((tmp_path / "me" / "transforms.json").read_text())["video_start"] == pytest.approx(2.0)


def test_too_short_a_polish_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(FootageError, match="--polish-steps 5: 100 are the least"):
        TrackCommand(output=tmp_path / "me", video=tmp_path / "none.mp4", polish_steps=5).track(Console(quiet=True))
    assert not (tmp_path / "me").exists()


def test_stages_say_what_they_lack(known, tmp_path: Path):
    job = Job(TrackCommand(output=tmp_path), Workspace.open(tmp_path), lambda *_: None)
    with pytest.raises(TrackError, match="run again from the stage that writes it"):
        steps_output.tracking_stage(job)
