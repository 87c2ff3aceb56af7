"""Region labels of SMPL-X: from a vertex part segmentation where there is one, else from skin weights and landmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import region_index
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

PART_WORDS = (
    ("eyes", ("eyeball", "lefteye", "righteye")),
    ("neck", ("neck",)),
    ("scalp", ("head",)),
    ("arms", ("arm", "hand")),
    ("torso", ("spine", "shoulder", "hips", "leg", "foot", "toe")),
)
"""Region -> parts of its names in a part file, or of joint names; the first that matches counts."""
JOINT_REGIONS = (
    ("eyes", ("eye",)),
    ("scalp", ("head", "jaw")),
    ("neck", ("neck",)),
    ("arms", ("left_shoulder", "right_shoulder", "elbow", "wrist", "index", "middle", "pinky", "ring", "thumb")),
)
LIP_MARGIN = 0.005
LID_MARGIN = 0.008
EYE_ROWS = (slice(19, 25), slice(25, 31))
MOUTH_ROWS = slice(31, 51)
BROW_ROWS = slice(0, 10)


def label_faces(
    template: RiggedTemplate, landmarks: Float[Array, "51 3"], segmentation: Path | None
) -> UInt8[Array, "F"]:
    """Region of each face of the mean shape. Raises `TemplateError` for a part file that does not fit."""
    vertex = _by_joint(template) if segmentation is None else _by_file(template, segmentation)
    head = vertex == region_index("scalp")
    v = template.vertices
    brows, mouth = landmarks[BROW_ROWS], landmarks[MOUTH_ROWS]
    eyes = np.concatenate([landmarks[rows] for rows in EYE_ROWS]).mean(0)
    front = (v[:, 1] < eyes[1] + 0.06) & (v[:, 2] < brows[:, 2].mean() + 0.05)
    front |= (v[:, 1] < eyes[1] + 0.10) & (v[:, 2] < eyes[2] - 0.02)
    label = vertex.copy()
    label[head & front] = region_index("face")
    label[head & _ears(v, head, landmarks)] = region_index("ears")
    for rows in EYE_ROWS:
        label[head & _near(v, landmarks[rows], LID_MARGIN)] = region_index("eyelids")
    label[head & _near(v, mouth, LIP_MARGIN)] = region_index("lips")
    inner = (v[:, 0] > mouth[:, 0].min()) & (v[:, 0] < mouth[:, 0].max())
    inner &= np.abs(v[:, 2] - mouth[:, 2].mean()) < 0.02
    inner &= (v[:, 1] > mouth[:, 1].min() + 0.012) & (v[:, 1] < mouth[:, 1].min() + 0.06)
    label[head & inner & _hidden(template)] = region_index("mouth_interior")
    corner = label[template.faces]
    middle = np.sort(corner, axis=1)[:, 1]  # the label of two corners at least, where two agree
    return middle.astype(np.uint8)


def _hidden(template: RiggedTemplate) -> Bool[Array, "V"]:
    """Vertices that the surface itself hides from the front."""
    start = template.vertices + np.array([0.0, -1e-3, 0.0])
    ahead = np.tile([0.0, -1.0, 0.0], (len(start), 1))
    return MeshQuery(template.vertices, template.faces).cast(start, ahead).found


def _ears(v: Float[Array, "V 3"], head: Bool[Array, "V"], landmarks: Float[Array, "51 3"]) -> Bool[Array, "V"]:
    """The outermost parts of the head between nose and brows, behind the eyes."""
    between = (v[:, 2] > landmarks[16, 2] - 0.02) & (v[:, 2] < landmarks[BROW_ROWS, 2].max() + 0.01)
    behind = v[:, 1] > landmarks[EYE_ROWS[0], 1].mean() + 0.04
    side = np.abs(v[:, 0] - landmarks[:, 0].mean())
    chosen = head & between & behind
    return chosen & (side > (0.88 * side[chosen].max() if chosen.any() else np.inf))


def _near(v: Float[Array, "V 3"], points: Float[Array, "L 3"], margin: float) -> Bool[Array, "V"]:
    """Vertices within `margin` of some landmark or of the middle between two neighbours."""
    middles = (points + np.roll(points, -1, axis=0)) / 2
    close = np.linalg.norm(v[:, None] - np.concatenate([points, middles]), axis=-1).min(1)
    return close < margin


def _by_joint(template: RiggedTemplate) -> UInt8[Array, "V"]:
    kind = [
        region_index(next((r for r, words in JOINT_REGIONS if any(w in name for w in words)), "torso"))
        for name in template.joint_names
    ]
    return np.array(kind, dtype=np.uint8)[template.skin_weights.argmax(1)]


def _by_file(template: RiggedTemplate, path: Path) -> UInt8[Array, "V"]:
    try:
        parts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TemplateError(f"{path} cannot be read as a vertex part file ({error}); it maps part names to vertex lists.") from error
    if not isinstance(parts, dict) or not all(isinstance(p, list) for p in parts.values()):
        raise TemplateError(f"{path} is no vertex part file: a JSON object of part name -> list of vertices is expected.")
    label = _by_joint(template)
    V = len(label)
    for name, members in parts.items():
        index = np.asarray(members)
        if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= V):
            raise TemplateError(f"{path}: part {name!r} names vertices outside 0 to {V - 1}; it belongs to another model.")
        region = next((r for r, words in PART_WORDS if any(w in name.lower() for w in words)), None)
        if region is not None and index.size:
            label[index] = region_index(region)
    return label
