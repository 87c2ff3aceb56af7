"""What is wrong with a scan's file is said, and what is repaired is said too."""

import numpy as np
import pytest
import trimesh

from threevp_nerfstudio.body.scan import Scan, clean, load_scan, manifold_part
from threevp_nerfstudio.errors import TemplateError


@pytest.fixture
def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=4, radius=0.1)


def as_scan(mesh: trimesh.Trimesh) -> Scan:
    return Scan(np.asarray(mesh.vertices, dtype=float), np.asarray(mesh.faces, dtype=np.int64))


def said(scan: Scan, words: str) -> bool:
    return any(words in note for note in scan.notes)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb", ".stl"])
def test_formats_are_read(ball, tmp_path, suffix):
    path = tmp_path / f"head{suffix}"
    ball.export(path)
    scan = load_scan(path)
    assert len(scan.faces) == len(ball.faces)
    assert scan.stated_frame == (suffix == ".glb")
    assert abs(np.linalg.norm(scan.vertices, axis=1).mean() - 0.1) < 1e-4


def test_vertex_colours_are_kept_and_interpolated(ball, tmp_path):
    ball.visual.vertex_colors = np.tile([10, 20, 30, 255], (len(ball.vertices), 1)).astype(np.uint8)
    ball.export(tmp_path / "head.ply")
    scan = load_scan(tmp_path / "head.ply")
    colours = scan.colour_at(np.array([0, 5]), np.full((2, 3), 1 / 3))
    np.testing.assert_allclose(colours, [[10, 20, 30]] * 2)


def test_a_texture_is_kept_and_sampled(ball, tmp_path):
    from PIL import Image

    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[:, 4:] = [200, 100, 50]
    uv = np.column_stack([np.where(ball.vertices[:, 0] > 0, 0.75, 0.25), np.full(len(ball.vertices), 0.5)])
    material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(picture))
    ball.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    ball.export(tmp_path / "head.obj")
    scan = load_scan(tmp_path / "head.obj")
    right = int(scan.vertices[scan.faces][:, :, 0].min(1).argmax())
    np.testing.assert_allclose(scan.colour_at(np.array([right]), np.full((1, 3), 1 / 3)), [[200, 100, 50]], atol=3)


def textured(mesh: trimesh.Trimesh, colour: tuple[int, int, int]) -> trimesh.Trimesh:
    from PIL import Image

    uv = (mesh.vertices[:, 1:] * 5 + 0.5).clip(0.05, 0.95)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (16, 16), colour), name=str(colour))
    return trimesh.Trimesh(mesh.vertices, mesh.faces, visual=trimesh.visual.TextureVisuals(uv=uv, material=material), process=False)


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_several_texture_pages_are_joined(ball, tmp_path, suffix):
    left = ball.triangles_center[:, 0] > 0
    pages = [textured(ball.submesh([rows], append=True), c) for rows, c in ((left, (200, 30, 30)), (~left, (30, 30, 200)))]
    trimesh.Scene(pages).export(tmp_path / f"head{suffix}")
    scan = load_scan(tmp_path / f"head{suffix}")
    x = scan.vertices[scan.faces].mean(1)[:, 0]
    colours = scan.colour_at(np.arange(len(scan.faces)), np.full((len(scan.faces), 3), 1 / 3))
    np.testing.assert_allclose(np.median(colours[x > 0.01], axis=0), [200, 30, 30], atol=4)
    np.testing.assert_allclose(np.median(colours[x < -0.01], axis=0), [30, 30, 200], atol=4)


def test_a_missing_picture_is_said(ball, tmp_path):
    textured(ball, (9, 9, 9)).export(tmp_path / "head.obj")
    assert load_scan(tmp_path / "head.obj").texture is not None
    for picture in tmp_path.glob("*.png"):
        picture.unlink()
    scan = load_scan(tmp_path / "head.obj")
    assert scan.texture is None and said(scan, "picture was not found")


