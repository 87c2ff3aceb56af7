"""Cut a tracked capture down to the sample in `examples/portrait_sample` (at most 8 MB).

    python examples/make_sample.py CAPTURE examples/portrait_sample

Views and expressions are held out in blocks, since neighbouring frames show nearly the same: `val` and `test` each have
yaw ranges that no training frame of the static turn comes near, and seconds of the performance that no training frame
is from. Pictures are stored losslessly; colours under a matte of zero, which nothing reads, are set to zero.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from PIL import Image

from threevp_nerfstudio.capture.capture import Capture, load_capture, read_rgba, yaw_deg

STATIC_STEP = 5
"""Every fifth frame of the turn: 7.5 degrees apart."""
HELD_OUT_YAWS_DEG = {"val": ((25.0, 40.0), (-160.0, -145.0)), "test": ((95.0, 118.0), (-55.0, -40.0))}
DYNAMIC_STEP = 6
DYNAMIC_TRAIN = 66
DYNAMIC_HELD_OUT = {"val": 8, "test": 14}
GUARD_S = 0.1
"""Seconds next to a held-out block of the performance that are left out of training."""
MAX_BYTES = 8_000_000


def static_split(yaw: Float[Array, "N"]) -> Array:
    """`train`, `val` or `test` for each yaw in degrees."""
    split = np.full(len(yaw), "train", dtype="<U5")
    for name, blocks in HELD_OUT_YAWS_DEG.items():
        for low, high in blocks:
            split[(yaw > low) & (yaw < high)] = name
    return split


def held_out_blocks(is_train: Bool[Array, "N"]) -> list[Int[Array, "B"]]:
    """Runs of consecutive frames that are not for training."""
    index = np.flatnonzero(~is_train)
    return [run for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1) if len(run)]


def spread(index: Int[Array, "N"], count: int) -> Int[Array, "C"]:
    """`count` entries of `index`, evenly spaced."""
    return index[np.unique(np.linspace(0, len(index) - 1, count).round().astype(int))]


def farthest_first(features: Float[Array, "N D"], chosen: Int[Array, "C"], count: int) -> Int[Array, "K"]:
    """`chosen`, and up to `count` in all those rows that are farthest from everything chosen so far."""
    picked = list(chosen)
    distance = np.min(np.linalg.norm(features[:, None] - features[picked][None], axis=-1), axis=1)
    while len(picked) < count:
        picked.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(features - features[picked[-1]], axis=-1))
    return np.sort(picked)


def choose(capture: Capture) -> tuple[Int[Array, "M"], Array]:
    """Frames to keep, in file order, and the split of each."""
    frames = capture.frames
    static = np.flatnonzero(frames.sequence == "static")[::STATIC_STEP]
    dynamic = np.flatnonzero(frames.sequence == "dynamic")
    blocks = [dynamic[block] for block in held_out_blocks(frames.split[dynamic] == "train")]
    if len(blocks) < 2:
        sys.exit(f"{capture.directory} holds out {len(blocks)} blocks of the performance; at least two are needed.")
    held_out = {"val": spread(blocks[0], DYNAMIC_HELD_OUT["val"])}
    held_out["test"] = spread(np.concatenate(blocks[1:]), DYNAMIC_HELD_OUT["test"])
    times = frames.times
    near = np.array([min(np.abs(times[i] - times[block]).min() for block in blocks) <= GUARD_S for i in dynamic])
    free = dynamic[~near]
    features = capture.motion.expression[frames.motion_index[free]]
    train = free[farthest_first(features, np.arange(0, len(free), DYNAMIC_STEP), DYNAMIC_TRAIN)]
    split = np.full(len(frames), "", dtype="<U5")
    split[static] = static_split(yaw_deg(frames.camera_to_world[static]))
    split[train] = "train"
    for name, index in held_out.items():
        split[index] = name
    index = np.flatnonzero(split != "")
    return index, split[index]


def write(capture: Capture, index: Int[Array, "M"], split: Array, output: Path) -> None:
    """The capture folder of the frames `index`."""
    shutil.rmtree(output / "images", ignore_errors=True)
    (output / "images").mkdir(parents=True)
    document = json.loads((capture.directory / "transforms.json").read_text())
    entries = []
    for row, (i, name) in enumerate(zip(index, split, strict=True)):
        entry = {**document["frames"][i], "motion_index": row, "split": str(name)}
        entries.append({key: value for key, value in entry.items() if key != "mask_path"})
        rgba = read_rgba(capture.frames, int(i))
        rgba[rgba[..., 3] == 0] = 0
        Image.fromarray(rgba).save(output / entry["file_path"], optimize=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    head = json.dumps({**document, "frames": []}, indent=1)
    (output / "transforms.json").write_text(head.replace('"frames": []', f'"frames": [\n{lines}\n]') + "\n")
    rows = capture.frames.motion_index[index]
    arrays = {k: v[rows] for k, v in vars(capture.motion).items() if isinstance(v, np.ndarray)}
    replace(capture.motion, **arrays).save(output / "motion.npz")
    shutil.copyfile(capture.directory / "template.npz", output / "template.npz")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    capture, output = load_capture(sys.argv[1]), Path(sys.argv[2])
    index, split = choose(capture)
    write(capture, index, split, output)
    sample = load_capture(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    for name in ("train", "val", "test"):
        of_split = sample.frames.sequence[sample.frames.split == name]
        print(f"{name}: {(of_split == 'static').sum()} static, {(of_split == 'dynamic').sum()} dynamic")
    print(f"{output}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        sys.exit(f"that is more than {MAX_BYTES / 1e6:.0f} MB; raise STATIC_STEP or lower DYNAMIC_TRAIN.")


if __name__ == "__main__":
    main()
