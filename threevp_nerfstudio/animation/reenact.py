"""Reenactment: another person's track, or a face-capture take, as a drive of this avatar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.drives import Drive, states_of
from threevp_nerfstudio.animation.livelink import FaceTake
from threevp_nerfstudio.animation.names import ARKIT_NAMES
from threevp_nerfstudio.animation.retarget import (
    ChannelTransfer,
    JointTransfer,
    Skeleton,
    face_rotation,
    set_joint,
    transfer_channels,
    transfer_joints,
    turn_head,
)
from threevp_nerfstudio.body.expressions import Conversion
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.capture import load_motion, load_template
from threevp_nerfstudio.capture.frames import Frames, read_frames
from threevp_nerfstudio.errors import CaptureError, PoseError

EYE_JOINTS = {"lefteye": ("eye.L", "left_eye_smplhf"), "righteye": ("eye.R", "right_eye_smplhf")}


@dataclass(frozen=True)
class Track:
    """The motion of another capture, and how to read it."""

    path: Path
    template: RiggedTemplate
    motion: Motion
    rows: Int[Array, "N"]
    """Rows of the motion that are played, in order of time."""
    times: Float[Array, "N"]
    """Seconds, from 0."""
    fps: float | None = None
    frames: Frames | None = None
    """Pictures of the played rows, in the same order, where the capture has them."""
    notes: tuple[str, ...] = ()


def read_track(path: Path) -> Track:
    """The track of a capture: its folder, or its motion.npz with the template.npz (names) beside it. Where the capture's
    transforms.json is there too, the dynamic part is played, as the capture's own avatar would.

    Raises:
        CaptureError, PoseError: what is missing or wrong.
    """
    path = path / "motion.npz" if path.is_dir() else path
    if not path.is_file():
        raise PoseError(f"{path}: no such file. Reenactment takes the motion.npz of another capture, or its folder.")
    beside = path.with_name("template.npz")
    if not beside.is_file():
        raise PoseError(
            f"{path}: there is no template.npz beside it, and the names of joints and channels are in that file; copy the "
            "template of the capture that it was tracked with next to it."
        )
    template = load_template(beside)
    motion = load_motion(path, template)
    if path.with_name("transforms.json").is_file():
        return _performance(path, template, motion)
    restart = np.flatnonzero(np.diff(motion.times) <= 0) + 1
    rows = np.arange(restart[-1] if len(restart) else 0, len(motion))
    notes = (f"{path.name} starts over {len(restart)} times; its last {len(rows)} rows are played",) if len(restart) else ()
    return Track(path, template, motion, rows, _from_zero(motion.times[rows]), notes=notes)


def _performance(path: Path, template: RiggedTemplate, motion: Motion) -> Track:
    frames, fps = read_frames(path.parent)
    played = frames.sequence == "dynamic"
    index = np.flatnonzero(played) if played.any() else np.arange(len(frames))
    times, first = np.unique(frames.times[index], return_index=True)
    chosen = frames.select(index[first])
    if chosen.motion_index.max() >= len(motion):
        raise CaptureError(
            f"{path}: has {len(motion)} rows, but transforms.json beside it names row {chosen.motion_index.max()}; the two "
            "files must come from one export."
        )
    return Track(path, template, motion, chosen.motion_index, _from_zero(times), fps, chosen)


def _from_zero(times: Float[Array, "N"]) -> Float[Array, "N"]:
    times = times.astype(np.float64)
    return times - times[0]


def track_drive(track: Track, controls: AvatarControls, rig: Rig, conversion: Conversion | None) -> Drive:
    """Expression by channel name (or through `conversion`), joints by name and root translation, each relative to the
    neutral pose.

    Raises:
        PoseError: nothing of the track has a counterpart on this avatar.
    """
    motion, rows, source = track.motion, track.rows, str(track.path)
    if motion.rigged:
        names, values = tuple(track.template.expression_names), motion.expression[rows].astype(np.float64)
    else:
        names, values = tuple(motion.conditioning_names), motion.conditioning[rows].astype(np.float64)
    channels = transfer_channels(names, values, controls.channels, conversion, source)
    if not motion.rigged or not controls.performance.rigged:
        states = states_of(controls, channels.values)
        return Drive(track.times, states, track.fps, notes=(*track.notes, *_channel_notes(channels, len(names))))
    calm = _calm_row(motion)
    theirs = Skeleton(tuple(track.template.joint_names), _ints(track.template.parents), motion.joint_rotations[calm])
    ours = skeleton_of(controls, rig)
    joints = transfer_joints(motion.joint_rotations[rows], theirs, ours)
    channels, joints = _jaw(track, channels, joints, theirs, controls, rig)
    shift = motion.root_translation[rows] - motion.root_translation[calm]
    rest = controls.performance.neutral().root_translation[0].cpu().numpy()
    states = states_of(controls, channels.values, joints.rotations, rest + shift)
    notes = (*track.notes, *_channel_notes(channels, len(names)), *_joint_notes(joints))
    return Drive(track.times, states, track.fps, notes=notes)


def take_drive(
    take: FaceTake,
    controls: AvatarControls,
    rig: Rig,
    conversion: Conversion | None,
    head: Float[Array, "3"],
    source: str,
) -> Drive:
    """A face-capture take. `head`: factors of the head's yaw, pitch and roll (0 leaves it still).

    Raises:
        PoseError: no channel of the take is one of the avatar's.
    """
    channels = transfer_channels(take.names, take.values, controls.channels, conversion, source)
    arkit = [i for i, n in enumerate(take.names) if n in ARKIT_NAMES]
    notes = [*_channel_notes(channels, len(take.names))]
    if len(arkit) < len(ARKIT_NAMES):
        notes.append(f"the take has {len(arkit)} of ARKit's {len(ARKIT_NAMES)} channels")
    if take.ignored:
        notes.append(f"columns without numbers, not read: {', '.join(take.ignored)}")
    if not controls.performance.rigged:
        if take.rotations:
            notes.append(f"not carried over, the avatar has no joints: rotation of {', '.join(take.rotations)}")
        return Drive(take.times, states_of(controls, channels.values), notes=tuple(notes))
    ours = skeleton_of(controls, rig)
    joints = np.repeat(ours.neutral[None].astype(np.float64), len(take.times), axis=0)
    if channels.jaw is not None and "jaw" in ours.names:
        set_joint(channels.jaw, ours.names.index("jaw"), ours, joints)
    if "head" in take.rotations:
        moved = turn_head(take.rotations["head"] * head, ours, joints)
        notes.append(f"head rotation: over {', '.join(moved)}" if moved else "head rotation: not carried over, no joint 'head'")
    notes += _eyes(take, controls, ours, joints)
    return Drive(take.times, states_of(controls, channels.values, joints), notes=tuple(notes))


def skeleton_of(controls: AvatarControls, rig: Rig) -> Skeleton:
    """The avatar's joints, with its neutral pose."""
    neutral = controls.performance.neutral().joint_rotations[0].double().cpu().numpy()
    return Skeleton(controls.joints, rig.parents, neutral)


