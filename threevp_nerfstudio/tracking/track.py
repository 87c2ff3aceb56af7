"""Pose and expression in every picture, by analysis by synthesis against the fitted template.

Forward through the pictures, each from where the one before left off; a picture that fits badly starts afresh. Then
backward, each drawn to the estimates on both sides of it. The cost grows linearly with the number of pictures.

Pictures are tracked in stretches that workers share. A stretch starts afresh, and once it is tracked its seam is joined: its first pictures
are tracked again from where the stretch before left off, until they come to the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from threevp_nerfstudio.capture.silhouette import silhouette
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.appearance import Appearance
from threevp_nerfstudio.tracking.confidence import confidence, head_rotation_jacobian
from threevp_nerfstudio.tracking.depth import steadied
from threevp_nerfstudio.tracking.evidence import Evidence, evidence
from threevp_nerfstudio.tracking.fit import Progress
from threevp_nerfstudio.tracking.fitted import FittedTemplate, read_npz, write_npz
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.motion_prior import (
    Usual,
    between,
    following,
    loose_prior,
    neutral,
    predicted,
    seated,
    usual,
)
from threevp_nerfstudio.tracking.parts import MOVES, find_parts
from threevp_nerfstudio.tracking.posing import Pose, PosedRig, between_transforms, head_pivot, head_pose
from threevp_nerfstudio.tracking.restart import restart
from threevp_nerfstudio.tracking.seat import Seat, find_seat
from threevp_nerfstudio.tracking.settling import Silhouette
from threevp_nerfstudio.tracking.shape import outline_trust
from threevp_nerfstudio.tracking.solver import FrameSolver, Prior, Solution, Subject
from threevp_nerfstudio.tracking.trajectory import OPENGL_FROM_OPENCV, Track
from threevp_nerfstudio.workers import streamed

__all__ = ["Track", "TrackOptions", "track"]

Settle = Callable[[Silhouette], Array]
"""Mattes (N, h, w) of all pictures, from what the template covers in them."""
STATE_VERSION = 2
SAVE_EVERY_S = 20.0
STRETCH = 100
"""Pictures of a stretch, about."""
LONGEST_SEAM = 16
"""Pictures after which a stretch is left as it was tracked by itself."""
SAME_TURN, SAME_CHANNEL = np.radians(0.1), 0.03
"""Differences of the head's turn and of a channel up to which two estimates of a picture are the same."""
WORSE_JOINED = 1.5
"""How much worse a picture may fit from the stretch before than afresh: from there it has a prior."""
RETRY_AFTER = 5
"""Pictures between two attempts to find a lost subject again."""
TURN_SCHEDULE = ((1, 2), (2, 3))
FORWARD_SCHEDULE = ((0, 2), (1, 3), (2, 4))
BACKWARD_SCHEDULE = ((2, 3),)
UNTRACKED = ("tongueOut",)
"""Channels that neither colours nor outline nor landmarks tell apart from others."""


@dataclass(frozen=True)
class TrackOptions:
    """How pictures are tracked."""

    working_size: int = 256
    """Longer side of the pictures that are tracked, pixels."""
    backward_pass: bool = True
    """Go over the pictures once more from the end, each drawn to the estimates on both sides of it."""


def track(
    footage: Footage,
    fitted: FittedTemplate,
    options: TrackOptions,
    resume: Path | None = None,
    progress: Progress = lambda *_: None,
    settle: Settle | None = None,
) -> Track:
    """Track all pictures of the footage. With `resume`, the state is kept in that .npz every few seconds and taken up from it.
    `settle` gives better mattes for the backward pass, from what the template covers after the forward pass.

    Raises `TrackError`.
    """
    tracker = _Tracker(footage, fitted, options)
    state = _State.load(resume, len(footage), tracker.rig) if resume is not None and resume.is_file() else None
    if state is None:
        state = _State.empty(len(footage), tracker.rig)
    try:
        _run(tracker, state, options, resume, settle, progress)
    finally:
        if resume is not None:  # also after Ctrl-C: what was tracked is not lost
            state.save(resume)
    return tracker.result(state)


