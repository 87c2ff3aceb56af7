"""What the names of expression channels say: which part of the face they move, their mirror, and well-known expressions.

Names are ARKit's (`mouthSmileLeft`), or anything that spells a part and a side. Pure functions of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

GROUPS = ("mouth", "jaw", "eyes", "brows", "cheeks", "components")
"""In the order in which they are shown; what no name places is a component."""
FIRST_COMPONENTS = 16
"""Components that are shown at first."""
_WORDS = (  # the first that matches: an eyebrow is no eye, a cheek squint no eye squint
    ("brows", ("brow", "forehead")),
    ("cheeks", ("cheek", "nose")),
    ("jaw", ("jaw", "chin")),
    ("mouth", ("mouth", "lip", "smile", "pucker", "tongue", "teeth")),
    ("eyes", ("eye", "blink", "gaze", "pupil", "lid")),
)
_SIDES = {"Left": "Right", "left": "right", "LEFT": "RIGHT"}
_SIDE = re.compile(r"Left|Right|left|right|LEFT|RIGHT")
_LETTER = re.compile(r"(?<=[._])([LRlr])(?=$|[._])")
_OTHER_LETTER = {"L": "R", "R": "L", "l": "r", "r": "l"}

PRESETS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0, "cheekSquintLeft": 0.5, "cheekSquintRight": 0.5},
    "open mouth": {"jawOpen": 1.0},
    "surprise": {
        "jawOpen": 0.6, "browInnerUp": 1.0, "browOuterUpLeft": 1.0, "browOuterUpRight": 1.0,
        "eyeWideLeft": 1.0, "eyeWideRight": 1.0,
    },
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "pucker": {"mouthPucker": 1.0},
    "frown": {"mouthFrownLeft": 1.0, "mouthFrownRight": 1.0, "browDownLeft": 0.7, "browDownRight": 0.7},
    "anger": {
        "browDownLeft": 1.0, "browDownRight": 1.0, "noseSneerLeft": 0.7, "noseSneerRight": 0.7,
        "mouthPressLeft": 0.6, "mouthPressRight": 0.6,
    },
    "puff cheeks": {"cheekPuff": 1.0},
    "wink": {"eyeBlinkLeft": 1.0, "mouthSmileLeft": 0.6},
}  # fmt: skip
"""Share of each channel's trained maximum, by ARKit's names. The first channel is what the preset is about."""

GAZE: dict[str, dict[str, float]] = {
    "look left / right": {
        "eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0, "eyeLookInLeft": -1.0, "eyeLookOutRight": -1.0,
    },
    "look up / down": {"eyeLookUpLeft": 1.0, "eyeLookUpRight": 1.0, "eyeLookDownLeft": -1.0, "eyeLookDownRight": -1.0},
}  # fmt: skip
"""Channels that move both eyes together: those with +1 by positive, those with -1 by negative values (left: the subject's)."""


def group_of(name: str) -> str:
    """The part of the face that a channel moves, one of GROUPS."""
    lower = name.lower()
    return next((group for group, words in _WORDS if any(w in lower for w in words)), "components")


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Channels by group, in the order of GROUPS; empty groups are absent."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        groups[group_of(name)].append(name)
    return {group: members for group, members in groups.items() if members}


def spoken(name: str) -> str:
    """A channel's name in words, without the part that its group says: `mouthSmileLeft` is "smile left"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_.-]+", " ", name).lower().split()
    if len(words) > 1 and group_of(name).rstrip("s") == words[0]:
        words = words[1:]
    return " ".join(words)


def plain(name: str) -> str:
    """A name without case and separators, for comparison."""
    return re.sub(r"[\s._-]", "", name).lower()


def mirror_name(name: str, available: Iterable[str]) -> str:
    """The name of the other side, if there is one among `available`, else the name itself."""
    swap = _SIDES | {v: k for k, v in _SIDES.items()}
    other = _SIDE.sub(lambda m: swap[m.group()], name, count=1)
    if other == name:
        other = _LETTER.sub(lambda m: _OTHER_LETTER[m.group()], name, count=1)
    return other if other in available else name


def _match(wanted: Mapping[str, float], available: Sequence[str]) -> dict[str, float]:
    by_plain = {plain(n): n for n in available}
    return {by_plain[plain(n)]: v for n, v in wanted.items() if plain(n) in by_plain}


def presets_for(highest: Mapping[str, float], smallest: float = 0.02) -> dict[str, dict[str, float]]:
    """Presets that an avatar can show: coefficients by channel, scaled to the largest that training saw (`highest`).

    A preset is offered if its first channel was seen in training, by more than `smallest`.
    """
    offered: dict[str, dict[str, float]] = {}
    for label, wanted in PRESETS.items():
        values = {n: share * highest[n] for n, share in _match(wanted, list(highest)).items()}
        first = next(iter(_match(dict(list(wanted.items())[:1]), list(highest))), None)
        if not wanted or (first is not None and values[first] > smallest):
            offered[label] = values
    return offered


def gaze_for(available: Sequence[str]) -> dict[str, dict[str, float]]:
    """Gaze controls whose channels are all there."""
    matched = {label: _match(wanted, available) for label, wanted in GAZE.items()}
    return {label: channels for label, channels in matched.items() if len(channels) == len(GAZE[label])}