def _calm_row(motion: Motion) -> int:
    """As `Performance.neutral` chooses it: the row with the least expression and rotation."""
    size = np.abs(motion.expression).sum(1) + np.linalg.norm(motion.joint_rotations.reshape(len(motion), -1), axis=1)
    return int(size.argmin())


def _eyes(take: FaceTake, controls: AvatarControls, ours: Skeleton, joints: Float[Array, "N J 3"]) -> list[str]:
    """Eye rotations onto eye joints, unless the avatar has eyeLook channels, which carry the same."""
    eyes = [part for part in EYE_JOINTS if part in take.rotations]
    if not eyes:
        return []
    if any("eyelook" in name.lower().replace("_", "") for name in controls.channels):
        return ["eye rotation: by the eyeLook channels"]
    notes = []
    for part in eyes:
        joint = next((n for n in EYE_JOINTS[part] if n in ours.names), None)
        if joint is None:
            notes.append(f"not carried over, no such joint: rotation of {part}")
            continue
        rotvec = _rotvec(take.rotations[part])
        set_joint(rotvec, ours.names.index(joint), ours, joints)
    return notes


def _rotvec(angles: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
    import roma

    return roma.rotmat_to_rotvec(face_rotation(angles)).numpy()


def _jaw(
    track: Track, channels: ChannelTransfer, joints: JointTransfer, theirs: Skeleton, controls: AvatarControls, rig: Rig
) -> tuple[ChannelTransfer, JointTransfer]:
    """The mouth opens by a jaw joint on some rigs and by the channel jawOpen on others: carry one over to the other."""
    if channels.jaw is not None and "jaw" in controls.joints:
        rotations = joints.rotations.copy()
        rotations[:, controls.joints.index("jaw")] += channels.jaw
        joints = replace(joints, rotations=rotations)
    if "jaw" in joints.dropped and "jawOpen" in controls.channels:
        jaw = theirs.names.index("jaw")
        opened = track.motion.joint_rotations[track.rows, jaw, 0] - theirs.neutral[jaw, 0]
        ratio = _jaw_travel(track.template, jaw) / _channel_travel(rig, controls.channels.index("jawOpen"))
        values = channels.values.copy()
        values[:, controls.channels.index("jawOpen")] += opened * ratio
        channels = replace(channels, values=values, undriven=tuple(n for n in channels.undriven if n != "jawOpen"))
        joints = replace(joints, dropped=tuple(n for n in joints.dropped if n != "jaw"), folded=(*joints.folded, "jaw"))
    return channels, joints


def _jaw_travel(template: RiggedTemplate, jaw: int) -> float:
    """Largest way of a vertex per radian of the jaw joint about the x axis, metres."""
    arm = np.linalg.norm((template.vertices - template.joints[jaw])[:, 1:], axis=1)
    return float((template.skin_weights[:, jaw] * arm).max())


def _channel_travel(rig: Rig, channel: int) -> float:
    """Largest way of a vertex per unit of a channel, metres."""
    return float(rig.expression_basis[channel].norm(dim=-1).max())


def _ints(values: Array) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _channel_notes(channels: ChannelTransfer, count: int) -> list[str]:
    notes = [f"channels: {channels.matched} of the avatar's {channels.matched + len(channels.undriven)} are driven"]
    if channels.dropped:
        notes.append(f"channels not carried over, the avatar has none of that name: {', '.join(channels.dropped)}")
    if channels.unused:
        notes.append(f"unmatched, and 0 throughout: {', '.join(channels.unused)}")
    if channels.undriven:
        notes.append(f"channels that nothing drives, neutral: {', '.join(channels.undriven)}")
    return notes


def _joint_notes(joints: JointTransfer) -> list[str]:
    notes = [f"joints: {len(joints.matched)} by name"]
    if joints.folded:
        notes.append(f"joints taken together with the next one that both have: {', '.join(joints.folded)}")
    if joints.dropped:
        notes.append(f"joints not carried over, the avatar has none of that name: {', '.join(joints.dropped)}")
    return notes