def test_files_that_are_no_scan(tmp_path):
    with pytest.raises(TemplateError, match="does not exist"):
        load_scan(tmp_path / "none.obj")
    with pytest.raises(TemplateError, match=r"\.obj, \.ply"):
        load_scan(tmp_path / "scan.fbx")
    (tmp_path / "broken.ply").write_bytes(b"ply\nnonsense")
    with pytest.raises(TemplateError, match="cannot be read as a mesh"):
        load_scan(tmp_path / "broken.ply")
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(100, 3))).export(tmp_path / "cloud.ply")
    with pytest.raises(TemplateError, match="cloud of 100 points.*Poisson"):
        load_scan(tmp_path / "cloud.ply")
    (tmp_path / "empty.obj").write_text("# nothing\n")
    with pytest.raises(TemplateError, match="usable triangles|cannot be read"):
        load_scan(tmp_path / "empty.obj")
    (tmp_path / "index.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n"
    )
    with pytest.raises(TemplateError, match="vertices 0 to 7, but it has 3"):
        load_scan(tmp_path / "index.ply")
    trimesh.creation.box().export(tmp_path / "box.stl")
    with pytest.raises(TemplateError, match="12 usable triangles"):
        load_scan(tmp_path / "box.stl")


def test_broken_triangles_are_dropped_and_said(ball):
    v = np.concatenate([ball.vertices, [[np.nan, 0, 0]]])
    f = np.concatenate([ball.faces, [[0, 1, len(v) - 1], [3, 3, 4], ball.faces[0][[1, 2, 0]]]])
    scan = clean(Scan(v, f.astype(np.int64)), "scan")
    assert len(scan.faces) == len(ball.faces)
    assert said(scan, "NaN") and said(scan, "without area") and said(scan, "repeat another")


def test_seams_are_joined_in_order(ball):
    v = ball.vertices[ball.faces].reshape(-1, 3)
    soup = Scan(np.asarray(v), np.arange(len(v)).reshape(-1, 3))
    scan = clean(soup, "scan")
    assert len(scan.vertices) == len(ball.vertices) and said(scan, "joined")
    np.testing.assert_allclose(scan.vertices[scan.faces], v.reshape(-1, 3, 3))


def test_floaters_are_dropped_and_second_bodies_reported(ball):
    crumb = trimesh.creation.icosphere(subdivisions=1, radius=0.004).apply_translation([1, 0, 0])
    table = trimesh.creation.icosphere(subdivisions=3, radius=0.08).apply_translation([0, 0, -1])
    scan = clean(as_scan(trimesh.util.concatenate([ball, crumb, table])), "scan")
    assert len(scan.faces) == len(ball.faces) + len(table.faces)
    assert said(scan, "1 pieces of less than") and said(scan, "2 separate pieces")


def test_triangles_that_face_inwards_are_turned(ball):
    inside_out = Scan(np.asarray(ball.vertices), ball.faces[:, ::-1].astype(np.int64))
    scan = clean(inside_out, "scan")
    assert trimesh.Trimesh(scan.vertices, scan.faces).volume > 0 and said(scan, "faced inwards")
    mixed = ball.faces.astype(np.int64).copy()
    mixed[::7] = mixed[::7, ::-1]
    scan = clean(Scan(np.asarray(ball.vertices), mixed), "scan")
    assert trimesh.Trimesh(scan.vertices, scan.faces).is_winding_consistent and said(scan, "winding")


def test_holes_and_branching_edges_are_reported(ball):
    fin = np.array([[ball.faces[0][0], ball.faces[0][1], len(ball.vertices)]])
    v = np.concatenate([ball.vertices, [[0.2, 0, 0]]])
    f = np.concatenate([ball.faces[:-5], fin]).astype(np.int64)
    scan = clean(Scan(np.asarray(v), f), "scan")
    assert said(scan, "holes") and said(scan, "more than two triangles")
    flat, dropped = manifold_part(scan)
    assert dropped >= 1
    edges = np.sort(flat.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert np.unique(edges, axis=0, return_counts=True)[1].max() <= 2
