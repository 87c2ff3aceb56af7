"""How quickly the viewer answers a slider: time from a move to the first picture that shows it, and to the fine one.

    python examples/benchmark_viewer.py --load-config RUN/config.yml

Starts nerfstudio's viewer on the checkpoint and speaks viser's protocol to it as a browser would, without one: what is
measured is everything but the browser's own drawing. The process is held to two CPU cores (--cores). Prints

- single: a slider is moved while the fine picture stands;
- interrupting: a slider is moved while the fine picture is being rendered;
- drag: moves every 50 ms for 1.5 s, as a browser sends them; the time counts from the last one. `stale` is the number of
  pictures after it that still showed an earlier move: one may have been under way, a queue would be more.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import msgspec
import numpy as np
from PIL import Image

DRAG_MOVES = 30
DRAG_INTERVAL = 0.05
PATIENCE = 180.0


@dataclass(frozen=True)
class Picture:
    time: float
    height: int
    version: int
    """Of the panel's state that was shown last when it arrived."""


class Client:
    """A window without a browser: receives pictures, moves sliders."""

    def __init__(self, port: int, shown_version) -> None:
        from websockets.sync.client import connect

        self.pictures: list[Picture] = []
        self.sliders: dict[str, dict] = {}
        self._shown_version = shown_version
        self._socket = connect(f"ws://localhost:{port}", max_size=None)
        threading.Thread(target=self._receive, daemon=True).start()
        self._send(
            type="ViewerCameraMessage", wxyz=(1.0, 0.0, 0.0, 0.0), position=(0.0, -20.0, 8.0), fov=0.3, aspect=1.5,
            look_at=(0.0, 0.0, 8.0), up_direction=(0.0, 0.0, 1.0),
        )  # fmt: skip

    def move(self, name: str, value: float) -> None:
        self._send(type="GuiUpdateMessage", id=self.sliders[name]["id"], updates={"value": value})

    def _send(self, **message) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def _receive(self) -> None:
        for window in self._socket:
            now = time.perf_counter()
            for message in msgspec.msgpack.decode(window):
                if message["type"] == "GuiAddSliderMessage":
                    self.sliders[(message["hint"] or message["label"]).split(":")[0]] = message
                elif message["type"] == "BackgroundImageMessage":
                    height = Image.open(io.BytesIO(message["rgb_bytes"])).height
                    self.pictures.append(Picture(now, height, self._shown_version()))

    def wait(self, true, since: int) -> Picture:
        """The first picture from index `since` on that satisfies `true`."""
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            for picture in self.pictures[since:]:
                if true(picture):
                    return picture
            time.sleep(0.002)
        raise TimeoutError(f"no such picture within {PATIENCE:.0f} s")


def start_viewer(config_path: Path, port: int):
    """nerfstudio's viewer as ns-viewer starts it; returns the avatar's part of it."""
    from nerfstudio.utils.eval_utils import eval_setup
    from nerfstudio.viewer.viewer import Viewer

    config, pipeline, _, step = eval_setup(config_path, test_mode="test")
    from nerfstudio.utils import writer  # first of all, it would meet itself half imported

    config.viewer.websocket_port = port
    config.logging.local_writer.enable = False
    viewer = Viewer(
        config.viewer, log_filename=config.get_base_dir() / "benchmark_viewer.log",
        datapath=pipeline.datamanager.get_datapath(), pipeline=pipeline, train_lock=Lock(),
    )  # fmt: skip
    writer.setup_local_writer(config.logging, max_iter=config.max_num_iterations, banner_messages=None)
    viewer.init_scene(train_dataset=pipeline.datamanager.train_dataset, train_state="completed")
    viewer.update_scene(step=step)
    return pipeline.avatar_viewer


def measure(avatar, client: Client, name: str, repeats: int) -> dict[str, np.ndarray]:
    """Seconds, pixels and counts of each repetition by row of the table."""
    state, fine = avatar.state, int(avatar.viewer.control_panel.max_res)
    rng = np.random.default_rng(0)
    limit = state.slider_range(name)

    def value() -> float:
        return float(rng.uniform(limit.low, limit.high))

    def is_fine(picture: Picture) -> bool:
        return picture.height >= fine / 1.6 and picture.version >= state.version

    def answer(rest: bool) -> tuple[float, float, float]:
        if rest:
            client.wait(is_fine, 0)
        since, before, start = len(client.pictures), state.version, time.perf_counter()
        client.move(name, value())
        first = client.wait(lambda p: p.version > before, since)
        if not rest:
            return first.time - start, first.height, np.nan
        return first.time - start, first.height, client.wait(is_fine, since).time - start

    client.move(name, value())
    single = np.array([answer(rest=True) for _ in range(repeats)])
    interrupting = []
    for _ in range(repeats):
        client.wait(is_fine, 0)
        client.move(name, value())
        end = time.perf_counter() + PATIENCE
        while not any(m.state == "high" for m in avatar.viewer.render_statemachines.values()):
            assert time.perf_counter() < end
            time.sleep(0.002)
        time.sleep(0.15)
        interrupting.append(answer(rest=False))
    drags = []
    for _ in range(repeats):
        client.wait(is_fine, 0)
        begin = len(client.pictures)
        for _ in range(DRAG_MOVES):
            client.move(name, value())
            time.sleep(DRAG_INTERVAL)
        last, since = time.perf_counter() - DRAG_INTERVAL, len(client.pictures)
        version = state.version
        first = client.wait(lambda p, version=version: p.version >= version, since)
        stale = sum(p.time > last and p.version < version for p in client.pictures[since:])
        drags.append((first.time - last, first.height, (since - begin) / (DRAG_MOVES * DRAG_INTERVAL), stale))
    return {"single": single, "interrupting": np.array(interrupting), "drag": np.array(drags)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load-config", type=Path, required=True, help="config.yml of a trained avatar")
    parser.add_argument("--slider", default="jawOpen", help="expression channel to move")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2, help="CPU cores that the process may use")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    avatar = start_viewer(arguments.load_config, port)
    if arguments.slider not in avatar.state.limits:
        raise SystemExit(f"--slider {arguments.slider}: this avatar has {list(avatar.state.limits)}")
    client = Client(port, lambda: avatar.shown_version)
    end = time.perf_counter() + PATIENCE
    while arguments.slider not in client.sliders and time.perf_counter() < end:
        time.sleep(0.05)
    cpu, wall = time.process_time(), time.perf_counter()
    rows = measure(avatar, client, arguments.slider, arguments.repeats)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"\n{arguments.cores} cores, {arguments.repeats} repeats; the process got {cpu / wall:.2f} cores of CPU time")
    print(f"{'':14}{'first picture':>16}{'worst':>10}{'rows of it':>12}{'fine picture':>14}{'pictures/s':>12}{'stale':>8}")
    for name, row in rows.items():
        fine = f"{np.nanmedian(row[:, 2]):.2f} s" if name == "single" else ""
        rate, stale = (f"{row[:, 2].mean():.1f}", f"{row[:, 3].max():.0f}") if name == "drag" else ("", "")
        print(
            f"{name:14}{np.median(row[:, 0]):>14.2f} s{row[:, 0].max():>8.2f} s{np.median(row[:, 1]):>12.0f}"
            f"{fine:>14}{rate:>12}{stale:>8}"
        )


if __name__ == "__main__":
    main()
