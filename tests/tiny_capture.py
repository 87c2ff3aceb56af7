"""A capture small enough to train on within a test: the bundled sample, thinned out and scaled down."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

SAMPLE = Path(__file__).parents[1] / "examples" / "portrait_sample"
SIZE = 96
EVERY = {("train", "static"): 2, ("train", "dynamic"): 3, ("val", "static"): 2, ("val", "dynamic"): 4}
INTRINSICS = ("fl_x", "fl_y", "cx", "cy")


def make_tiny_capture(directory: Path, size: int = SIZE) -> Path:
    """Write the capture to `directory` and return it. Templates, motion and splits are the sample's own."""
    (directory / "images").mkdir(parents=True)
    for name in ("template.npz", "motion.npz"):
        (directory / name).write_bytes((SAMPLE / name).read_bytes())
    transforms = json.loads((SAMPLE / "transforms.json").read_text())
    scale = size / transforms["w"]
    transforms["w"] = transforms["h"] = size
    seen: dict[tuple[str, str], int] = {}
    frames = []
    for frame in transforms["frames"]:
        kind = (frame["split"], frame["sequence"])
        seen[kind] = seen.get(kind, -1) + 1
        if seen[kind] % EVERY.get(kind, 4):
            continue
        with Image.open(SAMPLE / frame["file_path"]) as picture:
            picture.resize((size, size), Image.Resampling.BOX).save(directory / frame["file_path"])
        frames.append(frame)
    for holder in (transforms, *frames):
        for key in INTRINSICS:
            if key in holder:
                holder[key] *= scale
    transforms["frames"] = frames
    (directory / "transforms.json").write_text(json.dumps(transforms))
    return directory
