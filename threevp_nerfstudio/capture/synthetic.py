"""`threevp demo`: a synthetic capture of a subject that is known exactly.

The subject is a procedural person, or any rigged template, with hair and clothes that its template does not have, under
a light that stands still in the room while the chair turns. Cameras, motion and template are exact; `test` frames are
seen by cameras, and show expressions, that training does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image
from rich.progress import track

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import FORMAT_VERSION, Motion
from threevp_nerfstudio.capture.cameras import pixel_directions
from threevp_nerfstudio.capture.capture import load_capture, load_motion, load_template
from threevp_nerfstudio.capture.demo_look import Subject, albedo, dress, shade, vertex_normals
from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.capture.demo_script import Shot, play, shots
from threevp_nerfstudio.errors import CaptureError
from threevp_nerfstudio.kernels.raycast import RayMesh

FRAME_HEIGHT = 0.50
"""Metres that a picture shows of a subject of usual size, at the distance of the head."""
NO_DISTORTION = np.zeros(4)


@dataclass
class Demo:
    """Generate a synthetic capture."""

    output: Path
    """Folder to write; it must be empty or absent."""
    size: int = 256
    """Width and height of the pictures, pixels."""
    static_frames: int = 120
    """Frames of the full turn with a neutral face."""
    dynamic_frames: int = 180
    """Frames with expressions; two blocks of a tenth each become `val`."""
    test_frames: int = 24
    """Frames from novel cameras (above, below, closer) with expressions of their own."""
    fps: float = 30.0
    """Frames per second."""
    fov_deg: float = 17.0
    """Field of view of the pictures. The camera stands where the head and the shoulders fill them."""
    seed: int = 0
    """Of expressions, head motion, cameras and hair."""
    columns: int = 88
    """Vertices round each slice of the procedural person: lower is faster and coarser."""
    supersampling: int = 2
    """Rays per pixel along each axis."""
    template: Path | None = None
    """template.npz of another subject, in place of the procedural person."""
    motion: Path | None = None
    """motion.npz for that template: its expressions and poses become the dynamic part."""
    quiet: bool = False
    """No progress bar."""

    def main(self) -> None:
        generate(self)
        print(f"{self.output}: {self.static_frames + self.dynamic_frames + self.test_frames} frames, {self.size} px")


def generate(config: Demo) -> Path:
    """Write the capture, check it by loading it, and return its folder. Raises `CaptureError`."""
    _check(config)
    template = demo_template(config.columns) if config.template is None else load_template(config.template)
    given = None if config.motion is None else load_motion(config.motion, template)
    if given is not None and not given.rigged:
        raise CaptureError(f"{config.motion} has explicit vertices; the demo needs the motion of a rig.")
    counts = (config.static_frames, config.dynamic_frames, config.test_frames)
    motion = play(template, *counts, config.fps, config.seed, given)
    subject = dress(template, config.seed)
    anatomy = subject.anatomy
    distance = FRAME_HEIGHT * anatomy.scale / (2 * np.tan(np.radians(config.fov_deg) / 2))
    script = shots(*counts, config.fps, np.array([0.0, 0.0, anatomy.mouth[2]]), distance, config.seed)
    (config.output / "images").mkdir(parents=True, exist_ok=True)
    template.save(config.output / "template.npz")
    motion.save(config.output / "motion.npz")
    (config.output / "transforms.json").write_text(json.dumps(_document(config, script), indent=1) + "\n")
    renderer = Renderer(subject, config.size, focal_length(config), config.supersampling)
    for row in track(range(len(script)), "Rendering", disable=config.quiet):
        picture = renderer.render(motion, row, script[row])
        Image.fromarray(picture).save(config.output / "images" / f"{script[row].name}.png")
    load_capture(config.output)
    return config.output


def focal_length(config: Demo) -> float:
    """In pixels."""
    return config.size / (2 * np.tan(np.radians(config.fov_deg) / 2))


class Renderer:
    """Pictures of a dressed subject: rays cast on Warp, colours and light in numpy."""

    def __init__(self, subject: Subject, size: int, focal: float, supersampling: int = 2) -> None:
        self.subject, self.size, self.supersampling = subject, size, supersampling
        self.rig = Rig.from_template(subject.template)
        self.mesh = RayMesh(self.rig.vertices, self.rig.faces)
        n = size * supersampling
        K = np.array([[focal * supersampling, 0, n / 2], [0, focal * supersampling, n / 2], [0, 0, 1]])
        self.directions = torch.as_tensor(pixel_directions(K, NO_DISTORTION, n, n).reshape(-1, 3), dtype=torch.float32)

    def render(self, motion: Motion, row: int, shot: Shot) -> UInt8[Array, "h w 4"]:
        """Row `row` of the motion as `shot` sees it; sRGB with straight alpha."""
        rows = (motion.joint_rotations[[row]], motion.root_translation[[row]], motion.expression[[row]])
        posed = self.rig.pose(*(torch.as_tensor(part) for part in rows))[0]
        self.mesh.update(posed)
        camera = shot.camera_to_world
        hits = self.mesh.cast(torch.as_tensor(camera), self.directions)
        found = hits.found.numpy()
        face, barycentric = hits.face.numpy()[found], hits.barycentric.numpy()[found].astype(np.float64)
        rgb = self._colours(posed.numpy().astype(np.float64), face, barycentric, camera, shot.room_to_world)
        n, s = self.size, self.supersampling
        premultiplied = np.zeros((n * n * s * s, 4))
        premultiplied[found] = np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1)
        premultiplied = premultiplied.reshape(n, s, n, s, 4).mean((1, 3))
        straight = premultiplied[..., :3] / premultiplied[..., 3:].clip(1e-9)
        return (np.concatenate([straight, premultiplied[..., 3:]], axis=-1) * 255).round().astype(np.uint8)

    def _colours(
        self,
        posed: Float[Array, "V 3"],
        face: Array,
        barycentric: Float[Array, "N 3"],
        camera_to_world: Float[Array, "4 4"],
        room_to_world: Float[Array, "4 4"],
    ) -> Float[Array, "N 3"]:
        subject, template = self.subject, self.subject.template
        corners = template.faces[face]

        def at_hits(values: Array) -> Array:
            return np.einsum("nk,nk...->n...", barycentric, values[corners])

        normals = at_hits(vertex_normals(posed, template.faces))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-9)
        to_camera = camera_to_world[:3, 3] - at_hits(posed)
        to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
        hair, cloth = at_hits(subject.hair), at_hits(subject.cloth)
        regions = template.face_regions[face].astype(np.int64)
        colour = albedo(at_hits(subject.bare), regions, template.region_names, hair, cloth, subject.anatomy)
        gloss = 0.06 + 0.05 * hair - 0.05 * cloth
        return shade(colour, normals, to_camera, gloss, room_to_world[:3, :3])


def _check(config: Demo) -> None:
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise CaptureError(f"{config.output} is there already and not an empty folder; name another --output.")
    if config.motion is not None and config.template is None:
        raise CaptureError(f"--motion {config.motion} needs the --template that it moves.")
    if min(config.static_frames, config.dynamic_frames, config.test_frames) < 0 or config.static_frames < 1:
        raise CaptureError("frame counts are not negative, and the static part has at least one frame.")
    if config.size < 8 or config.supersampling < 1 or config.columns < 24:
        raise CaptureError("the demo needs --size of at least 8, --supersampling 1 and --columns 24.")
    if not 2 <= config.fov_deg <= 90:
        raise CaptureError(f"--fov-deg is {config.fov_deg:g}; 2 to 90 degrees make sense.")


def _document(config: Demo, script: list[Shot]) -> dict:
    focal = focal_length(config)
    return {
        "threevp_version": FORMAT_VERSION,
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": config.size / 2,
        "cy": config.size / 2,
        "w": config.size,
        "h": config.size,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "fps": config.fps,
        "frames": [
            {
                "file_path": f"images/{shot.name}.png",
                "transform_matrix": shot.camera_to_world.tolist(),
                "room_matrix": shot.room_to_world.tolist(),
                "time": shot.time,
                "motion_index": row,
                "split": shot.split,
                "sequence": shot.sequence,
            }
            for row, shot in enumerate(script)
        ],
    }
