"""What the avatar does at a frame or a time: the tracked motion and the turn of the room, kept in the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.capture.timeline import normalised_times


@dataclass(frozen=True)
class PoseState:
    """Pose, expression and light of B frames. Rigged, or with explicit `vertices`."""

    conditioning: Float[Tensor, "B C"]
    """Drives the blendfields: expression, then the jaw joint's rotation where there is one."""
    room: Float[Tensor, "B 3 3"]
    """Rotation of the room in the avatar's world; identity as in a frontal frame."""
    joint_rotations: Float[Tensor, "B J 3"] | None = None
    root_translation: Float[Tensor, "B 3"] | None = None
    expression: Float[Tensor, "B E"] | None = None
    vertices: Float[Tensor, "B V 3"] | None = None
    beyond_training: bool = False
    """Render the conditioning as it is, in place of the nearest that training saw."""

    def __len__(self) -> int:
        return len(self.conditioning)


def light_turn(angle: float, device: torch.device | None = None) -> Float[Tensor, "3 3"]:
    """Room rotation by `angle` radians about the vertical axis."""
    return roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, float(angle)], device=device))


class Performance(nn.Module):
    """Tables over all frames of a capture, looked up by frame index or by time.

    Args:
        motion_index: row of the motion for each frame.
        times: normalised to [0, 1] over the dynamic part, for each frame.
        room: rotation of the room for each frame.
        dynamic: which frames belong to the performance that `times` run over.
    """

    def __init__(
        self,
        template: RiggedTemplate,
        motion: Motion,
        motion_index: Int[np.ndarray, "N"],
        times: Float[np.ndarray, "N"],
        room: Float[np.ndarray, "N 3 3"],
        dynamic: np.ndarray,
    ) -> None:
        super().__init__()
        self.rigged = motion.rigged
        self.jaw = template.jaw_joint
        if motion.rigged:
            self.conditioning_names = tuple(str(n) for n in template.expression_names)
            if self.jaw is not None:
                self.conditioning_names += ("jaw_x", "jaw_y", "jaw_z")
        else:
            C = 0 if motion.conditioning is None else motion.conditioning.shape[1]
            self.conditioning_names = tuple(motion.conditioning_names) or tuple(f"c{i}" for i in range(C))

        def buffer(name: str, value, dtype: torch.dtype = torch.float32) -> None:
            tensor = None if value is None else torch.as_tensor(np.ascontiguousarray(value), dtype=dtype)
            self.register_buffer(name, tensor)

        buffer("joint_rotations", motion.joint_rotations)
        buffer("root_translation", motion.root_translation)
        buffer("expression", motion.expression)
        # explicit vertices can be large: they stay with the capture, not in the checkpoint
        vertices = None if motion.vertices is None else torch.as_tensor(motion.vertices, dtype=torch.float32)
        self.register_buffer("vertices", vertices, persistent=False)
        conditioning = motion.conditioning
        if not motion.rigged and conditioning is None:
            conditioning = np.zeros((len(motion), 0), dtype=np.float32)
        buffer("conditioning", conditioning)
        buffer("motion_index", motion_index, torch.int64)
        buffer("room", room)
        order = np.flatnonzero(dynamic) if np.any(dynamic) else np.arange(len(times))
        order = order[np.argsort(times[order], kind="stable")]
        buffer("timeline_times", times[order])
        buffer("timeline_frames", order, torch.int64)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # the tables describe the data in hand: another split or a longer motion of the same template is welcome
        for name in list(self._buffers):
            own, key = self._buffers[name], prefix + name
            if own is not None and key in state_dict:
                state_dict[key] = own
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def num_conditioning(self) -> int:
        return len(self.conditioning_names)

    def at_frames(self, frames: Int[Tensor, "B"]) -> PoseState:
        """Exactly as tracked."""
        return self._rows(self.motion_index[frames], self.room[frames])

    def conditioning_of_frames(self) -> Float[Tensor, "F C"]:
        """Of every frame, without its pose."""
        every = self._condition(self.expression, self.joint_rotations) if self.rigged else self.conditioning
        return every[self.motion_index]

    def at_rows(self, rows: Int[Tensor, "B"]) -> PoseState:
        """Rows of the motion, with the light as in a frontal frame."""
        return self._rows(rows, torch.eye(3, device=rows.device).expand(len(rows), 3, 3))

    def at_time(self, time: float) -> PoseState:
        """Interpolated over the performance (time 0 to 1), with the light as in a frontal frame."""
        times = self.timeline_times
        t = torch.as_tensor(float(time), device=times.device, dtype=times.dtype).clamp(times[0], times[-1])
        upper = int(torch.searchsorted(times, t).clamp(max=len(times) - 1))
        lower = max(upper - 1, 0)
        span = times[upper] - times[lower]
        weight = float((t - times[lower]) / span) if span > 0 else 1.0
        rows = self.motion_index[self.timeline_frames[[lower, upper]]]
        room = torch.eye(3, device=times.device)[None]
        return blend(self._rows(rows[:1], room), self._rows(rows[1:], room), weight)

    def neutral(self) -> PoseState:
        """The template's rest expression, upright: joints as in the calmest tracked frame."""
        device = self.room.device
        if self.rigged:
            calm = self.expression.abs().sum(1) + self.joint_rotations.flatten(1).norm(dim=1)
            row = int(calm.argmin())
            state = self._rows(torch.tensor([row], device=device), torch.eye(3, device=device)[None])
            return self.with_expression(state, torch.zeros_like(state.expression))
        row = int(self.conditioning.abs().sum(1).argmin())
        return self._rows(torch.tensor([row], device=device), torch.eye(3, device=device)[None])

    def with_expression(self, state: PoseState, expression: Float[Tensor, "B E"]) -> PoseState:
        """`state` with another expression, conditioning included."""
        return replace(state, expression=expression, conditioning=self._condition(expression, state.joint_rotations))

    def _rows(self, rows: Tensor, room: Tensor) -> PoseState:
        if not self.rigged:
            return PoseState(self.conditioning[rows], room, vertices=self.vertices[rows])
        joints, expression = self.joint_rotations[rows], self.expression[rows]
        return PoseState(
            self._condition(expression, joints), room, joints, self.root_translation[rows], expression
        )

    def _condition(self, expression: Tensor, joints: Tensor) -> Tensor:
        if self.jaw is None:
            return expression
        return torch.cat([expression, joints[:, self.jaw]], -1)


