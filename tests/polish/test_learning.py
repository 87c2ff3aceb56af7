"""The short training behind the corrections: all pictures take part, and an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.polish import learning
from threevp_nerfstudio.polish.learning import learn_corrections


def test_every_picture_is_corrected_and_ctrl_c_loses_nothing(tiny_capture: Path, tmp_path: Path):
    state = tmp_path / "state.pt"
    seen: list[int] = []

    def note(what: str, done: int, of: int) -> None:
        if "correcting" in what:
            seen.append(done)

    def stop(what: str, done: int, of: int) -> None:
        note(what, done, of)
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_corrections(tiny_capture, 24, state, stop, device="cpu")
    assert state.is_file() and seen[-1] == 9
    found, avatar = learn_corrections(tiny_capture, 24, state, note, device="cpu")
    assert seen == [*range(1, 10), *range(10, 25)]
    count = len(load_capture(tiny_capture).frames)
    assert found.body.shape == found.head.shape == (count, 6)
    assert np.isfinite(found.body).all() and found.body.any() and found.head.any()
    assert len(avatar.corrections.body) == count
    # what was learned is kept until the pictures are aligned, too
    again, _ = learn_corrections(tiny_capture, 24, state, note, device="cpu")
    assert len(seen) == 24 and np.allclose(again.body, found.body, atol=1e-4)


def test_a_state_of_something_else_is_not_used(tiny_capture: Path, tmp_path: Path):
    state = tmp_path / "state.pt"
    state.write_bytes(b"no checkpoint")
    seen: list[int] = []
    learn_corrections(tiny_capture, 3, state, lambda what, done, of: seen.append(of), device="cpu")
    assert seen == [3] * 2 + [24] * 24 + [3] + [48] * 48  # of every second picture at first


def test_a_full_disk_stops_no_training(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(state: dict, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("unexpected pos 64 vs 0")

    said: list[str] = []
    monkeypatch.setattr(learning.torch, "save", full)
    monkeypatch.setattr(learning, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(learning.CONSOLE, "print", said.append)
    found, _ = learn_corrections(tiny_capture, 4, tmp_path / "state.pt", device="cpu")
    assert np.isfinite(found.body).all() and "state.pt cannot be written" in said[0]
    assert not list(tmp_path.iterdir())


def test_what_asks_for_too_much_stays_as_it_was(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning, "LARGEST", 0.0)
    found, _ = learn_corrections(tiny_capture, 6, tmp_path / "state.pt", device="cpu")
    assert not found.body.any() and not found.head.any()
