"""Small meshes and a small rig for tests."""

from __future__ import annotations

import numpy as np

from threevp_nerfstudio.body.template import RiggedTemplate


def sphere(radius: float = 0.1, rings: int = 12, segments: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float32 and outward faces (F, 3) int32 of a closed sphere."""
    theta = np.linspace(0, np.pi, rings + 1)[1:-1]
    phi = np.arange(segments) / segments * 2 * np.pi
    ring = np.stack(
        [np.outer(np.sin(theta), np.cos(phi)), np.outer(np.sin(theta), np.sin(phi)), np.outer(np.cos(theta), np.ones(segments))],
        -1,
    )
    vertices = np.concatenate([[[0, 0, 1]], ring.reshape(-1, 3), [[0, 0, -1]]]) * radius
    at = lambda r, s: 1 + r * segments + s % segments  # noqa: E731
    faces = []
    for s in range(segments):
        faces.append((0, at(0, s), at(0, s + 1)))
        faces.append((len(vertices) - 1, at(rings - 2, s + 1), at(rings - 2, s)))
        for r in range(rings - 2):
            faces.append((at(r, s), at(r + 1, s), at(r + 1, s + 1)))
            faces.append((at(r, s), at(r + 1, s + 1), at(r, s + 1)))
    return vertices.astype(np.float32), np.array(faces, dtype=np.int32)


def ball_template(expressions: int = 3, seed: int = 0) -> RiggedTemplate:
    """A ball on two joints: the upper half follows the second. Names are ARKit's, so a jaw opens in canonical space."""
    vertices, faces = sphere()
    rng = np.random.default_rng(seed)
    upper = (1 / (1 + np.exp(-vertices[:, 2] / 0.02)))[:, None]
    basis = rng.normal(size=(expressions, 1, 3)) * 0.01 * np.exp(-((vertices - [0, -0.1, 0]) ** 2).sum(-1) / 0.05**2)[None, :, None]
    return RiggedTemplate(
        vertices=vertices,
        faces=faces,
        joint_names=("root", "neck"),
        parents=np.array([-1, 0], dtype=np.int32),
        joints=np.array([[0, 0, -0.1], [0, 0, 0]], dtype=np.float32),
        skin_weights=np.concatenate([1 - upper, upper], 1).astype(np.float32),
        expression_names=("jawOpen", "eyeBlinkLeft", "mouthSmileLeft", *(f"x{i}" for i in range(9)))[:expressions],
        expression_basis=basis.astype(np.float32),
        face_regions=np.zeros(len(faces), dtype=np.uint8),
        region_names=("skin",),
    )
