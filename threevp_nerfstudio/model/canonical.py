"""The template in canonical space, and its posed surfaces.

Canonical space is the rest pose with the mouth slightly open, so that the lips do not share space.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.regions import moved_vertices, thin_faces
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import CheckpointError
from threevp_nerfstudio.geometry.own_space import medial_radius
from threevp_nerfstudio.geometry.surface_frames import vertex_triangles
from threevp_nerfstudio.kernels.surface import PosedSurface
from threevp_nerfstudio.model.performance import Performance, PoseState, mesh_vertices

CANONICAL_JAW_DEG = 12.0
CANONICAL_JAW_OPEN = 0.3
FACE_MARGIN = 0.03
"""Metres round the vertices that expression moves, in which blendfields act."""
LARGEST_OWN_SPACE = 0.1
"""Metres; larger than any shell."""
LARGEST_TABLE = 512 << 20
"""Bytes of posed vertices of all frames that are kept."""
OWN_SPACE_SLACK = 0.002
"""Samples are taken up to this many metres beyond the medial radius outside of the surface."""


def moving_channels(template: RiggedTemplate, names: tuple[str, ...] | None) -> Float[Tensor, "E"]:
    """1 for each expression channel that moves the mesh, else 0.

    Raises:
        ValueError: a name that the template does not have.
    """
    available = [str(n) for n in template.expression_names]
    if names is None:
        return torch.ones(len(available))
    unknown = [n for n in names if n not in available]
    if unknown:
        raise ValueError(f"mesh_expressions: the template has no {unknown}; it has {available}")
    return torch.tensor([float(n in names) for n in available])


class CanonicalTemplate(nn.Module):
    """Rig, canonical vertices and the surfaces posed from them."""

    def __init__(self, template: RiggedTemplate, mesh_expressions: tuple[str, ...] | None) -> None:
        super().__init__()
        self.rig = Rig.from_template(template)
        self.register_buffer("moves", moving_channels(template, mesh_expressions), persistent=False)
        start, rows = vertex_triangles(template.faces, len(template.vertices))
        self.register_buffer("row_start", torch.from_numpy(start), persistent=False)
        self.register_buffer("row_faces", torch.from_numpy(rows), persistent=False)
        self.register_buffer("vertices", self._canonical_vertices(template))
        canonical = self.vertices.numpy()
        radius = medial_radius(canonical, vertex_normals(canonical, template.faces), LARGEST_OWN_SPACE)
        own_space = torch.from_numpy(radius + OWN_SPACE_SLACK).float()
        self.register_buffer("own_space", own_space, persistent=False)
        self.register_buffer("thin", torch.from_numpy(thin_faces(template)), persistent=False)
        moved = moved_vertices(template)
        box = np.zeros((2, 3), dtype=np.float32)
        if moved.any():
            face = self.vertices.numpy()[moved]
            box = np.stack([face.min(0) - FACE_MARGIN, face.max(0) + FACE_MARGIN])
        self.register_buffer("face_box", torch.from_numpy(box.astype(np.float32)))
        self._surfaces: dict[tuple[str, int], PosedSurface] = {}
        self._posed: tuple[Performance, Tensor] | None = None

    def _canonical_vertices(self, template: RiggedTemplate) -> Float[Tensor, "V 3"]:
        joints = torch.zeros(1, len(template.joint_names), 3)
        expression = torch.zeros(1, len(template.expression_names))
        jaw = template.jaw_joint
        names = [str(n).lower().replace("_", "") for n in template.expression_names]
        if jaw is not None:
            joints[0, jaw, 0] = math.radians(CANONICAL_JAW_DEG)
        elif "jawopen" in names:
            expression[0, names.index("jawopen")] = CANONICAL_JAW_OPEN
        return self.rig.pose(joints, torch.zeros(1, 3), expression * self.moves)[0]

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        saved = state_dict.get(prefix + "rig.vertices")
        faces = state_dict.get(prefix + "rig.faces")
        own = self.rig.vertices
        same = saved is not None and saved.shape == own.shape and torch.allclose(saved.to(own), own, atol=1e-5)
        if saved is not None and not (same and torch.equal(faces.to(self.rig.faces), self.rig.faces)):
            raise CheckpointError(
                f"the checkpoint was trained on another template ({tuple(saved.shape)[0]} vertices, the capture's "
                f"has {own.shape[0]}{', of another shape' if saved.shape == own.shape else ''}). Point --data at the "
                "capture that it was trained on, or train anew (also after an update that changed the template's teeth)."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def surface(self, slots: int) -> PosedSurface:
        """Scratch surfaces for `slots` poses on the buffers' device, made once."""
        key = (str(self.vertices.device), slots)
        if key not in self._surfaces:
            mesh = (self.vertices, self.rig.faces, self.row_start, self.row_faces)
            self._surfaces[key] = PosedSurface(*mesh, slots, self.own_space, self.thin)
        return self._surfaces[key]

    @torch.no_grad()
    def posed_vertices(self, state: PoseState) -> Float[Tensor, "B V 3"]:
        """The mesh of each pose, in metres, world frame."""
        return mesh_vertices(self.rig, state, self.moves)

    @torch.no_grad()
    def frame_vertices(self, performance: Performance) -> Float[Tensor, "T V 3"] | None:
        """The mesh at each row of a performance's motion, worked out once: training asks for the same poses again and again.
        None where that is too much to keep."""
        rows = len(performance.joint_rotations) if performance.rigged else 0
        if rows == 0 or 12 * rows * len(self.vertices) > LARGEST_TABLE:
            return None
        kept = self._posed
        if kept is None or kept[0] is not performance or kept[1].device != self.vertices.device:
            every = torch.arange(rows, device=self.vertices.device)
            kept = self._posed = (performance, torch.cat([self.posed_vertices(performance.at_rows(p)) for p in every.split(16)]))
        return kept[1]

    @torch.no_grad()
    def pose_frames(self, performance: Performance, frames: Int[Tensor, "S"]) -> PosedSurface:
        """A surface with one slot per frame of a performance; as `pose`, but quicker the second time."""
        table = self.frame_vertices(performance)
        if table is None:
            return self.pose(performance.at_frames(frames))
        surface = self.surface(len(frames))
        surface.update(table[performance.motion_index[frames]])
        return surface

    @torch.no_grad()
    def pose(self, state: PoseState) -> PosedSurface:
        """A surface with one slot per pose of `state`."""
        surface = self.surface(len(state))
        surface.update(self.posed_vertices(state))
        return surface
