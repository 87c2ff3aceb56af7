"""Measure where MediaPipe's face mesh lies on Anny: how `threevp_nerfstudio/tracking/face_points.npz` was made.

    python examples/measure_face_points.py --output face_points.npz

Renders Anny at several identities, dressed, from five sides, finds the landmarks in those pictures, casts them back onto
the mesh, and keeps the median place of each at the default identity with the median distance from it. Needs mediapipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from threevp_nerfstudio.body.anny_body import anny_body
from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.demo_look import dress
from threevp_nerfstudio.capture.demo_script import Shot
from threevp_nerfstudio.capture.synthetic import Renderer
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

SIZE, FOV, SHOWN = 512, np.radians(17.0), 0.30
VIEWS_DEG = (-40, -20, 0, 20, 40)
SQUARE = 0.35
"""Least cosine between a surface and the ray of a landmark: beyond, the landmark may lie anywhere on the edge."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("face_points.npz"))
    parser.add_argument("--people", type=int, default=14)
    options = parser.parse_args()
    body, rng = crop(anny_body(), 0.33), np.random.default_rng(0)
    default, _ = body.rest(body.identity.default)
    hits: list[list[np.ndarray]] = [[] for _ in range(478)]
    for person in range(options.people):
        look_at(body.at(identity(body, person, rng)), person, default, rng, hits)
        print(f"person {person + 1}/{options.people}")
    points, spread = np.full((478, 3), np.nan), np.full(478, np.nan)
    for k, seen in enumerate(hits):
        middle = np.median(seen, axis=0)
        off = np.linalg.norm(np.array(seen) - middle, axis=1)
        points[k] = np.median(np.array(seen)[off < np.quantile(off, 0.7)], axis=0)
        spread[k] = np.median(off)
    np.savez_compressed(options.output, points=points.astype(np.float32), spread=spread.astype(np.float32))


def identity(body: BodyModel, person: int, rng: np.random.Generator) -> np.ndarray:
    """The default for the first, then random ones."""
    if person == 0:
        return body.identity.default
    values = body.identity.default + 0.8 * rng.normal(size=len(body.values)) * body.identity.spread
    values[body.identity.names.index("age")] = rng.uniform(0.5, 0.9)
    return np.clip(values, body.identity.lower, body.identity.upper)


def look_at(body: BodyModel, seed: int, default: np.ndarray, rng: np.random.Generator, hits: list[list[np.ndarray]]) -> None:
    """Add where the landmarks of one person's pictures lie, as points of the default face."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    template = stored(body.template)
    subject = dress(template, seed)
    focal = SIZE / (2 * np.tan(FOV / 2))
    renderer, mesh = Renderer(subject, SIZE, focal, 1), MeshQuery(template.vertices, template.faces)
    still = Motion(
        times=np.zeros(1),
        joint_rotations=np.zeros((1, len(template.joint_names), 3), np.float32),
        root_translation=np.zeros((1, 3), np.float32),
        expression=np.zeros((1, len(template.expression_names)), np.float32),
    )
    target = np.array([0.0, 0.0, subject.anatomy.mouth[2] + 0.03])
    distance = SHOWN * subject.anatomy.scale / (2 * np.tan(FOV / 2))
    with FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True) as detector:
        for view in VIEWS_DEG:
            camera = looking(np.radians(view + 3 * rng.normal()), np.radians(5 * rng.normal()), target, distance)
            rgba = renderer.render(still, 0, Shot("a", "train", "static", 0.0, 0.0, camera)).astype(float)
            alpha = rgba[..., 3:] / 255
            found = detector.process((rgba[..., :3] * alpha + 150 * (1 - alpha)).astype(np.uint8)).multi_face_landmarks
            if not found:
                continue
            xy = SIZE * np.array([(p.x, p.y) for p in found[0].landmark])
            rays = np.stack([(xy[:, 0] - SIZE / 2) / focal, (SIZE / 2 - xy[:, 1]) / focal, -np.ones(len(xy))], axis=1)
            rays = rays @ camera[:3, :3].T
            hit = mesh.cast(np.tile(camera[:3, 3], (len(xy), 1)), rays)
            corners = template.vertices[template.faces[np.maximum(hit.face, 0)]]
            normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            cosine = -(normal * rays).sum(1) / np.linalg.norm(normal, axis=1) / np.linalg.norm(rays, axis=1)
            on_default = mesh.interpolate_at(np.maximum(hit.face, 0), hit.bary, default)
            for k in np.flatnonzero(hit.found & (cosine > SQUARE)):
                hits[k].append(on_default[k])


def looking(azimuth: float, elevation: float, target: np.ndarray, distance: float) -> np.ndarray:
    """Camera-to-world (OpenGL axes) that looks at `target`."""
    back = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    T[:3, 3] = target + distance * back
    return T


if __name__ == "__main__":
    main()
