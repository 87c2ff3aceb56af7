"""How well a scan is registered, against a truth that is known: distances, blendshapes, time.

    python examples/benchmark_scan.py [--seeds 0 1 2] [--voxel 0.003] [--picture heat.png]

Each scan is a random person of Anny in a slight pose, with 2-3 cm of hair and 1 cm of clothes, remeshed to about 200,000
triangles that share nothing with the template. Targets: mean distance below 1 mm on skin and 2 mm on hair; transferred
blendshapes within 10 % on lips, lids and jaw; three minutes on two CPU cores.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from threevp_nerfstudio.body.align import align_stated
from threevp_nerfstudio.body.anny_body import anny_body
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.register import heat_map, register
from threevp_nerfstudio.body.render import save_picture
from threevp_nerfstudio.body.scan import clean
from threevp_nerfstudio.body.synthetic_scan import KnownScan, synthetic_scan
from threevp_nerfstudio.body.transfer import correspond

GROUPS = {
    "lips": ("mouth",),
    "lids": ("eyeBlink", "eyeWide", "eyeSquint"),
    "jaw": ("jaw",),
    "brows, cheeks, nose": ("brow", "cheek", "nose"),
}


@dataclass
class BenchmarkScan:
    """Register synthetic scans and compare with what they were made from."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random people, one scan each."""
    voxel: float = 0.003
    """Size of the scan's triangles in metres."""
    hair: float = 0.025
    """Mean thickness of the hair in metres."""
    picture: Path | None = None
    """Where to write the heat map of the last scan."""

    def main(self) -> None:
        whole = anny_body()
        for seed in self.seeds:
            known = synthetic_scan(crop(whole, closed=True), seed, self.voxel, self.hair)
            result, seconds = run(whole, known)
            distances = distance_table(known, result.distance)
            sizes = f"{len(known.scan.faces)} triangles, template {len(result.template.vertices)} vertices"
            print(f"seed {seed}: {sizes}, {seconds:.0f} s of processor time")
            print("  distance " + ", ".join(f"{k} {m:.2f} mm (p95 {p:.2f})" for k, (m, p) in distances.items()))
            seams = seam_vertices(known)
            for what, left_out in ((f"without {seams.sum()} points on seams", seams), ("seams too", np.zeros_like(seams))):
                errors = blendshape_errors(known, result, left_out)
                print(f"  blendshapes, relative error, {what}: " + ", ".join(f"{k} {e:.1%}" for k, e in errors.items()))
            if self.picture:
                save_picture(heat_map(result), self.picture)


def run(whole: BodyModel, known: KnownScan):
    """Align, register; the result and the seconds of processor time it took (a busy machine does not add to them)."""
    start = time.process_time()
    scan = clean(known.scan, "synthetic scan")
    guess = align_stated(scan, crop(whole), "m", "+z", "-y")
    result = register(whole, scan.moved(guess.similarity.apply(scan.vertices)))
    return result, time.process_time() - start


def distance_table(known: KnownScan, distance: np.ndarray) -> dict[str, tuple[float, float]]:
    """Mean and p95 in mm of scan vertices on skin, hair and clothes (eyes and the cut surfaces left out)."""
    t = known.person
    region = np.array(t.region_names)[t.face_regions[known.face]]
    body = ~np.isin(region, ["cap", "eyes"])
    skin = body & ~known.is_hair & ~known.is_cloth & ~np.isin(region, ["torso", "arms"])
    rows = {"skin": skin, "hair": known.is_hair & body, "clothes": known.is_cloth & body}
    return {k: (float(distance[m].mean() * 1000), float(np.quantile(distance[m], 0.95) * 1000)) for k, m in rows.items()}


def seam_vertices(known: KnownScan) -> np.ndarray:
    """Scan vertices whose triangles join what an expression parts: lip to lip, lid to eye (the scan fused them)."""
    t, scan = known.person, known.scan
    rest = np.linalg.norm(edge_vectors(scan.vertices[scan.faces]), axis=-1)
    torn = np.zeros(len(scan.faces), dtype=bool)
    for basis in t.expression_basis:
        moved = np.einsum("nk,nkc->nc", known.bary, basis[t.faces[known.face]])
        torn |= (np.linalg.norm(edge_vectors((scan.vertices + moved)[scan.faces]), axis=-1) > 2 * rest).any(1)
    eyes = t.face_regions[known.face] == t.region_names.index("eyes")
    mixed = eyes[scan.faces].any(1) & ~eyes[scan.faces].all(1)
    seam = np.zeros(len(scan.vertices), dtype=bool)
    seam[scan.faces[torn | mixed].reshape(-1)] = True
    return seam


def edge_vectors(corners: np.ndarray) -> np.ndarray:
    return corners - np.roll(corners, -1, axis=1)


def blendshape_errors(known: KnownScan, result, left_out: np.ndarray) -> dict[str, float]:
    """Relative RMS error of the blendshapes carried to the scan's vertices, by group of channels."""
    truth, template = known.person, result.wrapped.template
    found = correspond(result.scan, result.wrapped)
    region = np.array(truth.region_names)[truth.face_regions[known.face]]
    rows = np.flatnonzero(np.isin(region, ["face", "lips", "eyelids", "neck"]) & ~known.is_cloth & ~left_out)
    errors = {}
    for group, words in GROUPS.items():
        off, size = 0.0, 0.0
        for name in truth.expression_names:
            if not name.startswith(words):
                continue
            k = truth.expression_names.index(name)
            there = truth.expression_basis[k][truth.faces[known.face[rows]]]
            here = template.expression_basis[k][template.faces[found.face[rows]]]
            there = np.einsum("nk,nkc->nc", known.bary[rows], there)
            here = np.einsum("nk,nkc->nc", found.bary[rows], here)
            off += float(((there - here) ** 2).sum())
            size += float((there**2).sum())
        errors[group] = (off / size) ** 0.5
    return errors


if __name__ == "__main__":
    tyro.cli(BenchmarkScan).main()
