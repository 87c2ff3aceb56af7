"""A scan of a person: read from a file, cleaned, and every repair said aloud."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.mesh import boundary_loops, components, edges_of, face_normals
from threevp_nerfstudio.errors import TemplateError

SUFFIXES = (".obj", ".ply", ".glb", ".gltf", ".stl")
SMALLEST_PIECE = 0.02
"""Pieces with a smaller share of the scan's area are floaters, and dropped."""
FEWEST_FACES = 500


@dataclass(frozen=True)
class Scan:
    """A triangle mesh in some frame and unit, with colours per vertex (0..255) or a texture, or neither."""

    vertices: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    colours: Float[Array, "V 3"] | None = None
    corner_uvs: Float[Array, "F 3 2"] | None = None
    texture: Array | None = None  # (H, W, 3) uint8
    notes: tuple[str, ...] = field(default=())
    """What was found and what was repaired."""
    stated_frame: bool = False
    """The file format itself says metres and +y up (glTF)."""

    def moved(self, vertices: Float[Array, "V 3"]) -> Scan:
        return Scan(vertices, self.faces, self.colours, self.corner_uvs, self.texture, self.notes, self.stated_frame)

    def colour_at(self, face: Int[Array, "N"], bary: Float[Array, "N 3"]) -> Float[Array, "N 3"] | None:
        """Colours (0..255) at points of faces, or None where the scan has no colour."""
        if self.texture is not None and self.corner_uvs is not None:
            uv = np.einsum("nk,nkc->nc", bary, self.corner_uvs[face]) % 1.0
            H, W = self.texture.shape[:2]
            x = np.minimum((uv[:, 0] * W).astype(int), W - 1)
            y = np.minimum(((1 - uv[:, 1]) * H).astype(int), H - 1)
            return self.texture[y, x, :3].astype(np.float64)
        if self.colours is not None:
            return np.einsum("nk,nkc->nc", bary, self.colours[self.faces[face]])
        return None


def load_scan(path: Path) -> Scan:
    """Read .obj, .ply, .glb or .stl. Raises `TemplateError` for what is no surface of triangles."""
    import trimesh

    if path.suffix.lower() not in SUFFIXES:
        raise TemplateError(f"{path}: scans are read from {', '.join(SUFFIXES)} files; export the mesh as one of these.")
    if not path.is_file():
        raise TemplateError(f"{path} does not exist.")
    try:
        loaded = trimesh.load(path, process=False)
        if isinstance(loaded, trimesh.Scene):
            pieces = [g for g in loaded.dump() if isinstance(g, trimesh.Trimesh)]
            loaded = trimesh.util.concatenate(pieces) if pieces else trimesh.Trimesh()
    except Exception as error:  # trimesh raises what its many parsers raise
        raise TemplateError(f"{path} cannot be read as a mesh ({type(error).__name__}: {error}); export it again.") from error
    faces = np.asarray(getattr(loaded, "faces", np.zeros((0, 3))))
    if len(loaded.vertices) and not len(faces):
        raise TemplateError(
            f"{path} is a cloud of {len(loaded.vertices)} points without triangles; make a surface first "
            "(Poisson reconstruction in MeshLab or Open3D), and export that."
        )
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(loaded.vertices):
        raise TemplateError(
            f"{path} is damaged: its triangles name vertices {faces.min()} to {faces.max()}, but it has {len(loaded.vertices)}; "
            "export it again."
        )
    colours, corner_uvs, texture = _appearance(loaded)
    notes = ()
    if texture is None and getattr(loaded.visual, "uv", None) is not None:
        notes = ("it has texture coordinates, but its picture was not found beside it: the template gets no texture from it",)
    scan = Scan(
        np.asarray(loaded.vertices, dtype=np.float64),
        faces.astype(np.int64),
        colours,
        corner_uvs,
        texture,
        notes,
        stated_frame=path.suffix.lower() in (".glb", ".gltf"),
    )
    return clean(scan, str(path))


def clean(scan: Scan, name: str) -> Scan:
    """Drop what is broken and floats, join what was split, orient outwards; `notes` lists it all.

    Raises `TemplateError` where no usable surface is left.
    """
    notes = list(scan.notes)
    v, f = scan.vertices, scan.faces
    finite = np.isfinite(v).all(1)
    good = finite[f].all(1) if len(f) else np.zeros(0, dtype=bool)
    if not good.all():
        notes.append(f"{int((~good).sum())} triangles with NaN or infinite corners were dropped")
    v = np.where(finite[:, None], v, 0.0)
    joined, index = _join(v)
    f = index[f]
    if len(joined) < len(v):
        notes.append(f"{len(v) - len(joined)} vertices in the same place were joined")
    v = v[joined]
    colours = None if scan.colours is None else scan.colours[joined]
    area = np.linalg.norm(face_normals(v, f), axis=1) if len(f) else np.zeros(0)
    flat = good & ((f[:, 0] == f[:, 1]) | (f[:, 1] == f[:, 2]) | (f[:, 2] == f[:, 0]) | (area == 0)) if len(f) else good
    twin = np.ones(len(f), dtype=bool)
    if len(f):
        twin[np.unique(np.sort(f, axis=1), axis=0, return_index=True)[1]] = False
    for what, mask in (("without area", flat), ("that repeat another", twin & good & ~flat)):
        if mask.any():
            notes.append(f"{int(mask.sum())} triangles {what} were dropped")
    keep = good & ~flat & ~twin
    if keep.sum() < FEWEST_FACES:
        raise TemplateError(
            f"{name} has {int(keep.sum())} usable triangles of {len(f)}; a scan of a head has thousands. "
            "Was the right object exported, and triangulated?"
        )
    keep &= _large_pieces(f, keep, area, len(v), notes)
    result = _select(Scan(v, f, colours, scan.corner_uvs, scan.texture, stated_frame=scan.stated_frame), keep)
    result = _oriented(result, notes)
    notes += _open_and_branching(result)
    return Scan(**{**result.__dict__, "notes": tuple(notes)})


