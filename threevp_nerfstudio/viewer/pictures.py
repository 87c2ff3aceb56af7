"""Pictures of the avatar for the viewer: in small chunks that can be stopped between, with outputs to inspect it by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor

from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.model.field import CanonicalSamples, ThreeVPField
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.model.performance import PoseState

CHUNK = 1 << 12
"""Rays between two looks at whether the picture is still wanted: about 0.1 s on a CPU."""
OUTPUTS = ("rgb", "accumulation", "depth", "normals", "displacement", "blendfield", "training_frame")
FAR = 15.0
"""Metres; depth of pixels that show no subject, so that what stands behind it is seen."""
OPAQUE = 0.5


@dataclass(frozen=True)
class Look:
    """What is wanted of a picture beside colour, opacity and depth."""

    outputs: frozenset[str] = frozenset()
    """Names that are looked at; the others come out blank, so that choosing among them costs nothing."""
    blendfield: int = 0
    """Index of the displacement field of the output `blendfield`."""
    full_mm: float = 5.0
    """Displacement that the heat maps show in their last colour, millimetres."""
    frame: int | None = None
    """Index of the capture's frame of the output `training_frame`."""
    overlay: bool = False
    """Something is drawn on the surface: move the depth behind it a little."""


OVERLAY_SHIFT = 0.03
"""Metres: the template lies a little under hair and clothes."""


class Pictures:
    """Renders one model; `frames` are the capture's, and `read_rgba` decodes one of them."""

    def __init__(
        self, model: ThreeVPModel, frames: Frames, read_rgba: Callable[[int], UInt8[np.ndarray, "h w 4"]]
    ) -> None:
        self.model = model
        self.frames = frames
        self.read_rgba = read_rgba
        self._read: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def render(
        self,
        camera: Cameras,
        state: PoseState,
        look: Look,
        between: Callable[[], None] = lambda: None,
        key: object = None,
    ) -> dict[str, Float[Tensor, "h w _"]]:
        """All OUTPUTS of one camera. `between` is called between chunks, and may raise to stop.

        A `key` names the state: the next picture with the same one, from another camera, is not posed anew.
        """
        model = self.model
        bundle = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
        h, w = bundle.origins.shape[:2]
        origins, directions = bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3)
        staged = model.stage(state, key)
        inspect = self._inspection(look)
        parts = []
        for i in range(0, len(origins), CHUNK):
            between()
            parts.append(model.render_rays(origins[i : i + CHUNK], directions[i : i + CHUNK], staged, inspect))
        out = {name: torch.cat([p[name] for p in parts]).view(h, w, -1) for name in parts[0]}
        self._finish(out, look, bundle.origins, bundle.directions)
        return {name: out[name] for name in OUTPUTS}

    def _inspection(self, look: Look) -> Callable[..., dict[str, Tensor]] | None:
        wanted = look.outputs & {"displacement", "blendfield"}
        if not wanted:
            return None

        def inspect(
            field: ThreeVPField, samples: CanonicalSamples, displacement: Tensor | None
        ) -> dict[str, Float[Tensor, "N"]]:
            found = {}
            if "displacement" in wanted:
                nothing = samples.position.new_zeros(len(samples.position))
                found["displacement"] = nothing if displacement is None else displacement.norm(dim=-1)
            if "blendfield" in wanted:
                found["blendfield"] = field_share(field, samples, look.blendfield)
            return found

        return inspect

    def _finish(self, out: dict[str, Tensor], look: Look, origins: Tensor, directions: Tensor) -> None:
        """Derived outputs, and blanks for those that nobody looks at."""
        opaque = out["accumulation"] > OPAQUE
        blank = torch.ones(1, device=opaque.device).expand(*opaque.shape[:2], 3)
        for name in ("displacement", "blendfield"):
            out[name] = heat(out["rgb"], out["accumulation"], out[name], look.full_mm) if name in out else blank
        out["normals"] = blank
        if "normals" in look.outputs:
            points = origins + directions * smooth(out["depth"], out["accumulation"])
            out["normals"] = torch.where(opaque, 0.5 + 0.5 * normals(points, directions), blank)
        out["training_frame"] = blank
        if "training_frame" in look.outputs and look.frame is not None:
            out["training_frame"] = seen_by_frame(self.frames, look.frame, self._picture(look.frame), directions)
        shift = OVERLAY_SHIFT if look.overlay else 0.0
        behind = float(out["depth"].max()) if "depth" in look.outputs else FAR
        out["depth"] = torch.where(opaque, out["depth"] + shift, torch.full_like(out["depth"], behind))

    def _picture(self, frame: int) -> Float[Tensor, "h w 3"]:
        """A frame over white, on the model's device; the last one is kept."""
        if self._read is None or self._read[0] != frame:
            rgba = torch.from_numpy(self.read_rgba(frame)).float().to(self.model.device) / 255.0
            self._read = (frame, rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:])
        return self._read[1]


