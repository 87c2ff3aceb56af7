"""Names of expression channels and joints, as different programs write them, brought together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from threevp_nerfstudio.body.expressions import match_joints

ARKIT_NAMES = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawRight", "jawLeft", "jawOpen", "mouthClose", "mouthFunnel",
    "mouthPucker", "mouthRight", "mouthLeft", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp",
    "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut",
)  # fmt: skip
"""The 52 blendshapes of ARKit's face tracking, in the order of Live Link Face's CSV."""


def plain(name: str) -> str:
    """A name without case, punctuation and the ways to write a side: `EyeBlink_L` and `eyeBlinkLeft` are the same."""
    name = re.sub(r"[_. ]([LlRr])$", lambda m: "left" if m[1] in "Ll" else "right", name.strip())
    return re.sub(r"[^a-z0-9]", "", name.lower())


def match_channels(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """(target, source) indices of channels of the same name: exactly, else by their `plain` form."""
    exact = {name: i for i, name in reversed(list(enumerate(source)))}
    loose = {plain(name): i for i, name in reversed(list(enumerate(source)))}
    pairs = []
    for t, name in enumerate(target):
        s = exact.get(name, loose.get(plain(name)))
        if s is not None:
            pairs.append((t, s))
    return pairs


def match_skeletons(source: Sequence[str], target: Sequence[str]) -> dict[int, int]:
    """Target joint -> source joint of the same meaning: as `body.expressions` pairs them, else by their `plain` form.
    Each source joint is used once."""
    pairs: dict[int, int] = {}
    for t, s in [*match_joints(tuple(source), tuple(target)), *match_channels(source, target)]:
        if t not in pairs and s not in pairs.values():
            pairs[t] = s
    return pairs