def _run(
    tracker: _Tracker, state: _State, options: TrackOptions, resume: Path | None, settle: Settle | None, progress: Progress
) -> None:
    N, saved = len(state.expression), time.monotonic()

    def share(jobs: list[Callable[[_State], Iterator[int]]], what: Literal["forward", "backward"]) -> None:
        """What jobs find goes into the state as it comes. Each works on a copy of its own, so that none sees what others find."""
        nonlocal saved
        before, done = state.copy(), getattr(state, what)

        def finding(job: Callable[[_State], Iterator[int]]) -> Iterator[tuple[int, dict[str, Array]]]:
            own = before.copy()
            for i in job(own):
                yield i, own.row(i)

        for _, (i, row) in streamed([partial(finding, job) for job in jobs]):
            state.put(i, row)
            done[i] = True
            progress(what, int(done.sum()), N)
            if resume is not None and time.monotonic() - saved > SAVE_EVERY_S:
                state.save(resume)
                saved = time.monotonic()

    static = tracker.footage.static
    parts = stretches(static)
    for i in np.flatnonzero(static[:-1] & ~static[1:] & ~state.forward[:-1]):  # pictures of a turn do not depend on each other
        tracker.forward(state, int(i))
        state.forward[i] = True
    share([partial(tracker.forward_through, part, state.forward.copy()) for part in parts], "forward")
    if not state.backward.any():  # a seam that was joined before an interruption stays as it is
        share([partial(tracker.join, part[0]) for part in parts if tracker.begins_afresh(part[0])], "forward")
    if settle is not None:
        tracker.footage = replace(tracker.footage, alpha=settle(lambda i: None if state.lost[i] else tracker.covered(state.pose(i))))
    if options.backward_pass:
        share([partial(tracker.backward_through, part, state.backward.copy()) for part in parts], "backward")


