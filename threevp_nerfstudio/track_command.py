"""`threevp track`: from one video to a tracked capture, and how good it is against a known one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.settings import FromStage, Stage, TrackSettings


@dataclass
class Track(TrackSettings):
    """From a video (a full turn with a neutral face, then a performance) to a capture that `ns-train threevp` reads.

    `threevp track --video me.mp4 --output captures/me`

    `threevp track --static turn.mp4 --dynamic talk.mp4 --output captures/me`: two videos of one camera.

    `threevp track --video me.mp4 --output captures/me --from mattes`: once more from a stage on.

    `threevp track --output captures/me --evaluate captures/truth`: compare with a known capture.

    Stages: frames, mattes, landmarks, camera, template, tracking, capture, polish, report. Each keeps what it found in
    OUTPUT/.threevp_track; the same command goes on after an interruption, and other settings run again only what they concern.
    """

    from_stage: FromStage = None
    """Run again from this stage on."""
    evaluate: Path | None = None
    """A capture with the true track of the same video: prints a table of errors. Without --video only that."""

    def main(self) -> None:
        """Raises `ThreeVPError`."""
        console = Console()
        if self.sources_given():
            self.track(console)
        elif self.evaluate is None:
            raise FootageError("what shall be tracked? Give --video, or --static and --dynamic, or --evaluate for a capture that is there.")
        if self.evaluate is not None:
            from threevp_nerfstudio.tracking.evaluate import compare, print_evaluation
            from threevp_nerfstudio.tracking.store import write_json

            found = compare(self.output, self.evaluate)
            print_evaluation(console, found)
            write_json(self.output / "evaluation.json", found.as_json())

    def track(self, console: Console) -> None:
        """All stages that are not done."""
        from threevp_nerfstudio.polish.stage import check_settings, polish_stage
        from threevp_nerfstudio.tracking import steps_input, steps_output
        from threevp_nerfstudio.tracking.stages import StageFunction, run_stages
        from threevp_nerfstudio.workers import sharing

        check_settings(self)
        functions: dict[Stage, StageFunction] = {
            "frames": steps_input.frames_stage,
            "mattes": steps_input.mattes_stage,
            "landmarks": steps_input.landmarks_stage,
            "camera": steps_input.camera_stage,
            "template": steps_output.template_stage,
            "tracking": steps_output.tracking_stage,
            "capture": steps_output.capture_stage,
            "polish": polish_stage,
            "report": self.report_and_overlay,
        }
        with sharing(self.workers):
            run_stages(self, functions, self.from_stage, console)
        console.print(f"capture: {self.output}\nreport: {self.output / 'report.html'}", highlight=False)
        console.print(f"next: ns-train threevp-small --data {self.output}   (CPU; threevp on CUDA)", highlight=False)

    def report_and_overlay(self, job) -> None:
        """The report, and the posed template over the pictures as a film."""
        from threevp_nerfstudio.render.video import video_writer
        from threevp_nerfstudio.tracking.overlay import overlays
        from threevp_nerfstudio.tracking.steps_input import load_footage
        from threevp_nerfstudio.tracking.steps_output import load_fitted, load_track, report_stage

        report_stage(job)
        if not self.overlay:
            return
        footage, _ = load_footage(job.workspace)
        fitted, track = load_fitted(job.workspace), load_track(job.workspace, polished=True)
        fps = (len(track) - 1) / max(float(track.times[-1] - track.times[0]), 1e-6)
        height, width = footage.rgb.shape[1:3]
        film = job.workspace.output / "overlay.mp4"
        with video_writer(film, 2 * width, height, min(max(fps, 1.0), 120.0), draft=True) as write:
            for i, picture in enumerate(overlays(footage, fitted, track)):
                write(picture)
                job.progress("filming the overlay", i + 1, len(track))
