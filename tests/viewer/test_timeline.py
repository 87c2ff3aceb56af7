"""The clock of the performance, and the training frames by yaw and expression."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.render.orbit import orbit
from threevp_nerfstudio.viewer.timeline import Timeline
from threevp_nerfstudio.viewer.training_views import TrainingViews, bars


def timeline() -> Timeline:
    return Timeline([0.0, 0.1, 0.4, 1.0], duration=10.0)


def test_time_passes_only_while_playing_and_by_speed():
    t = timeline()
    assert not t.advance(1.0) and t.position == 0.0
    t.play()
    assert t.advance(1.0) and t.position == pytest.approx(0.1)
    t.speed = 0.5
    t.advance(1.0)
    assert t.seconds == pytest.approx(1.5)


def test_at_the_end_it_loops_or_stops():
    t = timeline()
    t.seek(0.95)
    t.play()
    t.advance(1.0)
    assert t.playing and t.position == pytest.approx(0.05)
    t.loop = False
    t.seek(0.95)
    t.advance(1.0)
    assert not t.playing and t.position == 1.0
    t.play()  # from the start again
    assert t.position == 0.0


def test_steps_go_from_frame_to_frame_and_hold_at_the_ends():
    t = timeline()
    t.play()
    t.seek(0.2)
    t.step(1)
    assert t.position == 0.4 and not t.playing
    t.step(-1)
    assert t.position == 0.1
    t.step(-5)
    assert t.position == 0.0
    t.step(9)
    assert t.position == 1.0


def test_seeking_holds_at_the_ends():
    t = timeline()
    t.seek(-3.0)
    assert t.position == 0.0
    t.seek(3.0)
    assert t.position == 1.0


def frames(yaws_deg: list[float]) -> Frames:
    n = len(yaws_deg)
    from pathlib import Path

    return Frames(
        image_paths=tuple(Path(f"{i}.png") for i in range(n)),
        mask_paths=(None,) * n,
        camera_to_world=orbit(np.zeros(3), 2.0, 0.1, np.radians(yaws_deg)),
        room_to_world=np.tile(np.eye(4), (n, 1, 1)),
        focal=np.full((n, 2), 100.0),
        principal_point=np.full((n, 2), 50.0),
        distortion=np.zeros((n, 4)),
        size=np.full((n, 2), 100),
        times=np.arange(n) / 30,
        motion_index=np.arange(n),
        split=np.array(["train"] * n),
        sequence=np.array(["static"] * n),
    )


def test_the_nearest_frame_is_by_yaw_across_the_back_and_then_by_expression():
    views = TrainingViews(
        frames([0.0, 5.0, 90.0, 178.0, -90.0]), np.arange(5), np.array([[0.0], [1.0], [0.0], [0.0], [0.0]]),
        lambda i: np.zeros((1, 1, 4), np.uint8),
    )  # fmt: skip
    assert views.nearest(-179.0) == 3 and views.nearest(80.0) == 2
    assert views.nearest(1.0) == 0 and views.nearest(1.0, np.array([0.9])) == 1
    assert views.nearest(90.0, np.array([1.0])) == 2  # no other is near
    assert views.yaw_of(4) == pytest.approx(-90.0)
    assert views.fov_y(0) == pytest.approx(2 * np.arctan(0.5))


def test_only_training_frames_are_offered():
    views = TrainingViews(frames([0.0, 10.0]), np.array([1]), np.zeros((2, 1)), lambda i: np.zeros((1, 1, 4), np.uint8))
    assert views.nearest(0.0) == 1


def test_a_thumbnail_is_a_small_picture_over_white():
    import base64
    import io

    from PIL import Image

    picture = np.zeros((400, 300, 4), np.uint8)
    picture[100:300, 100:200] = (200, 0, 0, 255)
    views = TrainingViews(frames([0.0]), np.array([0]), np.zeros((1, 1)), lambda i: picture)
    kind, content = views.thumbnail(0).split(",")
    assert kind == "data:image/jpeg;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert image.shape == (200, 150, 3)
    assert image[5, 5].min() > 245 and image[100, 75, 0] > 180 and image[100, 75, 1] < 30


def test_bars_show_the_largest_first():
    lines = bars(["a", "bb", "c"], np.array([0.2, -0.9, 0.001])).splitlines()
    assert [line.split()[0] for line in lines] == ["bb", "a"]
    assert lines[0].count("█") > lines[1].count("█") > 0
    assert bars(["a"], np.zeros(1)) == "all about zero"
