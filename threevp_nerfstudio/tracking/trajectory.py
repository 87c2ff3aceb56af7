"""The track: where the head was in every picture, what the face did, and how well that was seen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.fitted import azimuth_of, read_npz, write_npz

TRACK_VERSION = 1
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Track:
    """One row per picture of the footage, in order of time."""

    times: Float[Array, "N"]
    T_camera_root: Float[Array, "N 4 4"]
    """From the template's world frame (rest frame of its root) to the camera, OpenCV axes: x right, y down, z forward."""
    joint_rotations: Float[Array, "N J 3"]
    """Local rotations in world-aligned axes about each joint. The root's is the same in all pictures: how the body leans
    against the chair's axis, which is the world's z; what moves is `T_camera_root`."""
    expression: Float[Array, "N E"]
    confidence: Float[Array, "N 2"]
    """How well head pose and expression were seen, 0 to 1."""
    silhouette_iou: Float[Array, "N"]
    """Posed template against matte at the working resolution."""
    photometric_error: Float[Array, "N"]
    """Mean absolute colour difference on visible surface points, 0 to 1."""
    landmark_error_px: Float[Array, "N"]
    """Mean distance of the used face landmarks in the footage's pixels; NaN where none was used."""
    lost: Bool[Array, "N"]
    """The track could not be trusted here, also after starting afresh."""
    restarted: Bool[Array, "N"]
    """The track was lost on arrival and found again from scratch."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def azimuth(self) -> Float[Array, "N"]:
        """Azimuth of the camera about the chair, radians in (-pi, pi]; 0 in front, positive to the subject's left."""
        return azimuth_of(self.T_camera_root)

    def camera_to_world(self) -> Float[Array, "N 4 4"]:
        """The chair's turn folded into the cameras: 4x4 in OpenGL axes (x right, y up, looks along -z)."""
        return np.linalg.inv(self.T_camera_root) @ OPENGL_FROM_OPENCV

    def to_motion(self) -> Motion:
        """What the template does in the world that `camera_to_world` looks at: the root stands still."""
        rotations = self.joint_rotations.astype(np.float32)
        return Motion(
            times=self.times.astype(np.float64),
            joint_rotations=rotations,
            root_translation=np.zeros((len(self), 3), dtype=np.float32),
            expression=self.expression.astype(np.float32),
            confidence=self.confidence.astype(np.float32),
        )

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects, atomically."""
        arrays = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        write_npz(path, {"version": np.array(TRACK_VERSION), **arrays})

    @classmethod
    def load(cls, path: Path) -> Track:
        """Read what `save` wrote. Raises `TrackError`."""
        arrays = read_npz(path, TRACK_VERSION)
        try:
            return cls(**{entry.name: arrays[entry.name] for entry in fields(cls)})
        except KeyError as error:
            raise TrackError(f"{path} is no track (no {error}); run the tracking stage again.") from error
