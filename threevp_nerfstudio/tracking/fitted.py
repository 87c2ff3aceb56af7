"""What the turn gives: the person's template, its colours, and where it was in the pictures of the turn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.footage import PinholeCamera

FITTED_VERSION = 2
ARRAYS = ("albedo", "blurred_albedo", "albedo_trust", "lighting", "frames", "T_camera_root", "joint_rotations")
ARRAYS += ("landmark_ids", "landmark_corners", "landmark_bary", "landmark_noise", "landmark_offset")


@dataclass(frozen=True)
class Turn:
    """How the chair turned. Azimuths: of the camera about the subject, radians, 0 in front, positive to the subject's left."""

    direction: int
    """+1 when the azimuth grows with time, -1 when it falls."""
    covered: float
    """Radians between the first and the last azimuth, 2 pi for a full turn."""
    widest_gap: float
    """Radians of the widest sector of azimuth without a picture."""


@dataclass(frozen=True)
class FittedTemplate:
    """The personal template with its appearance, and the camera as the fit refined it."""

    template: RiggedTemplate
    """Rest pose, world frame of the format (metres, +z up, facing -y); in the types of `template.npz`."""
    texture: UInt8[Array, "S S 3"] | None
    """Albedo (pictures' own gamma) for the template's texture coordinates; None where it has none."""
    albedo: Float[Array, "V 3"]
    """Colour per vertex under even light, 0 to 1, in the pictures' own gamma."""
    blurred_albedo: Float[Array, "L V 3"]
    """The same as the levels of the tracker's pyramid show it, from most to least blurred."""
    albedo_trust: Float[Array, "V"]
    """How well each vertex's colour was seen, 0 (never) to 1."""
    lighting: Float[Array, "9 3"]
    """Spherical harmonics of the room's light in the camera's axes (x right, y down, z forward), by colour channel."""
    camera: PinholeCamera
    landmark_ids: Int[Array, "n"]
    """Which of the footage's landmarks lie on the template ..."""
    landmark_corners: Int[Array, "n 3"]
    """... within which vertices, ..."""
    landmark_bary: Float[Array, "n 3"]
    """... with which weights, ..."""
    landmark_noise: Float[Array, "n"]
    """... and how uncertain, metres, ..."""
    landmark_offset: Float[Array, "n 3"]
    """... and how far off in the rest pose, metres."""
    frames: Int[Array, "K"]
    """Pictures of the footage that were used, in order of time."""
    T_camera_root: Float[Array, "K 4 4"]
    """From the template's world frame to the camera (OpenCV axes), for those pictures."""
    joint_rotations: Float[Array, "K J 3"]
    """Local rotations in those pictures; the root's is the same in all: how the body leans against the chair's axis."""
    turn: Turn
    report: dict[str, float] = field(default_factory=dict)
    """Figures of each stage by name; the unit stands in the name."""

    @property
    def face_points(self) -> FacePoints:
        """Where the landmarks are."""
        return FacePoints(self.landmark_ids, self.landmark_corners, self.landmark_bary, self.landmark_noise, self.landmark_offset)

    @property
    def azimuth(self) -> Float[Array, "K"]:
        """Azimuth of the camera about the subject in those pictures, radians in (-pi, pi]."""
        return azimuth_of(self.T_camera_root)

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects, atomically."""
        arrays: dict[str, Array] = {"version": np.array(FITTED_VERSION)}
        for entry in fields(self.template):
            value = getattr(self.template, entry.name)
            if value is not None:
                arrays[f"template/{entry.name}"] = np.array(value)
        for name in ARRAYS:
            arrays[name] = getattr(self, name)
        if self.texture is not None:
            arrays["texture"] = self.texture
        notes = {"camera": asdict(self.camera), "turn": asdict(self.turn), "report": self.report}
        arrays["notes"] = np.array(json.dumps(notes))
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> FittedTemplate:
        """Read what `save` wrote. Raises `TrackError`."""
        arrays = read_npz(path, FITTED_VERSION)
        try:
            notes = json.loads(str(arrays["notes"]))
            parts = {k.split("/")[1]: v for k, v in arrays.items() if k.startswith("template/")}
            for name in ("joint_names", "expression_names", "region_names"):
                parts[name] = tuple(str(n) for n in parts[name])
            for name in ("body_model", "license"):
                parts[name] = str(parts[name])
            notes["camera"]["distortion"] = tuple(notes["camera"]["distortion"])
            return cls(
                template=RiggedTemplate(**parts),
                texture=arrays.get("texture"),
                camera=PinholeCamera(**notes["camera"]),
                turn=Turn(**notes["turn"]),
                report=notes["report"],
                **{n: arrays[n] for n in ARRAYS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TrackError(f"{path} is no fitted template ({error}); run the template stage again.") from error


def azimuth_of(T_camera_root: Float[Array, "*n 4 4"]) -> float | Float[Array, "*n"]:
    """Azimuth of the camera about the template's root, as `capture.frames.yaw_deg` has it, in radians in (-pi, pi].

    Taken from the viewing axis, so that it does not depend on where the subject sits in the picture's depth.
    """
    ahead = T_camera_root[..., 2, :3]  # the camera's viewing axis in the template's frame
    return np.arctan2(-ahead[..., 0], ahead[..., 1])


def write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays without pickled objects, atomically."""
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def read_npz(path: Path, version: int) -> dict[str, Array]:
    """All arrays of a file of the given version. Raises `TrackError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise TrackError(f"{path} cannot be read ({error}); run the stage that writes it again.") from error
    if int(arrays.get("version", np.array(-1))) != version:
        raise TrackError(f"{path} was written by another release; run the stage that writes it again.")
    return arrays
