"""Structure from motion of the turning subject with pycolmap: `python -m threevp_nerfstudio.tracking.sfm_worker JOB.npz ANSWER.json`.

A process of its own: pycolmap and OpenCV in one process abort. Nothing here may import cv2.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

DRAWS = (7, 11, 17, 23, 50)
"""Reconstructions from the same features: which of their matches are believed is a draw (RANSAC), and the focal length differs by 1 to 3 %
for it. Each takes pairs of pictures in blocks of such a size, so that draws fall on other pairs (one thread draws the same each time)."""


def main(job: Path, answer: Path) -> None:
    import pycolmap
    from PIL import Image
    from scipy.ndimage import binary_erosion

    with np.load(job, allow_pickle=False) as file:
        rgb, alpha, (focal, cx, cy) = file["rgb"], file["alpha"], file["intrinsics"]
    with tempfile.TemporaryDirectory(prefix="threevp_sfm_") as temporary:
        root = Path(temporary)
        images, masks, database = root / "images", root / "masks", root / "database.db"
        images.mkdir()
        masks.mkdir()
        for i, (picture, matte) in enumerate(zip(rgb, alpha, strict=True)):
            Image.fromarray(picture).save(images / f"{i:04d}.png")
            inner = binary_erosion(matte > 200, iterations=5)  # the outline is no point of the surface
            Image.fromarray(np.uint8(255) * inner.astype(np.uint8)).save(masks / f"{i:04d}.png.png")
        reader = pycolmap.ImageReaderOptions()
        reader.mask_path = str(masks)
        reader.camera_model = "SIMPLE_PINHOLE"
        reader.camera_params = f"{focal},{cx},{cy}"
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.num_threads = 2
        extraction.use_gpu = False
        extraction.sift.peak_threshold = 0.0033
        pycolmap.extract_features(
            database, images, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader, extraction_options=extraction
        )
        matching = pycolmap.FeatureMatchingOptions()
        matching.num_threads = 1
        matching.use_gpu = False
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads = 1
        options.ba_refine_principal_point = False
        options.ba_refine_extra_params = False
        options.min_model_size = 5
        options.mapper.init_min_tri_angle = 6.0

        def reconstruct(block: int) -> dict[str, float | int]:
            folder = root / str(block)
            folder.mkdir()
            shutil.copy(database, folder / "database.db")
            pairing = pycolmap.ExhaustivePairingOptions(block_size=block)
            pycolmap.match_exhaustive(folder / "database.db", matching_options=matching, pairing_options=pairing)
            return summary(pycolmap.incremental_mapping(folder / "database.db", images, folder, options))

        with ThreadPoolExecutor(min(len(DRAWS), os.cpu_count() or 1)) as pool:  # pycolmap does not hold Python's lock
            found = list(pool.map(reconstruct, DRAWS))
        answer.write_text(json.dumps(middle(found)))


def middle(found: list[dict[str, float | int]]) -> dict[str, float | int]:
    """Of several reconstructions, among those that placed nearly as many pictures as any, the one whose focal length is in the middle."""
    most = max(each["registered"] for each in found)
    good = sorted((each for each in found if each["registered"] >= 0.9 * most), key=lambda each: each["focal"])
    return good[(len(good) - 1) // 2]


def summary(models: dict) -> dict[str, float | int]:
    """Of the largest reconstruction."""
    if not models:
        return {"registered": 0, "focal": 0.0, "error_px": 0.0, "span_deg": 0.0}
    best = max(models.values(), key=lambda m: m.num_reg_images())
    camera = next(iter(best.cameras.values()))
    axes = np.array([image.cam_from_world().rotation.matrix()[2] for image in best.images.values() if image.has_pose])
    cosine = (axes @ axes.T).clip(-1, 1)
    return {
        "registered": best.num_reg_images(),
        "focal": float(camera.params[0]),
        "error_px": float(best.compute_mean_reprojection_error()),
        "span_deg": float(np.degrees(np.arccos(cosine)).max()),
        "points": best.num_points3D(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