def manifold_part(scan: Scan) -> tuple[Scan, int]:
    """The scan without the triangles by which edges have more than two; how many were dropped."""
    f = scan.faces
    _, index = edges_of(f)
    area = np.linalg.norm(face_normals(scan.vertices, f), axis=1)
    order = np.argsort(-area)
    keep = np.ones(len(f), dtype=bool)
    crowded = np.isin(index, np.flatnonzero(np.bincount(index.reshape(-1)) > 2)).any(1)
    count: dict[int, int] = {}
    for face in order[crowded[order]]:
        edges = [int(e) for e in index[face]]
        if any(count.get(e, 0) >= 2 for e in edges):
            keep[face] = False
            continue
        for e in edges:
            count[e] = count.get(e, 0) + 1
    return _select(scan, keep), int((~keep).sum())


def _appearance(mesh) -> tuple[Array | None, Array | None, Array | None]:
    """Vertex colours, texture coordinates of corners, and the texture of a trimesh object, where it has them."""
    visual = mesh.visual
    if getattr(visual, "kind", None) == "texture" and getattr(visual, "uv", None) is not None:
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None:
            uv = np.asarray(visual.uv, dtype=np.float64)[np.asarray(mesh.faces)]
            return None, uv, np.asarray(image.convert("RGB"))
    if getattr(visual, "kind", None) == "vertex":
        return np.asarray(visual.vertex_colors, dtype=np.float64)[:, :3], None, None
    return None, None, None


def _join(v: Float[Array, "V 3"]) -> tuple[Array, Array]:
    """Representatives of vertices in the same place, and for each vertex its representative's rank."""
    _, first, inverse = np.unique(v, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # vertices keep their order
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def _large_pieces(f: Array, keep: Array, area: Array, V: int, notes: list[str]) -> Array:
    piece = components(f[keep], V)[f[:, 0]]
    total = np.bincount(piece[keep], weights=area[keep])
    share = total / total.sum()
    small = (share < SMALLEST_PIECE)[piece] & keep
    if small.any():
        pieces = len(np.unique(piece[small]))
        notes.append(f"{pieces} pieces of less than {SMALLEST_PIECE:.0%} of the area were dropped ({int(small.sum())} triangles)")
    large = int((share >= SMALLEST_PIECE).sum())
    if large > 1:
        shares = ", ".join(f"{s:.0%}" for s in sorted(share[share >= SMALLEST_PIECE], reverse=True))
        notes.append(f"{large} separate pieces are kept ({shares} of the area); delete what is not the person")
    return ~small


def _select(scan: Scan, keep: Array) -> Scan:
    used, index = np.unique(scan.faces[keep], return_inverse=True)
    return Scan(
        scan.vertices[used],
        index.reshape(-1, 3).astype(np.int64),
        None if scan.colours is None else scan.colours[used],
        None if scan.corner_uvs is None else scan.corner_uvs[keep],
        scan.texture,
        scan.notes,
        scan.stated_frame,
    )


def _oriented(scan: Scan, notes: list[str]) -> Scan:
    """Triangles counter-clockwise seen from outside."""
    import trimesh

    mesh = trimesh.Trimesh(scan.vertices, scan.faces, process=False)
    f, uvs = scan.faces, scan.corner_uvs
    if not mesh.is_winding_consistent:
        before = f.copy()
        trimesh.repair.fix_winding(mesh)
        after = np.asarray(mesh.faces, dtype=np.int64)
        changed = int((before != after).any(1).sum())
        notes.append(f"the winding of {changed} triangles disagreed with their neighbours' and was reversed")
        if uvs is not None:
            uvs = np.stack([np.take_along_axis(uvs[..., c], _order(before, after), 1) for c in range(2)], -1)
        f = after
    centre = scan.vertices.mean(0)
    corners = scan.vertices[f]
    outward = (face_normals(scan.vertices, f) * (corners.mean(1) - centre)).sum()
    if outward < 0:
        notes.append("the triangles faced inwards and were turned round")
        f = f[:, ::-1]
        uvs = None if uvs is None else uvs[:, ::-1]
    return Scan(scan.vertices, np.ascontiguousarray(f), scan.colours, uvs, scan.texture, scan.notes, scan.stated_frame)


def _order(before: Array, after: Array) -> Array:
    """For each corner of `after`, the corner of `before` with the same vertex."""
    return (after[:, :, None] == before[:, None, :]).argmax(2)


def _open_and_branching(scan: Scan) -> list[str]:
    _, index = edges_of(scan.faces)
    count = np.bincount(index.reshape(-1))
    notes = []
    holes = len(boundary_loops(scan.faces)) if (count == 1).any() else 0
    if holes:
        notes.append(f"{holes} holes or open borders: there the body model's own shape is kept, smoothly joined")
    branching = int((count > 2).sum())
    if branching:
        notes.append(
            f"{branching} edges with more than two triangles (non-manifold): dropped from the output where the scan's "
            "own mesh is kept"
        )
    return notes
