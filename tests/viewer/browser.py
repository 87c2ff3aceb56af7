"""A headless Chromium of the system's, driven by Playwright, and how the avatar's page is read and moved in it."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOST_NOISE = (
    "ERR_NAME_NOT_RESOLVED",  # nerfstudio's logo, from the network
    "ERR_INTERNET_DISCONNECTED",
    "Computed radius is NaN",  # viser's lines before they have points
)
SECONDS = 240.0
"""Longest wait for anything; on a machine that is busy with other work even a start takes minutes."""


def executable() -> str:
    """Path of a browser; skips where there is none."""
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install -e .[dev]")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: browser tests are left out (Debian: apt-get install chromium)")
    return found


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something to become true, or fail saying what did not."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, f"waited {SECONDS:.0f} s in vain until {what}"
        time.sleep(0.1)


class AvatarPage:
    """One window on the viewer."""

    def __init__(self, context, url: str) -> None:
        self.errors: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(url)
        self.page.get_by_text("View from").wait_for()

    def _console(self, message) -> None:
        if message.type == "error" and not any(noise in message.text for noise in HOST_NOISE):
            self.errors.append(message.text)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def button(self, name: str) -> None:
        """Click it once it stands still: a folder that opens on a busy machine moves its buttons away from under the pointer."""
        target = self.page.get_by_role("button", name=name, exact=True)
        target.scroll_into_view_if_needed()
        places = [None, target.bounding_box()]

        def still() -> bool:
            time.sleep(0.3)
            places[:] = [places[1], target.bounding_box()]
            return places[0] == places[1]

        until(still, f"the button {name!r} stands still")
        target.click()

    def field(self, label: str):
        """The input of a label: a box, a list or a text."""
        target = self.page.locator("label").get_by_text(label, exact=True).first.get_attribute("for")
        return self.page.locator(f"[id='{target}']")

    def number(self, label: str):
        """The number beside a slider."""
        row = self.page.locator("label").get_by_text(label, exact=True).first.locator("xpath=ancestor::div[2]")
        return row.locator("input[inputmode]").first

    def value(self, label: str) -> float:
        return float(self.number(label).input_value())

    def set(self, label: str, value: float) -> None:
        number = self.number(label)
        number.fill(str(value))
        number.press("Enter")

    def drag(self, label: str) -> None:
        """Drag the thumb of a slider to its right end."""
        row = self.page.locator("label").get_by_text(label, exact=True).first.locator("xpath=ancestor::div[2]")
        row.scroll_into_view_if_needed()
        thumb, track = row.get_by_role("slider").bounding_box(), row.locator(".mantine-Slider-track").bounding_box()
        mouse = self.page.mouse
        y = thumb["y"] + thumb["height"] / 2
        mouse.move(thumb["x"] + thumb["width"] / 2, y)
        mouse.down()
        mouse.move(track["x"] + 0.5 * track["width"], y, steps=4)
        mouse.move(track["x"] + track["width"] + 2, y, steps=4)
        mouse.up()

    @property
    def resolution(self) -> tuple[int, int]:
        width, height = self.page.get_by_text("Resolution:").inner_text().split("Resolution:")[1].strip()[:-2].split("x")
        return int(width), int(height)

    def picture(self) -> np.ndarray:
        """What is beside the panel, (h, w, 3) in 0..1, without the corner with the axes."""
        panel = self.page.get_by_text("Connected", exact=True).bounding_box()
        top, width, height = panel["y"], panel["x"] - 50, self.page.viewport_size["height"]
        clip = {"x": 0, "y": top, "width": width, "height": 0.88 * height - top}
        image = Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")
        return np.asarray(image, dtype=np.float32) / 255.0

    def settled(self, fine: int) -> np.ndarray:
        """The picture once it is at rest with `fine` pixels on its longer side.

        The size that the page tells is that of the last picture to arrive, in any window, so that after a move one
        waits for the move to be seen first.
        """
        last = self.picture()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(1.0)
            now = self.picture()
            if max(self.resolution) == fine and np.abs(now - last).max() < 0.02 and now.std() > 0.05:
                return now
            last = now
        raise AssertionError("the picture does not come to rest")