def blend(a: PoseState, b: PoseState, weight: float) -> PoseState:
    """Between two poses: rotations on the shortest arc, everything else linearly."""

    def linear(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else torch.lerp(x, y, weight)

    joints = None
    if a.joint_rotations is not None and b.joint_rotations is not None:
        qa, qb = roma.rotvec_to_unitquat(a.joint_rotations), roma.rotvec_to_unitquat(b.joint_rotations)
        steps = torch.tensor([weight], device=qa.device, dtype=qa.dtype)
        joints = roma.unitquat_to_rotvec(roma.utils.unitquat_slerp(qa, qb, steps, shortest_arc=True)[0])
    return PoseState(
        conditioning=linear(a.conditioning, b.conditioning),
        room=roma.special_procrustes(torch.lerp(a.room, b.room, weight)),
        joint_rotations=joints,
        root_translation=linear(a.root_translation, b.root_translation),
        expression=linear(a.expression, b.expression),
        vertices=linear(a.vertices, b.vertices),
    )


def mesh_vertices(rig: Rig, state: PoseState, moves: Float[Tensor, "E"]) -> Float[Tensor, "B V 3"]:
    """Posed vertices; `moves` (0 or 1 per channel) says which expression channels move the mesh."""
    if state.vertices is not None:
        return state.vertices
    return rig.pose(state.joint_rotations, state.root_translation, state.expression * moves)


def performance_of(capture: Capture) -> Performance:
    """Tables of all frames of a capture; times run from 0 to 1 over its dynamic part."""
    frames = capture.frames
    dynamic = frames.sequence == "dynamic"
    return Performance(
        capture.template,
        capture.motion,
        frames.motion_index,
        normalised_times(frames.times, dynamic),
        frames.room_to_world[:, :3, :3].astype(np.float32),
        dynamic,
    )


def conditioning_range(performance: Performance, capture: Capture) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each conditioning channel over the training frames (neutral, 0, included)."""
    train = torch.from_numpy(np.flatnonzero(capture.frames.split == "train"))
    values = performance.at_frames(train).conditioning
    zero = torch.zeros(values.shape[1])
    return torch.minimum(values.amin(0), zero), torch.maximum(values.amax(0), zero)
