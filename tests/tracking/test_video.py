"""Videos and folders come out upright, in their real time and true colours; broken ones are refused or read as far as they go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tracking.footage_files import encode, ffmpeg, scene
from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.ingest import Source, find_cuts, ingest, longest_shot, plan_geometry
from threevp_nerfstudio.tracking.store import open_pictures
from threevp_nerfstudio.tracking.video import pictures, probe


def read(path: Path, **options) -> tuple[list, list[str]]:
    notes: list[str] = []
    return list(pictures(probe(path), notes, **options)), notes


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    return scene(12, 64, 96)[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, shown: np.ndarray) -> Path:
    return encode(tmp_path_factory.mktemp("video") / "plain.mp4", shown)


def test_pictures_and_times(plain: Path, shown: np.ndarray):
    found, notes = read(plain)
    assert len(found) == 12 and not notes
    np.testing.assert_allclose([p.time for p in found], np.arange(12) / 10, atol=1e-3)
    assert np.abs(found[5].rgb.astype(float) - shown[5]).mean() < 4


def test_start_end_and_stride(plain: Path):
    found, _ = read(plain, start=0.2, end=0.9, stride=3)
    np.testing.assert_allclose([p.time for p in found], [0.2, 0.5, 0.8], atol=1e-3)
    with pytest.raises(FootageError, match="no picture between 5 s"):
        read(plain, start=5.0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_flags_are_followed_as_ffmpeg_follows_them(tmp_path: Path, plain: Path, degrees: int):
    turned, upright = tmp_path / "turned.mp4", tmp_path / "upright.png"
    ffmpeg("-display_rotation", degrees, "-i", plain, "-c", "copy", turned)
    ffmpeg("-i", turned, "-frames:v", 1, upright)
    expected = np.array(Image.open(upright).convert("RGB")).astype(float)
    clip = probe(turned)
    first = next(iter(pictures(clip, [])))
    assert (clip.height, clip.width) == expected.shape[:2] == first.rgb.shape[:2]
    assert np.abs(first.rgb - expected).mean() < 4


def test_variable_frame_rate_keeps_the_real_times(tmp_path: Path, plain: Path):
    path = tmp_path / "vfr.mp4"
    ffmpeg("-i", plain, "-vf", "setpts='if(lt(N,6),N,6+(N-6)*3)/10/TB'", "-fps_mode", "vfr", "-c:v", "libx264", path)
    found, _ = read(path)
    steps = np.diff([p.time for p in found])
    np.testing.assert_allclose(steps, [0.1] * 6 + [0.3] * 5, atol=0.02)


@pytest.mark.parametrize("format", ["yuv420p10le", "yuv444p"])
def test_ten_bit_and_full_chroma(tmp_path: Path, shown: np.ndarray, format: str):
    found, _ = read(encode(tmp_path / "deep.mp4", shown, 10, "-c:v", "libx264", "-crf", 4, "-pix_fmt", format))
    assert len(found) == 12 and np.abs(found[3].rgb.astype(float) - shown[3]).mean() < 4


def test_hdr_comes_out_as_srgb(tmp_path: Path, shown: np.ndarray):
    hdr = ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-x264-params", "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc")
    path = encode(tmp_path / "hlg.mp4", shown, 10, *hdr)
    assert probe(path).transfer == "hlg"
    found, _ = read(path)
    assert found[0].rgb.dtype == np.uint8 and found[0].rgb.std() > 20


def test_a_folder_of_pictures(tmp_path: Path, shown: np.ndarray):
    for i, picture in enumerate(shown[:3]):
        alpha = np.full((*picture.shape[:2], 1), 100 + i, np.uint8)
        Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / f"{i:03d}.png")
    clip = probe(tmp_path, fps=5.0)
    found = list(pictures(clip, []))
    np.testing.assert_allclose([p.time for p in found], [0, 0.2, 0.4])
    np.testing.assert_array_equal(found[2].rgb, shown[2])
    assert found[2].alpha is not None and (found[2].alpha == 102).all()
    Image.fromarray(shown[0][:32]).save(tmp_path / "999.png")
    with pytest.raises(FootageError, match="999.png is 96x32"):
        list(pictures(probe(tmp_path), []))


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path, shown: np.ndarray):
    whole = encode(tmp_path / "whole.ts", np.concatenate([shown] * 5), 10, "-c:v", "libx264", "-g", 5, "-crf", 8)
    data = whole.read_bytes()
    faststart = tmp_path / "fast.mp4"
    ffmpeg("-i", whole, "-c", "copy", "-movflags", "+faststart", faststart)
    data = faststart.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    found, notes = read(cut)
    assert 10 < len(found) < 60
    assert any("truncated" in n or "damaged" in n or "stopped early" in n for n in notes)


def test_a_file_without_its_index(tmp_path: Path, plain: Path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])  # its index is at the end
    with pytest.raises(FootageError, match="end may be missing"):
        probe(path)


def test_sound_alone(tmp_path: Path):
    path = tmp_path / "sound.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.3", "-c:a", "aac", path)
    with pytest.raises(FootageError, match="holds audio but no picture"):
        probe(path)


def test_what_is_no_video(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(FootageError, match="cannot be opened as a video"):
        probe(tmp_path / "text.mp4")
    with pytest.raises(FootageError, match="does not exist"):
        probe(tmp_path / "absent.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FootageError, match="holds no pictures"):
        probe(tmp_path / "empty")


def test_stored_pictures_are_cut_and_scaled(tmp_path: Path, plain: Path, shown: np.ndarray):
    clip = probe(plain)
    geometry = plan_geometry(clip, 24, (32, 8, 48, 48))
    result = ingest([Source(clip)], geometry, tmp_path)
    stored = open_pictures(tmp_path / "rgb.npy")
    assert stored.shape == (12, 24, 24, 3) and (result.first, result.last) == (0, 12)
    expected = shown[4, 8:56, 32:80].reshape(24, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(stored[4] - expected).mean() < 5
    with pytest.raises(FootageError, match="does not lie in the picture"):
        plan_geometry(clip, 24, (80, 0, 40, 40))


def test_two_videos_follow_each_other(tmp_path: Path, plain: Path):
    clip = probe(plain)
    result = ingest([Source(clip), Source(clip)], plan_geometry(clip, 32, None), tmp_path)
    assert result.clip.tolist() == [0] * 12 + [1] * 12
    np.testing.assert_allclose(np.diff(result.times), 0.1, atol=2e-3)


def test_a_cut_keeps_the_longest_shot(tmp_path: Path):
    first = scene(8, 64, 64, background=np.full((64, 64, 3), 60, np.uint8))[0]
    second = scene(14, 64, 64, background=np.full((64, 64, 3), (200, 150, 90), np.uint8))[0]
    clip = probe(encode(tmp_path / "cut.mp4", np.concatenate([first, second])))
    result = ingest([Source(clip)], plan_geometry(clip, 64, None), tmp_path)
    assert (result.first, result.last) == (8, 22)
    assert any("the camera cuts at 0.80 s" in note for note in result.notes)


def test_motion_flicker_and_jumps_are_no_cuts():
    still = scene(10, 32, 32)[0]
    notes: list[str] = []
    flicker = (still * np.where(np.arange(10) % 2, 1.0, 0.75)[:, None, None, None]).astype(np.uint8)
    assert find_cuts(flicker, np.zeros(10), np.arange(10.0), notes) == [] and not notes
    moved = np.repeat(still[:1], 10, axis=0)
    moved[5:, 3:, 5:-5] = moved[5:, 3:, 5:-5][:, ::-1, ::-1]  # the same colours elsewhere
    assert find_cuts(moved, np.zeros(10), np.arange(10.0), notes) == [] and "jumps at 5.00 s" in notes[0]


def test_longest_shot():
    assert longest_shot(10, []) == (0, 10)
    assert longest_shot(10, [3, 8]) == (3, 8)
    assert longest_shot(10, [5]) == (0, 5)
