"""What happens in a synthetic capture: where chair and camera stand in each frame, and what the face does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.frames import R_FRONTAL
from threevp_nerfstudio.errors import CaptureError

# what the subject does with its face, and how far; Left and Right mostly go together
PALETTE = {
    "jawOpen": 0.9,
    "mouthSmile": 1.0,
    "eyeBlink": 1.0,
    "browInnerUp": 1.0,
    "mouthPucker": 1.0,
    "browDown": 0.9,
    "cheekPuff": 0.8,
    "mouthLeft": 0.8,
    "noseSneer": 0.8,
    "mouthFrown": 0.8,
    "mouthRight": 0.7,
    "browOuterUp": 0.8,
    "mouthFunnel": 0.6,
    "mouthUpperUp": 0.5,
    "mouthLowerDown": 0.5,
    "jawLeft": 0.6,
}
VAL_BLOCKS = ((0.30, 0.40), (0.74, 0.84))
"""Held out of the performance, as fractions of it."""
VAL_YAWS_DEG = ((50.0, 72.0), (-150.0, -128.0))
"""Held out of the static turn."""


@dataclass(frozen=True)
class Shot:
    """One frame to render."""

    name: str
    split: str
    sequence: str
    time: float
    chair: float
    """Turn of the room about the avatar, radians."""
    camera_in_room: Float[Array, "4 4"]

    @property
    def room_to_world(self) -> Float[Array, "4 4"]:
        return turn_z(self.chair)

    @property
    def camera_to_world(self) -> Float[Array, "4 4"]:
        return self.room_to_world @ self.camera_in_room


def turn_z(angle: float) -> Float[Array, "4 4"]:
    """A turn about the vertical axis."""
    T = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    T[:2, :2] = [[c, -s], [s, c]]
    return T


def orbit_camera(
    target: Float[Array, "3"], distance: float, yaw: float = 0.0, elevation: float = 0.0
) -> Float[Array, "4 4"]:
    """Camera-to-room of a camera that looks at `target` from `yaw` (0 in front, + to +x) and `elevation`, radians."""
    c, s = np.cos(elevation), np.sin(elevation)
    tilt = np.array(
        [[1, 0, 0], [0, c, s], [0, -s, c]]
    )  # about the camera's right-hand axis: looks down for elevation > 0
    T = np.eye(4)
    T[:3, :3] = turn_z(yaw)[:3, :3] @ R_FRONTAL @ tilt
    T[:3, 3] = target + T[:3, :3] @ [0, 0, distance]
    return T


def shots(
    static: int, dynamic: int, test: int, fps: float, target: Float[Array, "3"], distance: float, seed: int
) -> list[Shot]:
    """A full turn with a neutral face, a performance, and novel cameras; in the order of the motion's rows."""
    fixed = orbit_camera(target, distance)
    result = []
    for i in range(static):
        yaw = np.degrees(2 * np.pi * i / static + np.pi) % 360 - 180
        held_out = any(low < yaw < high for low, high in VAL_YAWS_DEG)
        split = "val" if held_out else "train"
        result.append(Shot(f"static_{i:04d}", split, "static", i / fps, np.radians(yaw), fixed))
    for i in range(dynamic):
        t = i / max(dynamic - 1, 1)
        split = "val" if any(low <= t < high for low, high in VAL_BLOCKS) else "train"
        chair = np.radians(65.0) * np.sin(2 * np.pi * (2 * t + 0.1))
        result.append(Shot(f"dynamic_{i:04d}", split, "dynamic", i / fps, chair, fixed))
    rng = np.random.default_rng(seed)
    for i in range(test):
        above, below, closer = (i % 3 == k for k in range(3))
        elevation = np.radians(rng.uniform(20, 25) if above else -15.0 if below else rng.uniform(-5, 10))
        reach = distance * (0.62 if closer else 1.0)
        aim = target + [0.0, 0.0, 0.02 * distance if closer else 0.0]
        chair = np.radians(rng.uniform(-180, 180) if i % 4 == 3 else rng.uniform(-65, 65))
        camera = orbit_camera(aim, reach, np.radians(rng.uniform(-20, 20)), elevation)
        result.append(Shot(f"test_{i:04d}", "test", "dynamic", (dynamic + i) / fps, chair, camera))
    return result