def stretches(static: Bool[Array, "N"]) -> list[range]:
    """Successive pictures that are tracked one after the other; the slower ones of the performance first."""
    kinds = [0, *(np.flatnonzero(np.diff(static.astype(int))) + 1), len(static)]
    parts = []
    for first, last in zip(kinds[:-1], kinds[1:], strict=True):
        cuts = np.linspace(first, last, max(1, round((last - first) / STRETCH)) + 1).round().astype(int)
        parts += [range(int(a), int(b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    return sorted(parts, key=lambda part: bool(static[part[0]]))


@dataclass
class _State:
    """What is tracked so far."""

    T_camera_root: Float[Array, "N 4 4"]
    rotations: Float[Array, "N J 3"]
    expression: Float[Array, "N E"]
    confidence: Float[Array, "N 2"]
    iou: Float[Array, "N"]
    photometric: Float[Array, "N"]
    landmark_px: Float[Array, "N"]
    lost: Bool[Array, "N"]
    restarted: Bool[Array, "N"]
    forward: Bool[Array, "N"]
    """Pictures that the first pass has been through."""
    backward: Bool[Array, "N"]
    """The same of the second."""

    @classmethod
    def empty(cls, N: int, rig: PosedRig) -> _State:
        E, J = len(rig.points.basis), len(rig.joints)
        return cls(
            np.tile(np.eye(4), (N, 1, 1)), np.zeros((N, J, 3)), np.zeros((N, E)), np.zeros((N, 2)), np.zeros(N), np.zeros(N),
            np.full(N, np.nan), *(np.zeros(N, dtype=bool) for _ in range(4)),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        write_npz(path, {"version": np.array(STATE_VERSION), **self.__dict__})

    @classmethod
    def load(cls, path: Path, N: int, rig: PosedRig) -> _State | None:
        """A saved state, or None if it belongs to another footage, template or release."""
        try:
            arrays = read_npz(path, STATE_VERSION)
        except TrackError:
            return None
        arrays.pop("version")
        fresh = cls.empty(N, rig)
        if set(arrays) != set(fresh.__dict__) or any(
            np.shape(arrays[k]) != np.shape(v) for k, v in fresh.__dict__.items()
        ):
            return None
        return cls(**arrays)

    def copy(self) -> _State:
        return _State(**{name: value.copy() for name, value in self.__dict__.items()})

    def row(self, i: int) -> dict[str, Array]:
        """All that was found for picture `i`."""
        return {name: value[i] for name, value in self.__dict__.items() if name not in ("forward", "backward")}

    def put(self, i: int, row: dict[str, Array]) -> None:
        for name, value in row.items():
            getattr(self, name)[i] = value

    def misfit(self, i: int) -> float:
        """How badly picture `i` fits, as `_Tracker._badness` has it."""
        return float(self.photometric[i] + 0.3 * (1 - self.iou[i]))

    def pose(self, i: int) -> Pose:
        return Pose(self.T_camera_root[i], self.rotations[i], self.expression[i])


class _Tracker:
    def __init__(self, footage: Footage, fitted: FittedTemplate, options: TrackOptions) -> None:
        self.footage, self.fitted = replace(footage, camera=fitted.camera), fitted
        self.size = options.working_size
        template = fitted.template
        self.rig, self.parts = PosedRig(template), find_parts(template)
        looks = Appearance(fitted.blurred_albedo.astype(np.float64), fitted.albedo_trust.astype(np.float64), fitted.lighting)
        face = fitted.face_points
        subject = Subject(self.rig, np.asarray(template.faces), self.parts, looks, face, outline_trust(self.parts, True))
        skin = self.parts.skin
        moves = np.sqrt((self.rig.points.basis**2).sum(-1))[:, skin].max(1) if len(self.rig.points.basis) else np.zeros(0)
        names = template.expression_names
        channels = tuple(int(e) for e in np.flatnonzero(moves > MOVES) if names[e] not in UNTRACKED)
        stance = fitted.joint_rotations.mean(0)
        self.performing = usual(self.parts, names, channels, stance, face=True)
        self.turning = usual(self.parts, names, channels, stance, face=False)
        self.solvers = {True: FrameSolver(subject, self.turning.freedoms), False: FrameSolver(subject, self.performing.freedoms)}
        self.seat = _seat(self.rig, fitted, self.parts.skull[0])
        self.reference = (max(1.6 * fitted.report.get("photometric", 0.02), 0.012), fitted.report.get("silhouette_iou", 0.95))

    # ---- passes ----------------------------------------------------------------------------------------------------

    def forward_through(self, part: range, done: Bool[Array, "N"], state: _State) -> Iterator[int]:
        """The first pass through a stretch; yields pictures as they are found."""
        for i in part:
            if not done[i]:
                self.forward(state, i, afresh=i == part[0] and self.begins_afresh(i))
                yield i

    def begins_afresh(self, i: int) -> bool:
        """Whether a stretch from `i` on cannot know the picture before: it is another stretch's of the performance."""
        return i > 0 and not self.footage.static[i - 1 : i + 1].any()

    def join(self, seam: int, state: _State) -> Iterator[int]:
        """Track the pictures from `seam` on once more from the stretch before, until nothing changes any more."""
        alone = state.copy()
        for i in range(seam, min(seam + LONGEST_SEAM, len(self.footage))):
            if self.footage.static[i]:
                return
            if not state.lost[i - 1]:
                self.forward(state, i)
            if state.lost[i - 1] or state.misfit(i) > WORSE_JOINED * alone.misfit(i):
                state.put(i, alone.row(i))  # found better afresh: what came before had gone astray
                state.restarted[i] = True
                yield i
                return
            yield i
            if self._same(state.pose(i), alone.pose(i)):
                return

    def backward_through(self, part: range, done: Bool[Array, "N"], state: _State) -> Iterator[int]:
        """The second pass, from a stretch's end."""
        for i in reversed(part):
            if not done[i]:
                self.backward(state, i)
                yield i

    def _same(self, a: Pose, b: Pose) -> bool:
        turned = head_pose(self.rig, a, self.parts.skull[0])[:3, :3] @ head_pose(self.rig, b, self.parts.skull[0])[:3, :3].T
        angle = np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1))
        return bool(angle < SAME_TURN and np.abs(a.expression - b.expression).max(initial=0) < SAME_CHANNEL)

    def forward(self, state: _State, i: int, afresh: bool = False) -> None:
        """`afresh`: whatever is known of the picture before."""
        picture = evidence(self.footage, i, self.size)
        static = bool(self.footage.static[i])
        who, solver = (self.turning if static else self.performing), self.solvers[static]
        guess, last, lapse = self._guess(state, i, who, afresh)
        if guess is None:
            solution, restarted = restart(solver, picture, who, self.fitted.T_camera_root), False
        else:
            schedule = TURN_SCHEDULE if static else FORWARD_SCHEDULE
            solution = solver.solve(picture, guess, self._seated(following(who, guess, last, lapse), static), schedule, who.limits)
            restarted = False
            waiting = bool(state.lost[max(0, i - RETRY_AFTER) : i].any()) and i % RETRY_AFTER != 0
            if self._misfits(solution, picture) and not waiting:
                other = restart(solver, picture, who, self.fitted.T_camera_root, (last,))
                if self._badness(other) < 0.9 * self._badness(solution):
                    solution, restarted = other, True
        self._store(state, i, solution, picture, who)
        state.lost[i] = self._misfits(solution, picture)
        state.restarted[i] = restarted

    def backward(self, state: _State, i: int) -> None:
        static, N = bool(self.footage.static[i]), len(self.footage)
        times = self.footage.times
        sides = [k for k in (i - 1, i + 1) if 0 <= k < N and self._joined(state, k, i)]
        if state.lost[i] and not sides:
            return
        who, solver = (self.turning if static else self.performing), self.solvers[static]
        picture = evidence(self.footage, i, self.size)
        here = state.pose(i)
        if len(sides) == 2:
            share = (times[i] - times[i - 1]) / max(times[i + 1] - times[i - 1], 1e-9)
            lapse = (times[i + 1] - times[i - 1]) / 2
            prior = between(self.rig, self.parts, who, state.pose(i - 1), state.pose(i + 1), float(share), float(lapse))
        elif sides:
            last = state.pose(sides[0])
            prior = following(who, here, last, abs(float(times[i] - times[sides[0]])))
        else:
            prior = loose_prior(who, here)
        prior = self._seated(prior, static)
        start = prior.mean if state.lost[i] else here
        solution = solver.solve(picture, start, prior, BACKWARD_SCHEDULE, who.limits)
        worse = self._badness(solution) > 1.05 * state.misfit(i) + 0.002
        if worse and not state.lost[i]:
            return
        self._store(state, i, solution, picture, who)
        state.lost[i] = self._misfits(solution, picture)

    def covered(self, pose: Pose) -> Bool[Array, "u v"]:
        """What the template covers in a pose, at half of the footage's resolution."""
        camera = self.footage.camera
        w, h = camera.width // 2, camera.height // 2
        K = np.diag([w / camera.width, h / camera.height, 1.0]) @ camera.matrix
        x, faces = self.rig.place(self.rig.points, pose).camera, self.solvers[True].observer.mesh.faces
        return silhouette(x, faces, OPENGL_FROM_OPENCV, K, np.array(camera.distortion), w, h)

    def _joined(self, state: _State, k: int, i: int) -> bool:
        """Neighbours tell of each other, unless one is lost, or the track jumped between them."""
        apart = state.lost[k] or state.restarted[max(k, i)] or self.footage.static[k] != self.footage.static[i]
        return not bool(apart)

    # ---- one picture -----------------------------------------------------------------------------------------------

    def _guess(self, state: _State, i: int, who: Usual, afresh: bool) -> tuple[Pose | None, Pose, float]:
        """Where the subject is expected, the pose before, and the seconds since then. None: nothing to go by."""
        times, fitted = self.footage.times, self.fitted
        channels = len(self.rig.points.basis)
        if self.footage.static[i]:
            T = _interpolated(fitted, times, i)
            pose = neutral(who, T, channels)
            return pose, pose, 1.0 / 30
        if i == 0 or afresh:
            return None, neutral(who, np.eye(4), channels), 1.0
        last = state.pose(i - 1)
        lapse = float(times[i] - times[i - 1])
        fresh = i < 2 or self.footage.static[i - 1] or state.restarted[i - 1] or state.lost[i - 1]
        before = None if fresh else state.pose(i - 2)
        earlier = float(times[i - 1] - times[i - 2]) if i >= 2 else 0.0
        return predicted(self.rig, self.parts, who, last, before, lapse, earlier), last, lapse

    def _seated(self, prior: Prior, static: bool) -> Prior:
        """On the turn the chair's circle says more about depth than the pictures do."""
        return prior if self.seat is None or not static else seated(prior, self.rig, self.parts, self.seat)

    def _badness(self, solution: Solution) -> float:
        return (solution.photometric if np.isfinite(solution.photometric) else 1.0) + 0.3 * (1 - solution.iou)

    def _misfits(self, solution: Solution, picture: Evidence) -> bool:
        """Far worse than the turn was: the head is not where the track has it."""
        colour, iou = self.reference
        unit = max(picture.camera.width, picture.camera.height) / 256
        wrong = solution.photometric > 3.0 * colour + 0.01 if np.isfinite(solution.photometric) else True
        return bool(wrong or solution.iou < iou - 0.15 or solution.landmark_px > 8.0 * unit)

    def _store(self, state: _State, i: int, solution: Solution, picture: Evidence, who: Usual) -> None:
        pose = solution.pose
        state.T_camera_root[i], state.rotations[i], state.expression[i] = pose.T_camera_root, pose.rotations, pose.expression
        state.iou[i], state.photometric[i] = solution.iou, solution.photometric
        state.landmark_px[i] = solution.landmark_px * self.footage.camera.width / picture.camera.width
        quality = float(np.clip(2.0 * self.reference[0] / max(solution.photometric, 1e-6), 0, 1)) if solution.photometric > 0 else 0.0
        J = head_rotation_jacobian(self.rig, pose, who.freedoms, self.parts.skull[0])
        state.confidence[i] = confidence(solution.information, who.spread, J, who.freedoms, quality)

    def _steadied(self, state: _State) -> Float[Array, "N 4 4"]:
        """`T_camera_root` with depths as the motion across the line of sight lets one expect them."""
        heads = np.array([head_pivot(self.rig, state.pose(i), self.parts.skull[0]) for i in range(len(state.expression))])
        return steadied(state.T_camera_root, heads, self.footage.times, self.footage.static, ~state.lost, self.seat)

    def result(self, state: _State) -> Track:
        """The track as the format wants it."""
        return Track(
            times=np.asarray(self.footage.times, dtype=np.float64),
            T_camera_root=self._steadied(state),
            joint_rotations=state.rotations,
            expression=state.expression,
            confidence=np.where(state.lost[:, None], 0.0, state.confidence),
            silhouette_iou=state.iou,
            photometric_error=state.photometric,
            landmark_error_px=state.landmark_px,
            lost=state.lost,
            restarted=state.restarted,
        )


def _seat(rig: PosedRig, fitted: FittedTemplate, head: int) -> Seat | None:
    """Where the head sat in the pictures that the template was fitted to."""
    none = np.zeros(len(rig.points.basis))
    poses = [Pose(T, rotations, none) for T, rotations in zip(fitted.T_camera_root, fitted.joint_rotations, strict=True)]
    return find_seat(fitted.T_camera_root[:, :3, :3], np.array([head_pivot(rig, pose, head) for pose in poses]))


def _interpolated(fitted: FittedTemplate, times: Float[Array, "N"], i: int) -> Float[Array, "4 4"]:
    """Where the turn's own pictures, which the template was fitted to, put picture `i`."""
    k = int(np.clip(np.searchsorted(fitted.frames, i), 1, max(len(fitted.frames) - 1, 1)))
    a, b = fitted.frames[k - 1], fitted.frames[min(k, len(fitted.frames) - 1)]
    share = float(np.clip((times[i] - times[a]) / max(times[b] - times[a], 1e-9), 0, 1)) if b != a else 0.0
    one, two = fitted.T_camera_root[k - 1], fitted.T_camera_root[min(k, len(fitted.frames) - 1)]
    return between_transforms(one, two, share)
