"""Stages template, tracking, capture and report: from `Footage` to a capture folder that trains."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.capture.rig_files import load_template
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.advice import advise
from threevp_nerfstudio.tracking.export import export_capture
from threevp_nerfstudio.tracking.fit import FitOptions, fit_template
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.quality import spans
from threevp_nerfstudio.tracking.report import ReportData, write_report
from threevp_nerfstudio.tracking.settings import TrackSettings
from threevp_nerfstudio.tracking.settling import Settling
from threevp_nerfstudio.tracking.stages import Job, Workspace
from threevp_nerfstudio.tracking.steps_input import REMADE, load_footage, matting, selected
from threevp_nerfstudio.tracking.track import TrackOptions, track
from threevp_nerfstudio.tracking.trajectory import Track

SHORT_TURN = np.radians(60.0)
"""A turn by less hardly tells the focal length."""
POLISHED = "track.npz"
"""The corrected track, in the folder of the stage `polish`."""


def template_stage(job: Job) -> None:
    """The personal template from the turn."""
    footage, estimate = load_footage(job.workspace)
    options = FitOptions(
        frames=job.settings.fit_frames,
        working_size=job.settings.working_size,
        focal_spread=estimate.spread,
        texture_size=job.settings.texture_size,
    )
    given: RiggedTemplate | None = None
    body: BodyModel | None = None
    if job.settings.template is not None:
        given = load_template(job.settings.template)
    elif job.settings.body == "smplx":
        body = _smplx(job.settings)
    fitted = fit_template(footage, options, body=body, template=given, progress=job.progress)
    fitted.save(job.workspace.folder("template") / "fitted.npz")
    short = fitted.turn.covered < SHORT_TURN
    refined = "" if estimate.known else "; the turn is too short to tell it better: --focal-35mm" if short else ", refined by the template"
    job.note(f"focal length {fitted.camera.fx:.0f} px of stored pictures ({estimate.origin}{refined}).")
    job.note(f"the turn covers {np.degrees(fitted.turn.covered):.0f}°, widest gap {np.degrees(fitted.turn.widest_gap):.0f}°.")


def _smplx(settings: TrackSettings) -> BodyModel:
    from threevp_nerfstudio.body.smplx_body import smplx_body
    from threevp_nerfstudio.body.smplx_file import find_model, read_smplx

    file = read_smplx(find_model(settings.model_path, "neutral"))
    return smplx_body(file, 10, min(50, file.expression.shape[2]), None)


def tracking_stage(job: Job) -> None:
    """Pose and expression in every picture; interrupted, it goes on where it was."""
    footage, _ = load_footage(job.workspace)
    folder = job.workspace.folder("tracking")
    fitted = load_fitted(job.workspace)
    options = TrackOptions(working_size=job.settings.working_size, backward_pass=job.settings.backward_pass)
    partial = folder / "partial.npz"
    mark = folder / "partial_of.json"
    of = json.dumps({"options": asdict(options), "template": (job.workspace.root / "template" / "fitted.npz").stat().st_mtime_ns})
    if not mark.is_file() or mark.read_text() != of:
        for stale in (partial, folder / REMADE):
            stale.unlink(missing_ok=True)
        mark.write_text(of)
    source = matting(job.workspace)
    settle = None if source is None else Settling(footage, source, folder / REMADE, job.progress)
    result = track(footage, fitted, options, resume=partial, settle=settle, progress=job.progress)
    result.save(folder / "track.npz")
    partial.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    if result.lost.any():
        job.note(f"{int(result.lost.sum())} of {len(result)} pictures were lost and are left out: {spans(result.lost, footage.times)}.")
    if result.restarted.any():
        job.note(f"the track started afresh at {spans(result.restarted, footage.times)}.")


def load_fitted(workspace: Workspace) -> FittedTemplate:
    return FittedTemplate.load(workspace.root / "template" / "fitted.npz")


def load_track(workspace: Workspace, polished: bool = False) -> Track:
    """What was tracked; or `polished`, with corrected poses, where there is that."""
    better = workspace.root / "polish" / POLISHED
    return Track.load(better if polished and better.is_file() else workspace.root / "tracking" / "track.npz")


def capture_stage(job: Job) -> None:
    """The capture folder; read back through the strict reader."""
    footage, _ = load_footage(job.workspace, "settled")
    fitted, found = load_fitted(job.workspace), load_track(job.workspace)
    if len(found) != len(footage):
        raise TrackError(f"the track has {len(found)} rows, the footage {len(footage)} pictures; run again with --from tracking.")
    export_capture(footage, fitted, found, job.workspace.output, job.settings.val_share, first_time(job.workspace), job.progress)
    load_capture(job.workspace.output)


def first_time(workspace: Workspace) -> float:
    """Second of the video at which the tracked pictures begin."""
    stored, _, _, rows = selected(workspace)
    return float(stored.times[rows[0]])


def report_stage(job: Job) -> None:
    """report.html and report.json."""
    footage, estimate = load_footage(job.workspace, "polished")
    fitted, found = load_fitted(job.workspace), load_track(job.workspace, polished=True)
    data = ReportData(
        title=job.workspace.output.name,
        footage=footage,
        fitted=fitted,
        track=found,
        notes=job.workspace.notes(),
        advice=advise(footage, fitted, found),
        seconds={stage: float(value["seconds"]) for stage, value in job.workspace.state.items()},
    )
    write_report(data, job.workspace.output, job.progress)
    for text in data.advice:
        job.note(text)
