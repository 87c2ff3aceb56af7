"""CSV files of face-capture apps: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.animation.conftest import write_take
from threevp_nerfstudio.animation.livelink import read_face_csv
from threevp_nerfstudio.animation.names import ARKIT_NAMES, plain
from threevp_nerfstudio.errors import PoseError


def small(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_take_of_a_known_shape_gives_known_coefficients(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = {n[0].upper() + n[1:]: rng.random(12).round(6) for n in ARKIT_NAMES}
    values["HeadPitch"] = np.linspace(-0.2, 0.3, 12).round(6)
    take = read_face_csv(write_take(tmp_path / "take.csv", values, fps=30))
    assert take.names == ARKIT_NAMES
    np.testing.assert_allclose(take.values, np.stack(list(values.values())[:52], 1))
    np.testing.assert_allclose(take.rotations["head"][:, 1], values["HeadPitch"])
    assert set(take.rotations) == {"head", "lefteye", "righteye"}


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0, 60.0])
def test_timecodes_count_in_the_rate_that_they_show(tmp_path: Path, fps: float):
    count = int(2.5 * fps)
    take = read_face_csv(write_take(tmp_path / "take.csv", {"JawOpen": np.zeros(count)}, fps))
    np.testing.assert_allclose(take.times, np.arange(count) / fps, atol=1e-9)


def test_within_one_second_the_rate_is_the_apps_or_given(tmp_path: Path):
    path = write_take(tmp_path / "take.csv", {"JawOpen": np.zeros(10)}, 30)
    assert read_face_csv(path).times[-1] == pytest.approx(9 / 60)
    assert read_face_csv(path, timecode_fps=30.0).times[-1] == pytest.approx(9 / 30)


def test_a_take_may_pass_midnight(tmp_path: Path):
    take = read_face_csv(write_take(tmp_path / "take.csv", {"JawOpen": np.zeros(120)}, 60, start=24 * 3600 - 1))
    assert take.times[-1] == pytest.approx(119 / 60)


def test_other_apps_and_other_spellings(tmp_path: Path):
    path = small(tmp_path / "a.csv", "timestamp;jawOpen;eyeblink_L;note\n5.0;0.25;1;hello\n5.5;0.5;0;x\n")
    take = read_face_csv(path)
    assert take.names == ("jawOpen", "eyeBlinkLeft") and take.ignored == ("note",) and not take.rotations
    assert take.times.tolist() == [0.0, 0.5] and take.values.tolist() == [[0.25, 1.0], [0.5, 0.0]]
    millis = read_face_csv(small(tmp_path / "b.csv", "\ufefftimestamp_ms,JAWOPEN\n0,0.1\n33,0.2\n"))
    assert millis.times[1] == pytest.approx(0.033)
    frames = read_face_csv(small(tmp_path / "c.csv", "frame,jawOpen\n0,0.1\n1,0.2\n"), timecode_fps=25.0)
    assert frames.times[1] == pytest.approx(0.04)
    assert plain("EyeBlink_R") == plain("eyeBlinkRight") == "eyeblinkright"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("time,jawOpen\n", "no rows"),
        ("jawOpen\n0.1\n", "no column of times"),
        ("time,colour\n0,red\n1,blue\n", "no blendshape"),
        ("time,jawOpen\n0,0.1\n1,\n2,0.3\n", "row 3: no face"),
        ("time,jawOpen,mouthLeft\n0,0,0.1\n1,0.5,\n", "row 3: 'mouthLeft' is empty"),
        ("time,jawOpen\n0,0.1\n1,nan\n", "row 3: 'jawOpen' is 'nan'"),
        ("time,jawOpen\n0,0.1\n1,inf\n", "row 3: 'jawOpen' is 'inf'"),
        ("time,jawOpen\n0,0.1\n2,0.2\n1,0.3\n", "row 4: time goes"),
        ("time,jawOpen\n0,0.1\n1,0.2\n1,0.3\n", "row 4: time goes"),
        ("time,jawOpen\n0,0\n1,0\n2,0\n3,0\n9,0\n", "row 6: a gap of 6.000 s"),
        ("time,jawOpen\n0,0.1\n1,0.2,0.3\n", "row 3 has 3 values"),
        ("time,jawOpen,JawOpen\n0,0.1,0.2\n", "more than once"),
        ("time,jawOpen\n0,40\n1,80\n", "in percent"),
        ("time,jawOpen,headYaw\n0,0,30\n1,0,20\n", "degrees"),
        ("timecode,jawOpen\n10:00:00:00,0\nlater,0\n", "row 3: timecode 'later'"),
    ],
)
def test_what_is_wrong_with_a_take_is_named_by_row(tmp_path: Path, text: str, message: str):
    with pytest.raises(PoseError, match=message):
        read_face_csv(small(tmp_path / "take.csv", text))


def test_gaps_are_bridged_only_when_asked_and_only_that_far(tmp_path: Path):
    lost = small(tmp_path / "lost.csv", "time,blendshapecount,jawOpen\n0,1,0.1\n1,0\n2,1,0.3\n3,1,0.4\n")
    with pytest.raises(PoseError, match="max-gap"):
        read_face_csv(lost)
    assert read_face_csv(lost, max_gap=2.0).times.tolist() == [0.0, 2.0, 3.0]
    wide = small(tmp_path / "wide.csv", "time,jawOpen\n0,0\n1,0\n2,0\n3,0\n9,0\n")
    assert len(read_face_csv(wide, max_gap=6.0).times) == 5
    with pytest.raises(PoseError, match="a gap of"):
        read_face_csv(wide, max_gap=5.0)


def test_degrees_are_read_as_degrees(tmp_path: Path):
    path = small(tmp_path / "a.csv", "time,jawOpen,headYaw\n0,0,90\n1,0,0\n")
    assert read_face_csv(path, angle_unit="degrees").rotations["head"][0, 0] == pytest.approx(np.pi / 2)


def test_files_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PoseError, match="not a text file"):
        read_face_csv(tmp_path / "a.csv")
    with pytest.raises(PoseError, match="cannot be read"):
        read_face_csv(tmp_path / "none.csv")
