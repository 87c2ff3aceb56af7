"""Films and folders of pictures: what is written, and what is left where something stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.interrupts import interrupts
from threevp_nerfstudio.render.join import Join
from threevp_nerfstudio.render.outputs import OutputSpec, check_writable, open_output
from threevp_nerfstudio.render.pixels import background_of, fitted, opaque, over_color, straight
from threevp_nerfstudio.render.video import part_of, video_writer


def decoded(path: Path, alpha: bool = False) -> tuple[dict, np.ndarray]:
    """What another program sees in a film."""
    channels = 4 if alpha else 3
    given = ["-c:v", "libvpx-vp9"] if path.suffix == ".webm" else []
    frames = imageio_ffmpeg.read_frames(
        str(path), pix_fmt="rgba" if alpha else "rgb24", bits_per_pixel=8 * channels, input_params=given
    )
    about = next(frames)
    width, height = about["size"]
    return about, np.stack([np.frombuffer(f, np.uint8).reshape(height, width, channels) for f in frames])


def pictures(count: int, size: int = 32, alpha: bool = False) -> np.ndarray:
    """A red square that wanders over green, or over nothing."""
    frames = np.zeros((count, size, size, 4), np.uint8)
    frames[..., 1], frames[..., 3] = 200, 0 if alpha else 255
    for i in range(count):
        frames[i, 8:24, 2 + 2 * i : 18 + 2 * i] = (220, 20, 20, 255)
    return frames if alpha else frames[..., :3]


@pytest.mark.parametrize(("ending", "alpha"), [(".mp4", False), (".webm", False), (".webm", True), (".gif", False), (".gif", True)])
def test_a_film_decodes_to_its_pictures_size_and_rate(tmp_path: Path, ending: str, alpha: bool):
    frames = pictures(6, alpha=alpha)
    path = tmp_path / f"film{ending}"
    with video_writer(path, 32, 32, 5.0, alpha) as write:
        for frame in frames:
            write(frame)
    about, seen = decoded(path, alpha)
    assert about["size"] == (32, 32) and about["fps"] == pytest.approx(5.0)
    assert len(seen) == 6
    inside = (slice(None), slice(12, 20), slice(8, 12))
    assert np.abs(seen[:2][inside][..., :3].astype(int) - (220, 20, 20)).max() < 30
    if alpha:
        assert np.abs(seen[..., 3].astype(int) - frames[..., 3]).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_film_leaves_a_playable_part_and_the_old_film(tmp_path: Path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"the film of yesterday")
    with pytest.raises(KeyboardInterrupt), video_writer(path, 32, 32, 5.0) as write:
        for frame in pictures(4):
            write(frame)
        raise KeyboardInterrupt
    assert len(decoded(part_of(path))[1]) == 4
    assert path.read_bytes() == b"the film of yesterday"
    assert {p.name for p in tmp_path.iterdir()} == {"film.mp4", "film.part.mp4"}


def test_a_film_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), video_writer(tmp_path / "film.mp4", 32, 32, 5.0) as write:
        write(pictures(1)[0])
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_a_picture_is_written(number: int):
    log = []
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupt:
        with interrupt.held():
            os.kill(os.getpid(), number)
            log.append("written")
        log.append("never")
    assert log == ["written"]
    with pytest.raises(KeyboardInterrupt), interrupts():
        os.kill(os.getpid(), number)
        log.append("never")
    assert log == ["written"]


def spec(path: Path, **changes) -> OutputSpec:
    return OutputSpec(**{"path": path, "width": 32, "height": 32, "fps": 5.0, "count": 4, "alpha": False, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("film.avi", {}, ".avi is neither"),
        ("film.mp4", {"alpha": True}, "no transparency"),
        ("film.mp4", {"width": 31}, "even numbers"),
        ("film.mp4", {"fps": 0.0}, "--fps 0"),
        ("film.mp4", {"fps": 1e6}, "--fps 1e"),
        ("film.gif", {"fps": 60.0}, "hundredths"),
        ("film.mp4", {"width": 8}, "--size"),
        ("film.mp4", {"height": 100_000}, "--size"),
        ("film.mp4", {"count": 10**9}, "pictures"),
    ],
)
def test_outputs_out_of_reason_are_refused(tmp_path: Path, name: str, changes: dict, message: str):
    with pytest.raises(ThreeVPError, match=message):
        spec(tmp_path / name, **changes).check()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file" / "film.mp4", tmp_path / "file" / "folder"):
        with pytest.raises(ThreeVPError, match="cannot be written"):
            check_writable(output)


def test_a_folder_goes_on_where_it_stopped_and_joins(tmp_path: Path):
    folder, frames = tmp_path / "film", pictures(4)
    with open_output(spec(folder), {"who": "a"}) as output:
        assert output.missing(range(4)) == [0, 1, 2, 3]
        for i in (0, 2):
            output.write(i, frames[i])
    with pytest.raises(ThreeVPError, match="2 of 4 pictures are missing, the first is 000001.png"):
        Join(folder).join()
    with open_output(spec(folder), {"who": "a"}) as output:
        assert output.missing(range(4)) == [1, 3]
        for i in (1, 3):
            output.write(i, frames[i])
    assert np.array_equal(np.asarray(Image.open(folder / "000003.png")), frames[3])
    about, seen = decoded(Join(folder).join())
    assert len(seen) == 4 and about["fps"] == 5.0 and (tmp_path / "film.mp4").is_file()
    assert not list(folder.glob(".*"))


def test_pictures_of_another_film_are_not_mixed_in(tmp_path: Path):
    with open_output(spec(tmp_path / "film"), {"who": "a"}) as output:
        output.write(0, pictures(1)[0])
    with pytest.raises(ThreeVPError, match=r"another film \(other fps, who\)"), open_output(
        spec(tmp_path / "film", fps=6.0), {"who": "b"}
    ):
        pass
    with open_output(spec(tmp_path / "film"), {"who": "b"}, overwrite=True) as output:
        assert output.missing(range(4)) == [0, 1, 2, 3]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").write_bytes(b"")
    with pytest.raises(ThreeVPError, match="something else"), open_output(spec(tmp_path / "photos"), {}):
        pass


def test_transparent_pictures_join_with_alpha_or_over_a_colour(tmp_path: Path):
    folder, frames = tmp_path / "film", pictures(3, alpha=True)
    with open_output(spec(folder, count=3, alpha=True), {}) as output:
        for i, frame in enumerate(frames):
            output.write(i, frame)
    film = Join(folder).join()
    assert film.suffix == ".webm" and decoded(film, alpha=True)[1][0, 2, 2, 3] < 10
    blue = decoded(Join(folder, tmp_path / "blue.mp4", background="blue").join())[1]
    assert np.abs(blue[0, 2, 2].astype(int) - (0, 0, 255)).max() < 30
    with pytest.raises(ThreeVPError, match="no transparency"):
        Join(folder, tmp_path / "film2.mp4").join()
    (folder / "000001.png").write_bytes(b"damaged")
    with pytest.raises(ThreeVPError, match="000001.png: cannot be decoded"):
        Join(folder).join()
    with pytest.raises(ThreeVPError, match="film.json"):
        Join(tmp_path / "nothing").join()


def test_straight_alpha_over_a_colour_is_the_opaque_picture():
    rng = np.random.default_rng(0)
    alpha = rng.random((9, 7)).astype(np.float32)
    alpha[:3] = 0.0
    premultiplied = (rng.random((9, 7, 3)) * alpha[..., None]).astype(np.float32)
    color = (0.2, 0.5, 0.9)
    rgba = straight(premultiplied, alpha)
    assert np.abs(over_color(rgba, color).astype(int) - opaque(premultiplied, alpha, color)).max() <= 2
    assert (rgba[0, :, :3] == rgba[3, :, :3]).all()  # the transparent part has the colours of its border


def test_colours_by_name_and_number():
    assert background_of("transparent") is None
    assert background_of("#ff8000") == (1.0, pytest.approx(128 / 255), 0.0)
    with pytest.raises(ThreeVPError, match="no such colour"):
        background_of("blurple")


def test_pictures_beside_have_the_films_height():
    assert fitted(np.zeros((10, 15, 3), np.uint8), 32, even=True).shape == (32, 48, 3)
    assert fitted(np.zeros((10, 11, 4), np.uint8), 30, even=True).shape == (30, 34, 4)