def field_share(field: ThreeVPField, samples: CanonicalSamples, index: int) -> Float[Tensor, "N"]:
    """Size in metres of what one blendfield adds to the displacement of each sample."""
    size = samples.position.new_zeros(len(samples.position))
    if field.blendfields is None or not field.blendfields_enabled or index >= field.blendfields.num_fields:
        return size
    window = field.face_window(samples.position)
    inside = (window > 0).nonzero().squeeze(-1)
    coefficient = field.blendfields.mapping(samples.conditioning)[samples.frame[inside], index]
    one = field.blendfields.fields(field.unit(samples.position[inside]))[:, index]
    return size.index_copy(0, inside, (coefficient * window[inside]).abs() * one.norm(dim=-1))


def coefficients(model: ThreeVPModel, state: PoseState) -> tuple[list[str], Float[np.ndarray, "K"]]:
    """What drives the blendfields, by name: their coefficients where each has a channel of its own, else the channels, which
    say more than the coefficients of nameless mixtures. Empty where there are no blendfields."""
    blendfields = model.field.blendfields
    if blendfields is None:
        return [], np.zeros(0)
    names = model.performance.conditioning_names
    with torch.no_grad():
        values = model.condition(state)
        if field_names(model) == list(names):
            values = blendfields.mapping(values)
    return list(names), values[0].cpu().numpy()


def field_names(model: ThreeVPModel) -> list[str]:
    """A blendfield has its channel's name where there is one for each channel, else its number."""
    blendfields = model.field.blendfields
    if blendfields is None:
        return []
    names = model.performance.conditioning_names
    own = blendfields.num_fields == len(names) and blendfields.mapping.kind == "linear"
    return list(names) if own else [f"blendfield {k}" for k in range(blendfields.num_fields)]


def heat(
    rgb: Float[Tensor, "h w 3"], alpha: Float[Tensor, "h w 1"], metres: Float[Tensor, "h w 1"], full_mm: float
) -> Float[Tensor, "h w 3"]:
    """The avatar in grey, coloured by a size; `full_mm` and more is the last colour."""
    grey = rgb.mean(-1, keepdim=True).expand(-1, -1, 3)
    level = (metres * 1000.0 / full_mm).clamp(0.0, 1.0)
    colour = apply_float_colormap(level, "turbo")
    strength = (level * 8.0).clamp(0.0, 0.75) * alpha
    return torch.lerp(grey, colour, strength)


def smooth(depth: Float[Tensor, "h w 1"], alpha: Float[Tensor, "h w 1"], passes: int = 3) -> Float[Tensor, "h w 1"]:
    """Depth without the steps of its samples: averaged over the subject's pixels nearby."""
    weight = alpha.permute(2, 0, 1)[None]
    value = depth.permute(2, 0, 1)[None]
    size = 2 * max(round(depth.shape[0] / 200), 1) + 1
    for _ in range(passes):
        total = F.avg_pool2d(weight, size, 1, size // 2)
        value = F.avg_pool2d(value * weight, size, 1, size // 2) / total.clamp_min(1e-6)
    return value[0].permute(1, 2, 0)


def normals(points: Float[Tensor, "h w 3"], directions: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Unit normals of a depth picture's surface, towards the camera, by finite differences over neighbouring pixels."""
    padded = F.pad(points.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    n = F.normalize(torch.linalg.cross(across, down, dim=0), dim=0).permute(1, 2, 0)
    return torch.where((n * directions).sum(-1, keepdim=True) > 0, -n, n)


def seen_by_frame(
    frames: Frames, frame: int, picture: Float[Tensor, "H W 3"], directions: Float[Tensor, "h w 3"]
) -> Float[Tensor, "h w 3"]:
    """A frame's picture along directions from its own camera; white where it shows nothing."""
    device = directions.device
    R = torch.from_numpy(frames.camera_to_world[frame, :3, :3]).to(device, torch.float32)
    local = directions @ R  # camera axes: x right, y up, looks along -z
    depth = (-local[..., 2:]).clamp_min(1e-6)
    xy = torch.cat([local[..., :1], -local[..., 1:2]], -1) / depth
    pixel = _distort(xy, frames.distortion[frame]) * _tensor(frames.focal[frame], device)
    pixel = pixel + _tensor(frames.principal_point[frame], device)
    grid = 2.0 * pixel / _tensor(frames.size[frame], device) - 1.0
    image = picture.permute(2, 0, 1)[None]
    seen = F.grid_sample(image, grid[None], align_corners=False, padding_mode="border")[0].permute(1, 2, 0)
    inside = (grid.abs() <= 1.0).all(-1, keepdim=True) & (local[..., 2:] < 0)
    return torch.where(inside, seen, torch.ones_like(seen))


def _distort(xy: Float[Tensor, "h w 2"], k: Float[np.ndarray, "4"]) -> Float[Tensor, "h w 2"]:
    """OpenCV's k1, k2, p1, p2."""
    k1, k2, p1, p2 = (float(v) for v in k)
    x, y = xy[..., :1], xy[..., 1:]
    r2 = x * x + y * y
    radial = 1.0 + k1 * r2 + k2 * r2 * r2
    return torch.cat(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )


def _tensor(values: Iterable, device: torch.device) -> Tensor:
    return torch.tensor([float(v) for v in values], device=device)
