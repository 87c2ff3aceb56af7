"""Drives: what an avatar does over time, wherever it comes from, as states that the model renders.

A drive holds states at times and blends between neighbours. Readers of files (`keyframes`, `livelink`, `reenact`) make
drives; `smoothed` and `clipped` make other drives of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.pose import AvatarPose
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.model.performance import Performance, PoseState

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "smooth": lambda u: u * u * (3.0 - 2.0 * u),
    "ease-in": lambda u: u * u,
    "ease-out": lambda u: u * (2.0 - u),
    "hold": lambda u: 0.0 if u < 1.0 else 1.0,
}
"""How a keyframe goes over into the next: share of the next at a share of the time between them."""
SMOOTHING_RATE = 60.0
"""Samples per second at which a drive is smoothed, at least."""


@dataclass(frozen=True)
class Drive:
    """States at N ascending times, in seconds from 0."""

    times: Float[Array, "N"]
    states: PoseState
    """N of them; the light (`room`) is what the drive adds to the light of the film."""
    fps: float | None = None
    """Rate of the recording that it comes from."""
    easings: tuple[str, ...] | None = None
    """Of the N - 1 passages; None: all linear."""
    notes: tuple[str, ...] = ()
    """What a user should know: what was matched, and what was not carried over."""

    @property
    def duration(self) -> float:
        """Seconds from the first state to the last; 0 for a fixed pose."""
        return float(self.times[-1])

    def at(self, time: float) -> PoseState:
        """The state (B = 1) at a time in seconds; the first before it begins, the last after it ends."""
        return self.sampled(np.array([time], dtype=np.float64))

    def sampled(self, times: Float[Array, "M"]) -> PoseState:
        """The states at some times: rotations turned on the shortest arc, everything else linear."""
        last = len(self.times) - 1
        times = np.clip(times, self.times[0], self.times[-1])
        lower = np.clip(np.searchsorted(self.times, times, side="right") - 1, 0, last)
        upper = np.minimum(lower + 1, last)
        share = (times - self.times[lower]) / np.maximum(self.times[upper] - self.times[lower], 1e-12)
        if self.easings is not None:
            names = [self.easings[min(i, last - 1)] if last else "linear" for i in lower]
            share = np.array([EASINGS[name](float(u)) for name, u in zip(names, share, strict=True)])
        return between(select(self.states, lower), select(self.states, upper), share)


def between(a: PoseState, b: PoseState, weight: Float[Array, "M"]) -> PoseState:
    """Row by row from `a` (weight 0) to `b` (1); at the ends exactly one of them, without rounding."""
    w = torch.as_tensor(weight, dtype=a.room.dtype, device=a.room.device)

    def ends(mixed: Tensor, x: Tensor, y: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        return torch.where((w <= 0).view(shape), x, torch.where((w >= 1).view(shape), y, mixed))

    def linear(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        if x is None or y is None:
            return None
        return ends(torch.lerp(x, y, w.view(-1, *[1] * (x.ndim - 1))), x, y)

    def turned(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return x @ roma.rotvec_to_rotmat(roma.rotmat_to_rotvec(x.mT @ y) * share)

    joints = None
    if a.joint_rotations is not None and b.joint_rotations is not None:
        from_a, to_b = (roma.rotvec_to_rotmat(s.joint_rotations) for s in (a, b))
        mixed = roma.rotmat_to_rotvec(turned(from_a, to_b, w[:, None, None]))
        joints = ends(mixed, a.joint_rotations, b.joint_rotations)
    return PoseState(
        conditioning=linear(a.conditioning, b.conditioning),
        room=ends(turned(a.room, b.room, w[:, None]), a.room, b.room),
        joint_rotations=joints,
        root_translation=linear(a.root_translation, b.root_translation),
        expression=linear(a.expression, b.expression),
        vertices=linear(a.vertices, b.vertices),
    )


def select(states: PoseState, index: list[int] | Int[Array, "M"]) -> PoseState:
    """Some rows of a batch of states."""
    rows = torch.as_tensor(np.asarray(index), dtype=torch.int64, device=states.room.device)
    return replace(states, **{name: value[rows] for name, value in _tables(states).items()})


def stack(states: list[PoseState]) -> PoseState:
    """One batch of several."""
    return replace(states[0], **{name: torch.cat([getattr(s, name) for s in states]) for name in _tables(states[0])})


def _repeated(state: PoseState, count: int) -> PoseState:
    """One state as a batch, without copies."""
    return replace(state, **{n: v.expand(count, *v.shape[1:]) for n, v in _tables(state).items()})


def _tables(states: PoseState) -> dict[str, Tensor]:
    """What states hold row by row."""
    held = {f.name: getattr(states, f.name) for f in fields(states)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def pose_drive(pose: AvatarPose, controls: AvatarControls, source: str = "pose") -> Drive:
    """One pose that does not move. Raises `PoseError` for names that the avatar does not have."""
    controls.check(pose, source)
    return Drive(np.zeros(1), controls.state(pose))


def own_drive(performance: Performance, seconds: float, fps: float) -> Drive:
    """The tracked performance of the avatar's own capture, which takes `seconds`; the light is as in a frontal frame."""
    times = performance.timeline_times.cpu().numpy().astype(np.float64) * seconds
    times, first = np.unique(times - times[0], return_index=True)
    frames = performance.timeline_frames[torch.from_numpy(first).to(performance.timeline_frames.device)]
    states = performance.at_frames(frames)
    light = torch.eye(3, device=states.room.device).expand(len(times), 3, 3)
    return Drive(times, replace(states, room=light), fps)


