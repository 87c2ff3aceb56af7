"""What to do better in the next recording, in plain words, from what was tracked."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.capture.coverage import yaw_gaps
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.trajectory import Track

WIDEST_GAP = 30.0
FRONT_ONLY = 240.0
"""Degrees without a picture from which on it is shorter to say what there is."""
GROUPS = {
    "mouth opening": (("jawOpen",), "open your mouth wide (say `ah`)"),
    "smile": (("mouthSmileLeft", "mouthSmileRight"), "smile broadly"),
    "pout": (("mouthPucker", "mouthFunnel"), "pout (say `oo`)"),
    "blink": (("eyeBlinkLeft", "eyeBlinkRight"), "close your eyes firmly"),
    "brows up": (("browInnerUp", "browOuterUpLeft", "browOuterUpRight"), "raise your brows"),
    "brows down": (("browDownLeft", "browDownRight"), "frown"),
    "cheeks": (("cheekPuff",), "puff your cheeks"),
}
"""Expressions an avatar should have seen: ARKit's channel names, and how to ask for them."""
ENOUGH = 0.35
"""A coefficient from which on an expression has been shown."""


def advise(footage: Footage, fitted: FittedTemplate, track: Track) -> list[str]:
    """Sentences, the most important first; empty where nothing is missing."""
    said = []
    good = ~track.lost
    yaw = np.degrees(track.azimuth)
    gaps = yaw_gaps(yaw[good], WIDEST_GAP)
    for start, end in gaps:
        if FRONT_ONLY < end - start < 360:
            said.append(f"all pictures are between {signed(end):.0f}° and {signed(start):.0f}° of yaw: turn all the way round.")
            continue
        said.append(f"no frames between {start:.0f}° and {end % 360:.0f}°: turn all the way round.")
    if not gaps:
        said += [
            f"views between {a:.0f}° and {b % 360:.0f}° are seen in passing only, with {n} pictures: turn more slowly."
            for a, b, n in thin_sectors(yaw[good & footage.static])
        ]
    said += expression_advice(fitted.template, track, good)
    low = good & (track.silhouette_iou < 0.8)
    if low.mean() > 0.1:
        said.append(
            f"in {low.mean():.0%} of the pictures the template's outline is well off the matte (IoU below 0.8): look at room.png and the "
            "mattes; hair or clothes that move, or a room of the subject's colours, do that. --plate helps."
        )
    if track.lost.mean() > 0.02:
        said.append(f"{track.lost.mean():.0%} of the pictures were lost: move more slowly, and stay inside the picture.")
    return said


def signed(degrees: float) -> float:
    """From -180 to 180."""
    return (degrees + 180.0) % 360.0 - 180.0


def thin_sectors(yaw: Float[Array, "N"], width: float = 45.0, fewest: int = 6) -> list[tuple[float, float, int]]:
    """Sectors of yaw with few pictures: (start, end, pictures)."""
    counts = np.histogram(yaw % 360, bins=np.arange(0, 360 + width, width))[0]
    return [(k * width, (k + 1) * width, int(n)) for k, n in enumerate(counts) if 0 < n < fewest]


def expression_advice(template: RiggedTemplate, track: Track, good: Array) -> list[str]:
    """Which expressions were hardly shown; the mouth's opening in millimetres."""
    said = []
    opening = widest_opening_mm(template, track, good)
    if opening is not None and opening < 12.0:
        said.append(f"mouth never open wider than {opening:.0f} mm: open your mouth wide (say `ah`).")
    shown = shown_expressions(template, track, good)
    missing = [name for name, value in shown.items() if value < ENOUGH and not (name == "mouth opening" and opening is not None)]
    if missing:
        asks = "; ".join(GROUPS[name][1] for name in missing)
        said.append(f"hardly seen: {', '.join(missing)}. The avatar can only do what it has seen: {asks}.")
    return said


def shown_expressions(template: RiggedTemplate, track: Track, good: Array) -> dict[str, float]:
    """The strongest coefficient (97th percentile of the performance) of each group of `GROUPS` that the template has."""
    names = list(template.expression_names)
    shown = {}
    for group, (channels, _) in GROUPS.items():
        columns = [names.index(c) for c in channels if c in names]
        if columns:
            shown[group] = float(np.quantile(track.expression[good][:, columns].max(1), 0.97)) if good.any() else 0.0
    return shown


def widest_opening_mm(template: RiggedTemplate, track: Track, good: Array) -> float | None:
    """How far apart the lips' middles came at most, millimetres; None where the template does not tell where its mouth is."""
    found = lip_middles(template)
    if found is None or not good.any():
        return None
    upper, lower = found
    names = list(template.expression_names)
    rows = np.flatnonzero(good)
    if "jawOpen" in names:
        jaw = track.expression[rows, names.index("jawOpen")]
        rows = rows[np.argsort(jaw)[-12:]]
    rig = Rig.from_template(template)
    rotations = torch.as_tensor(track.joint_rotations[rows], dtype=torch.float32)
    posed = rig.pose(rotations, torch.zeros(len(rows), 3), torch.as_tensor(track.expression[rows], dtype=torch.float32)).numpy()
    gap = np.linalg.norm(posed[:, upper] - posed[:, lower], axis=1)
    rest = float(np.linalg.norm(template.vertices[upper] - template.vertices[lower]))
    return float(max(0.0, gap.max() - rest) * 1000)


def lip_middles(template: RiggedTemplate) -> tuple[int, int] | None:
    """Vertices in the middle of the upper and the lower lip: those that part most when the jaw opens."""
    mouth = part_vertices(template).get("mouth")
    names = list(template.expression_names)
    if mouth is None or "jawOpen" not in names:
        return None
    v, drop = template.vertices[mouth], template.expression_basis[names.index("jawOpen")][mouth, 2]
    middle = np.abs(v[:, 0] - np.median(v[:, 0])) < 0.006
    front = middle & (v[:, 1] < np.quantile(v[middle, 1], 0.35))
    if front.sum() < 2:
        return None
    index = np.flatnonzero(front)
    lower = index[drop[index].argmin()]
    still = index[np.abs(drop[index]) < 0.25 * np.abs(drop[lower])]
    if not len(still):
        return None
    upper = still[np.linalg.norm(v[still] - v[lower], axis=1).argmin()]
    return int(mouth[upper]), int(mouth[lower])
