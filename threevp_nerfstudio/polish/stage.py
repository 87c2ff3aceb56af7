"""Stage polish: the capture as it was tracked, a correction of each picture and of its matte, the capture once more."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.polish.folding import folded
from threevp_nerfstudio.tracking.export import export_capture, export_poses
from threevp_nerfstudio.tracking.settings import TrackSettings
from threevp_nerfstudio.tracking.stages import Job
from threevp_nerfstudio.tracking.steps_input import REMADE, load_footage, matting
from threevp_nerfstudio.tracking.steps_output import POLISHED, first_time, load_fitted, load_track

FEWEST_STEPS = 100
STEPS_EACH, STEPS = 5, (1000, 2000)
"""Training steps for each picture, and their bounds in all."""


def check_settings(settings: TrackSettings) -> None:
    """Raises `FootageError`, before any work, for what would be refused after most of it."""
    if settings.workers is not None and settings.workers < 1:
        raise FootageError(f"--workers {settings.workers}: at least one is needed.")
    if not 0 <= settings.val_share < 0.9:
        raise FootageError(f"--val-share {settings.val_share:g}: a share from 0 to 0.9 is expected.")
    if settings.polish and settings.polish_steps is not None and settings.polish_steps < FEWEST_STEPS:
        raise FootageError(f"--polish-steps {settings.polish_steps}: {FEWEST_STEPS} are the least, 2000 make sense; or --no-polish.")


def polish_stage(job: Job) -> None:
    """Corrected poses in the capture's cameras and motion, and mattes that the avatar has helped with.

    Interrupted, it goes on where it was."""
    settings, workspace = job.settings, job.workspace
    folder = workspace.folder("polish")
    (folder / POLISHED).unlink(missing_ok=True)
    footage, _ = load_footage(workspace, "settled")
    fitted, found = load_fitted(workspace), load_track(workspace)
    start = first_time(workspace)
    # an earlier polish may be in the capture
    if (folder / REMADE).is_file():
        export_capture(footage, fitted, found, workspace.output, settings.val_share, start, job.progress)
        (folder / REMADE).unlink()
    else:
        export_poses(footage, fitted, found, workspace.output, settings.val_share, start)
    if not settings.polish:
        return
    rows = np.flatnonzero(~found.lost)
    steps = settings.polish_steps if settings.polish_steps is not None else int(np.clip(STEPS_EACH * len(rows), *STEPS))
    state, mark = folder / "state.pt", folder / "state_of.json"
    of = json.dumps({"steps": steps, "track": (workspace.root / "tracking" / "track.npz").stat().st_mtime_ns})
    if not mark.is_file() or mark.read_text() != of:
        state.unlink(missing_ok=True)
        mark.write_text(of)
    from threevp_nerfstudio.polish.learning import learn_corrections  # brings nerfstudio along, which takes seconds
    from threevp_nerfstudio.polish.mattes import Rims, remade_mattes

    corrections, avatar = learn_corrections(workspace.output, steps, state, job.progress)
    better = folded(found, fitted.template, rows, corrections)
    export_poses(footage, fitted, better, workspace.output, settings.val_share, start)
    capture = load_capture(workspace.output)
    if (source := matting(workspace)) is not None:  # else they are the user's own
        alpha = remade_mattes(footage, rows, source, Rims(avatar, capture), folder / REMADE, job.progress)
        export_capture(replace(footage, alpha=alpha), fitted, better, workspace.output, settings.val_share, start, job.progress)
    better.save(folder / POLISHED)
    for done in (state, mark):
        done.unlink(missing_ok=True)
    turned, moved = (np.linalg.norm(part, axis=1) for part in np.split(corrections.body, 2, axis=1))
    job.note(f"poses were corrected by {np.degrees(turned.mean()):.2f}° and {1000 * moved.mean():.1f} mm in the mean.")