def states_of(
    controls: AvatarControls,
    expression: Float[Array, "N E"],
    joints: Float[Array, "N J 3"] | None = None,
    translation: Float[Array, "N 3"] | None = None,
) -> PoseState:
    """States from values of all the avatar's channels; joints (axis-angle, radians) and translation of the root as in
    its neutral pose where they are None."""
    performance = controls.performance
    neutral = _repeated(performance.neutral(), len(expression))
    device = neutral.room.device

    def tensor(value: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)).to(device)

    if not performance.rigged:
        return replace(neutral, conditioning=tensor(expression))
    if joints is not None:
        neutral = replace(neutral, joint_rotations=tensor(joints))
    if translation is not None:
        neutral = replace(neutral, root_translation=tensor(translation))
    return performance.with_expression(neutral, tensor(expression))


def clipped(drive: Drive, controls: AvatarControls) -> Drive:
    """Every expression channel within the range that training saw; joints and light stay."""
    performance, states = controls.performance, drive.states
    device = states.room.device
    low = torch.tensor([controls.limits[n].low for n in controls.channels], device=device)
    high = torch.tensor([controls.limits[n].high for n in controls.channels], device=device)

    def clip(values: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(values, low), high)

    if performance.rigged:
        states = performance.with_expression(states, clip(states.expression))
    else:
        states = replace(states, conditioning=clip(states.conditioning))
    return replace(drive, states=states)


def beyond(drive: Drive, controls: AvatarControls, slack: float = 0.02) -> list[str]:
    """Channels that leave the range that training saw, with the largest excess first."""
    states = drive.states
    values = (states.expression if controls.performance.rigged else states.conditioning).cpu().numpy()
    excess = []
    for i, name in enumerate(controls.channels):
        limits = controls.limits[name]
        excess.append(max(float(values[:, i].max()) - limits.high, limits.low - float(values[:, i].min())))
    order = np.argsort(excess)[::-1]
    return [controls.channels[i] for i in order if excess[i] > slack]


def smoothed(drive: Drive, sigma: float, performance: Performance) -> Drive:
    """A Gaussian average over time with a standard deviation of `sigma` seconds; the ends are held.

    Easings are applied first, and the smoothed drive has samples of its own at an even rate.
    """
    if sigma <= 0.0 or drive.duration <= 0.0:
        return drive
    rate = max(SMOOTHING_RATE, drive.fps or 0.0, 4.0 / sigma)
    count = max(math.ceil(drive.duration * rate), 1) + 1
    times = np.linspace(0.0, drive.duration, count)
    states = drive.sampled(times)
    width = sigma * (count - 1) / drive.duration

    def average(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        even = gaussian_filter1d(value.double().cpu().numpy(), width, axis=0, mode="nearest")
        return torch.from_numpy(even).to(value)

    joints = None
    if states.joint_rotations is not None:
        quaternions = _continuous(roma.rotvec_to_unitquat(states.joint_rotations))
        quaternions = torch.nn.functional.normalize(average(quaternions), dim=-1)
        joints = roma.unitquat_to_rotvec(quaternions)
    even = PoseState(
        conditioning=average(states.conditioning),
        room=roma.special_procrustes(average(states.room)),
        joint_rotations=joints,
        root_translation=average(states.root_translation),
        expression=average(states.expression),
        vertices=average(states.vertices),
    )
    if performance.rigged:
        even = performance.with_expression(even, even.expression)
    return Drive(times, even, drive.fps, notes=drive.notes)


def _continuous(q: Float[Tensor, "N J 4"]) -> Float[Tensor, "N J 4"]:
    """The same rotations, each quaternion of the sign that is nearer to the one before it."""
    flips = torch.sign((q[1:] * q[:-1]).sum(-1))
    flips = torch.where(flips == 0, torch.ones_like(flips), flips)
    signs = torch.cat([torch.ones_like(flips[:1]), torch.cumprod(flips, 0)])
    return q * signs[..., None]


def check_times(times: Float[Array, "N"], source: str) -> None:
    """Refuse times that are not finite or do not ascend.

    Raises:
        PoseError: with the first row (counted from 1) that is wrong.
    """
    if not len(times):
        raise PoseError(f"{source}: holds no poses.")
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0])
        raise PoseError(f"{source}: the time of entry {row + 1} is {times[row]}; a finite number is expected.")
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        row = int(wrong[0]) + 1
        raise PoseError(
            f"{source}: times are out of order: entry {row + 1} is at {times[row]:g} s, after {times[row - 1]:g} s. "
            "Sort the entries by time, each time once."
        )