def play(
    template: RiggedTemplate, static: int, dynamic: int, test: int, fps: float, seed: int, given: Motion | None = None
) -> Motion:
    """Rows for `shots`: neutral, performance, and other expressions for the novel cameras.

    `given` provides the performance where there is one: its rows with an expression, thinned to `dynamic`. Raises
    `CaptureError` where it has none.
    """
    N, J, E = static + dynamic + test, len(template.joint_names), len(template.expression_names)
    rotations = np.zeros((N, J, 3), dtype=np.float32)
    translation = np.zeros((N, 3), dtype=np.float32)
    psi = np.zeros((N, E), dtype=np.float32)
    parts = ((static, dynamic, seed, 1.0), (static + dynamic, test, seed + 1000, 0.8))
    for start, count, part_seed, reach in parts:
        rows = slice(start, start + count)
        psi[rows] = expressions(template.expression_names, count, fps, part_seed, reach)
        rotations[rows] = head_turns(template.joint_names, count, part_seed)
    if given is not None:
        spoken = np.flatnonzero(np.abs(given.expression).sum(1) > 1e-6)
        if not len(spoken):
            raise CaptureError("the motion given to the demo has no row with an expression; leave --motion out.")
        chosen = spoken[np.linspace(0, len(spoken) - 1, dynamic).round().astype(int)]
        rows = slice(static, static + dynamic)
        psi[rows], rotations[rows] = given.expression[chosen], given.joint_rotations[chosen]
        translation[rows] = given.root_translation[chosen]
    times = (np.arange(N) / fps).astype(np.float32)
    return Motion(times=times, joint_rotations=rotations, root_translation=translation, expression=psi)


def expressions(names: tuple[str, ...], count: int, fps: float, seed: int, reach: float = 1.0) -> Float[Array, "N E"]:
    """Smooth pulses of every channel of the palette, at times of their own; each moves at least twice, up to `reach`."""
    rng = np.random.default_rng([seed, 1])
    stems: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        stem = name if name in PALETTE else name.removesuffix("Left").removesuffix("Right")
        stems.setdefault(stem, []).append(column)
    chosen = {stem: columns for stem, columns in stems.items() if stem in PALETTE} or stems
    values = np.zeros((count, len(names)), dtype=np.float32)
    frame = np.arange(count)
    for stem, columns in chosen.items():
        pulses = max(2, round(0.6 * count / fps))
        for k in range(pulses):
            centre = (k + rng.uniform(0.1, 0.9)) * count / pulses
            half = max(rng.uniform(0.2, 0.45) * count / pulses, 1.5)
            pulse = 0.5 + 0.5 * np.cos(np.pi * np.clip((frame - centre) / half, -1, 1))
            share = reach * rng.uniform(0.5, 1.0) * PALETTE.get(stem, 0.7)
            uneven = rng.random() < 0.3
            for column in columns:
                side = rng.uniform(0.1, 1.0) if uneven else 1.0
                values[:, column] = np.maximum(values[:, column], share * side * pulse)
    return values


def head_turns(names: tuple[str, ...], count: int, seed: int) -> Float[Array, "N J 3"]:
    """Nods, turns and tilts of the joints whose names say neck or head, up to about 15 degrees together."""
    rng = np.random.default_rng([seed, 2])
    rotations = np.zeros((count, len(names), 3), dtype=np.float32)
    moved = [j for j, name in enumerate(names) if name.lower().startswith(("neck", "head"))]
    t = np.arange(count) / max(count, 1)
    for j in moved:
        for axis, reach in enumerate((0.12, 0.08, 0.20)):  # nod about x, tilt about y, turn about z
            phase, turns = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.8, 2.5, 2)
            wave = 0.6 * np.sin(2 * np.pi * turns[0] * t + phase[0]) + 0.4 * np.sin(2 * np.pi * turns[1] * t + phase[1])
            rotations[:, j, axis] = reach / len(moved) * wave
    return rotations
