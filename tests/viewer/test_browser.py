"""The avatar in a real browser, from a real ns-viewer on a checkpoint.

Screenshots are left in tests/artefacts/viewer (or where THREEVP_TEST_ARTEFACTS says).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.test_end_to_end import command, environment, run, training
from tests.tiny_capture import make_tiny_capture
from tests.viewer.browser import FLAGS, AvatarPage, executable, until

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

STEPS = 250
FINE = 264
"""Pixels of the longer side of a fine picture: nerfstudio's 512 take four times as long on a CPU."""
ARTEFACTS = Path(os.environ.get("THREEVP_TEST_ARTEFACTS", Path(__file__).parents[1] / "artefacts")) / "viewer"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def browser():
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def viewer(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an ns-viewer, whose capture folder may only be read."""
    root = tmp_path_factory.mktemp("viewer")
    capture = make_tiny_capture(root / "capture")
    run("ns-train", *training(Path("outputs"), "viewer", STEPS, "capture"), cwd=root)
    for path in (capture, *capture.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, port, log = listing(capture), free_port(), root / "viewer.log"
    config = root / "outputs" / "e2e" / "threevp-small" / "viewer" / "config.yml"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command("ns-viewer", "--load-config", config, "--viewer.websocket-port", port),
            cwd=root, env=environment(), stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: "disabled local writer" in log.read_text() or process.poll() is not None, "ns-viewer has started")
        yield f"http://localhost:{port}"
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    assert listing(capture) == before


@pytest.fixture(scope="module")
def window(browser, viewer: str) -> AvatarPage:
    context = browser.new_context(viewport={"width": 760, "height": 560}, accept_downloads=True)
    window = AvatarPage(context, viewer)
    window.set("Max res", FINE)
    return window


@pytest.fixture(scope="module")
def neutral(window: AvatarPage) -> np.ndarray:
    picture = window.settled(FINE)
    keep(window, "first_sight")
    return picture


def keep(window: AvatarPage, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    window.page.screenshot(path=ARTEFACTS / f"{name}.png")


def subject(picture: np.ndarray) -> np.ndarray:
    """Pixels (h, w bool) that are not the white behind the subject."""
    return picture.min(-1) < 0.85


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).mean(-1)


def test_the_avatar_stands_upright_in_the_middle_and_the_page_has_no_errors(window: AvatarPage, neutral: np.ndarray):
    columns = subject(neutral).any(0).nonzero()[0]
    assert abs((columns[0] + columns[-1]) / 2 - neutral.shape[1] / 2) < 0.06 * neutral.shape[1]
    widths = subject(neutral).sum(1)
    top = widths.nonzero()[0][0]
    assert 0.02 < top / len(widths) < 0.5  # air above the head
    assert widths[-len(widths) // 8 :].mean() > 1.3 * widths[top : top + len(widths) // 4].mean()  # shoulders below
    assert window.errors == []


def test_dragging_a_slider_changes_the_mouth_and_reset_brings_it_back(window: AvatarPage, neutral: np.ndarray):
    window.drag("open")
    until(lambda: window.value("open") > 0.2, "the slider's number follows")
    rows = subject(neutral).any(1).nonzero()[0]
    columns = subject(neutral).any(0).nonzero()[0]

    def mouth_moved() -> bool:  # the face is in the upper half of a portrait, the mouth in its middle
        where = np.argwhere(change(window.picture(), neutral) > 0.12)
        if len(where) <= 30:
            return False
        y, x = np.median(where, axis=0)
        centred = abs(x - (columns[0] + columns[-1]) / 2) < 0.15 * len(columns)
        return bool(centred and rows[0] + 0.2 * len(rows) < y < rows[0] + 0.75 * len(rows))

    until(mouth_moved, "the mouth has moved, and nothing else: coarse pictures, which come first, differ along all edges")
    moved = window.settled(FINE)
    keep(window, "jaw_open")
    window.button("reset")
    until(lambda: window.value("open") == 0.0, "the slider goes back")
    mouth = change(moved, neutral) > 0.12
    middle = (columns[0] + columns[-1]) / 2
    y, x = np.indices(mouth.shape)  # coarse pictures differ along all edges: only the mouth's surroundings count
    mouth &= (abs(x - middle) < 0.15 * len(columns)) & (abs(y - rows[0] - 0.4 * len(rows)) < 0.12 * len(rows))
    opened = change(moved, neutral)[mouth].mean()
    until(lambda: change(window.picture(), neutral)[mouth].mean() < 0.4 * opened, "the mouth closes")


def test_a_preset_moves_several_sliders_and_the_coefficients_say_so(window: AvatarPage):
    window.button("smile")
    until(lambda: window.value("smile left") > 0.1 and window.value("smile right") > 0.1, "both corners smile")
    window.tab("Inspect")
    until(lambda: "mouthSmileLeft" in window.page.locator("pre").first.inner_text(), "the bars name the channel")
    window.tab("Face")
    window.button("reset")
    until(lambda: window.value("smile left") == 0.0, "the smile is gone")


def test_going_beyond_training_needs_the_switch(window: AvatarPage):
    window.set("smile left", 5.0)
    until(lambda: window.value("smile left") <= 1.0, "the number is held at the limit")
    assert not window.page.get_by_text("what was never seen is guessed").is_visible()
    window.field("go beyond training").click()
    window.page.get_by_text("what was never seen is guessed").wait_for()
    window.set("smile left", 1.2)
    until(lambda: window.value("smile left") == pytest.approx(1.2, abs=0.011), "more than one is allowed")
    window.field("go beyond training").click()
    until(lambda: window.value("smile left") <= 1.0, "it returns within the limit")
    window.button("reset")


def test_play_advances_and_a_second_window_sees_the_same_expression(browser, window: AvatarPage, viewer: str):
    mine = window.settled(FINE)
    other = AvatarPage(browser.new_context(viewport={"width": 700, "height": 480}), viewer)
    other.page.get_by_text("2 windows open").wait_for()
    front = other.settled(FINE)
    other.button("back")
    until(lambda: change(other.picture(), front).mean() > 0.03, "the other window turns")
    # each has its own camera; a window in the background shows its pictures late, so that this one may still be coarse
    assert change(window.picture(), mine).mean() < 0.5 * change(other.picture(), front).mean()
    assert window.errors == []
    window.button("smile")
    until(lambda: other.value("smile left") > 0.1, "the other window's slider follows")
    window.tab("Play")
    assert window.value("time (s)") == 0.0
    window.button("play")
    until(lambda: window.value("time (s)") > 0.3, "time passes")
    window.button("pause")
    paused = window.value("time (s)")
    window.button("frame ▸")
    until(lambda: window.value("time (s)") != paused, "one frame further")
    keep(other, "second_window")
    assert other.errors == []
    other.page.close()
    window.page.get_by_text("1 window open").wait_for()
    window.tab("Face")
    window.button("reset")


def test_a_pose_is_saved_and_a_bad_one_is_refused_by_name(window: AvatarPage, tmp_path: Path):
    window.button("pucker")
    until(lambda: window.value("pucker") > 0.1, "it puckers")
    window.page.get_by_text("Pose files").click()
    with window.page.expect_download() as download:
        window.button("Save pose")
    content = json.loads(Path(download.value.path()).read_text())
    assert content["expression"]["mouthPucker"] == pytest.approx(window.value("pucker"), abs=0.011)
    content["expression"]["noSuchChannel"] = 1.0
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    with window.page.expect_file_chooser() as chooser:
        window.button("Load pose")
    before = window.value("pucker")
    chooser.value.set_files(bad)
    window.page.get_by_text(re.compile("bad.json: this avatar has no expression channels.*noSuchChannel")).first.wait_for()
    keep(window, "bad_pose")
    assert window.value("pucker") == before
    window.button("reset")


def test_inspection_shows_the_template_and_the_training_frame(window: AvatarPage, neutral: np.ndarray):
    plain = window.settled(FINE)
    window.tab("Inspect")
    window.button("Nearest to this view")
    window.page.locator("img[alt=frame]").wait_for()
    window.field("template as wireframe").click()
    until(lambda: change(window.picture(), plain)[subject(plain)].mean() > 0.02, "the wireframe is drawn")
    window.settled(FINE)
    keep(window, "inspect")
    window.field("template as wireframe").click()
    window.tab("Head, light")
    keep(window, "head")
    assert window.errors == []
