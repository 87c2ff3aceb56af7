"""The benchmark itself: what is measured, in which order, and what it is called in the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from threevp_nerfstudio.benchmark import floor
from threevp_nerfstudio.benchmark.growth import AXES, Growth
from threevp_nerfstudio.benchmark.measure import Clock, Machine, PartTimer, Stat, digits, peak_memory_gib
from threevp_nerfstudio.benchmark.pictures import (
    FILLED_ZOOM,
    frontal_camera,
    picture_seconds,
    rows_seconds,
    slider_seconds,
)
from threevp_nerfstudio.benchmark.report import Report
from threevp_nerfstudio.benchmark.startup import import_seconds, setup_seconds
from threevp_nerfstudio.benchmark.trainees import make_nerfacto_trainee, make_uniform
from threevp_nerfstudio.benchmark.training import Course, FramePixels, sample_frames, sample_pixels, train
from threevp_nerfstudio.config import threevp, threevp_small
from threevp_nerfstudio.engine.short_training import AvatarTrainee, Trainee, configured, make_avatar

METHODS = {"threevp-small": ("threevp_small", threevp_small), "threevp": ("threevp", threevp)}
Part = Literal["step", "picture", "growth", "startup"]
SIZES = (256, 512, 1024)
FLOOR_PICTURE = 512
LEVELS = (20.0, 24.0, 26.0, 28.0, 30.0, 32.0)


@dataclass(frozen=True)
class Effort:
    """How much of everything."""

    seconds: float
    """Of training, of each contestant."""
    frames: int
    pixels: int
    repeats: int
    startup_repeats: int
    quick: bool

    @classmethod
    def of(cls, quick: bool, seconds: float | None) -> Effort:
        if quick:
            return cls(seconds or 10.0, 4, 256, 6, 1, True)
        return cls(seconds or 120.0, 24, 2048, 30, 3, False)


class Suite:
    """One run. `say` is told what is measured at the moment."""

    def __init__(
        self,
        method: str,
        data: Path,
        device: str,
        effort: Effort,
        seed: int,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.method, (self.attribute, specification) = method, METHODS[method]
        self.data, self.device, self.effort, self.seed, self.say = data, device, effort, seed, say
        self.config = configured(specification.config, data, seed=seed)
        self.config.machine.device_type = device
        self.clock = Clock(device)
        self.report = Report(
            Machine.here(device),
            {
                "method": method,
                "capture": data.name,
                "seed": seed,
                "seconds of training": effort.seconds,
                "clock": "wall, device waited for" if self.clock.cuda else "process time",
            },
        )

    def run(self, parts: tuple[Part, ...] = ()) -> Report:
        """Measure some parts, or all. Quality always comes first: steps and pictures are those of trained avatars."""
        ours, others = self.contest()
        tables: dict[Part, Callable[[], None]] = {
            "step": lambda: self.step_table(ours, others),
            "picture": lambda: self.picture_table(ours, others),
            "growth": lambda: self.growth_table(ours),
            "startup": self.startup_table,
        }
        for part, table in tables.items():
            if not parts or part in parts:
                table()
        self.memory_table()
        return self.report

    # ---- quality after equal time ------------------------------------------------------------------------------

    def contest(self) -> tuple[AvatarTrainee, list[Trainee]]:
        """Train everyone for the same time."""
        makers: list[Callable[[], Trainee]] = [
            lambda: make_avatar(self.method, self.config, self.device),
            lambda: make_uniform(self.config, self.device),
            lambda: make_nerfacto_trainee(self.config, self.device),
        ]
        notes = []
        tcnn = without_tcnn(self.device)
        if tcnn is None:
            makers.append(self._tcnn)
        else:
            notes.append(f"tinycudann: not measured ({tcnn}).")
        trainees: list[Trainee] = []
        courses: list[Course] = []
        pixels: list[FramePixels] = []
        for make in makers:
            self.say("making models")
            trainee = make()
            if not pixels:
                capture = trainee.data.train_dataset.capture
                frames, static = sample_frames(capture, self.effort.frames)
                pixels = sample_pixels(capture, frames, self.effort.pixels, self.seed, self.device)
                notes.append(
                    f"Static frames: {static}. PSNR: mean over frames, over a fixed sample of the subject's pixels."
                )
            self.say(f"training {trainee.name}")
            courses.append(train(trainee, pixels, seconds=self.effort.seconds))
            trainees.append(trainee)
        self._contest_table(trainees, courses, " ".join(reversed(notes)))
        return trainees[0], trainees[1:]

    def _tcnn(self) -> Trainee:
        config = configured(self.config, self.data, seed=self.seed)
        config.pipeline.model.field_config.implementation = "tcnn"
        return make_avatar(f"{self.method}, tinycudann", config, self.device)

    def _contest_table(self, trainees: list[Trainee], courses: list[Course], note: str) -> None:
        s = self.report.section(
            "Quality after equal time",
            "method",
            "steps",
            "held-out subject, dB",
            "held-out face, dB",
            "static subject, dB",
            note=note,
        )
        for trainee, course in zip(trainees, courses, strict=True):
            row = [course.final.get(k) for k in ("val", "val face", "static")]
            s.add(trainee.name, f"{course.steps[-1]:,}", *("-" if v is None else f"{v:.1f}" for v in row))
        s = self.report.section(
            "Seconds until the held-out subject reaches", "", *(f"{level:g} dB" for level in LEVELS)
        )
        for course in courses:
            s.add(course.name, *(_seconds_or_dash(course.seconds_to(level)) for level in LEVELS))
        self.report.figures["courses"] = courses

    # ---- a step ------------------------------------------------------------------------------------------------

    def step_table(self, ours: AvatarTrainee, others: list[Trainee]) -> None:
        self.say("training steps")
        s = self.report.section("A training step", "method", "rays", "ms", "rays/s", "of ours")
        stats: dict[str, Stat] = {}
        for trainee in (ours, *others):
            repeats = self.effort.repeats if trainee is ours or self.clock.cuda else max(self.effort.repeats // 4, 2)
            stat = stats[trainee.name] = self.clock.repeat(lambda t=trainee: t.step(0.9), repeats)
            factor = stat.median / trainee.rays / (stats[ours.name].median / ours.rays)
            s.add(trainee.name, f"{trainee.rays:,}", stat.times(1e3), stat.inverse(trainee.rays), f"{factor:.3g}x")
        self.report.figures["step_seconds"] = stats
        self._parts_table(ours)
        self._floor_table(ours, stats[ours.name])

    def _parts_table(self, ours: AvatarTrainee) -> None:
        rows: list[dict[str, float]] = []
        for _ in range(self.effort.repeats):
            timer = PartTimer(self.clock)
            with timer.watching(ours.parts()), timer.part("the rest (compositing, losses, schedules)"):
                ours.step(0.9)
            rows.append(timer.seconds)
        stats = {name: Stat.of([row.get(name, 0.0) for row in rows]).times(1e3) for name in rows[-1]}
        total = sum(stat.median for stat in stats.values())
        s = self.report.section("Parts of our step", "part", "ms", "share")
        for name, stat in sorted(stats.items(), key=lambda item: -item[1].median):
            s.add(name, stat, f"{100 * stat.median / total:.0f} %")
        if self.clock.cuda:
            s.note = "The device is waited for after each part, so the sum is larger than a step."
        self.report.figures["parts_ms"] = stats

    def _floor_table(self, ours: AvatarTrainee, step: Stat) -> None:
        peaks = floor.Peaks.measure(self.device)
        samples, displaced = samples_of_a_step(ours)
        work = floor.step_work(ours, samples, displaced)
        picture, moved, seconds = work_of_a_picture(ours, FLOOR_PICTURE)
        rows = {
            "step": (samples, work, step.median),
            f"picture of {FLOOR_PICTURE}²": (picture, floor.forward_work(ours, picture, moved), seconds),
        }
        s = self.report.section(
            "Physical floor", "", "samples", "GFLOP", "GB", "floor, ms", "ours, ms", "ours / floor",
            note=f"Floor: the larger of arithmetic at {digits(peaks.flops / 1e9)} GFLOP/s and traffic at "
            f"{digits(peaks.bytes / 1e9)} GB/s, both measured here, single precision. Nearest triangles are not in it.",
        )  # fmt: skip
        for name, (count, work, seconds) in rows.items():
            least = peaks.seconds(work)
            cells = (count, work.flops / 1e9, work.bytes / 1e9, least * 1e3, seconds * 1e3)
            s.add(name, *map(digits, cells), f"{seconds / least:.1f}x")
        self.report.figures["floor_seconds"] = {name: peaks.seconds(work) for name, (_, work, _) in rows.items()}

    # ---- pictures ----------------------------------------------------------------------------------------------

    def picture_table(self, ours: AvatarTrainee, others: list[Trainee]) -> None:
        self.say("pictures")
        repeats = max(self.effort.repeats // 3, 2)
        s = self.report.section("A picture", "view", "ms", "pictures/s")
        stats: dict[str, Stat] = {}
        views = [(size, zoom) for size in SIZES for zoom in (1.0, FILLED_ZOOM)]
        if self.effort.quick:
            views = [(256, 1.0), (256, FILLED_ZOOM), (512, 1.0)]
        for size, zoom in views:
            name = f"{size}², {'frontal, as in the capture' if zoom == 1.0 else 'filled by the head'}"
            brief = self.effort.quick and not self.clock.cuda and (size, zoom) != (256, 1.0)
            fewer = repeats if self.clock.cuda else max(repeats * SIZES[0] ** 2 // size**2, 2)
            stats[name] = picture_seconds(ours, size, 1 if brief else fewer, zoom, warmup=0 if brief else 1)
        for size in SIZES[: 1 if self.effort.quick else 2]:
            few = 2 if self.effort.quick else repeats
            stats[f"{size}², the first after a slider moved"] = slider_seconds(ours, size, few)
        for trainee in others:
            share = 1 if self.clock.cuda else 32
            name = f"{SIZES[0]}², {trainee.name}" + (f" (from every {share}th row)" if share > 1 else "")
            stats[name] = rows_seconds(trainee, SIZES[0], share, 1 if self.effort.quick else 3)
        for name, stat in stats.items():
            s.add(name, stat.times(1e3), stat.inverse())
        self.report.figures["picture_seconds"] = stats

    # ---- growth, start-up, memory ------------------------------------------------------------------------------

    def growth_table(self, ours: AvatarTrainee) -> None:
        state = {name: value.clone() for name, value in ours.model.state_dict().items()}
        growth = Growth(self.config, self.data, state, self.device, 2 if self.effort.quick else 12)
        s = self.report.section(
            "Growth", "size", "value", "step, ms", "picture, ms", "set-up, s", "peak memory, GiB",
            note="Pictures of 256², but for the last axis. Peak memory is that of the process so far.",
        )  # fmt: skip
        points: dict[str, list] = {}
        for axis in AXES:
            for value in axis.quick if self.effort.quick else axis.values:
                self.say(f"growth with {axis.name}: {value:,}")
                p = growth.point(axis, value)
                points.setdefault(axis.name, []).append(p)
                s.add(
                    axis.name,
                    f"{value:,}",
                    p.step.times(1e3),
                    p.picture.times(1e3),
                    f"{p.setup:.2g}",
                    f"{p.peak_gib:.2f}",
                )
        self.report.figures["growth"] = points

    def startup_table(self) -> None:
        self.say("start-up")
        host, plugin = import_seconds(self.effort.startup_repeats)
        made = setup_seconds(self.attribute, self.data, self.device, fresh=not self.effort.quick)
        s = self.report.section("Start-up, process seconds", "what", "s")
        s.add("importing ns-train without plugins", host)
        s.add("importing ns-train with this plugin", plugin)
        for name, seconds in made.items():
            s.add(name, f"{seconds:.2g}")
        self.report.figures["startup"] = {"host": host, "plugin": plugin, **made}

    def memory_table(self) -> None:
        peaks = peak_memory_gib(self.device)
        s = self.report.section("Peak memory of this whole run", "of", "GiB")
        for name, value in peaks.items():
            s.add(name, f"{value:.2f}")
        self.report.figures["peak_gib"] = peaks


def without_tcnn(device: str) -> str | None:
    """Why tinycudann cannot be measured; None where it can."""
    if torch.device(device).type != "cuda":
        return "it needs CUDA"
    try:
        import tinycudann  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error).splitlines()[0]
    return None


@contextmanager
def counting(ours: AvatarTrainee) -> Iterator[list[tuple[int, int]]]:
    """Samples, and those of them that blendfields displace, of each evaluation of the field."""
    counted: list[tuple[int, int]] = []
    field = ours.model.field
    inner = field.geometry

    def geometry(samples: Any) -> Any:
        counted.append((len(samples.position), int((field.face_window(samples.position) > 0).sum())))
        return inner(samples)

    field.geometry = geometry
    try:
        yield counted
    finally:
        del field.geometry


def samples_of_a_step(ours: AvatarTrainee) -> tuple[float, float]:
    """Samples that a step evaluates, and how many of them are displaced by blendfields."""
    with counting(ours) as counted:
        ours.step(0.9)
    return float(sum(n for n, _ in counted)), float(sum(m for _, m in counted))


def work_of_a_picture(ours: AvatarTrainee, size: int) -> tuple[float, float, float]:
    """Samples, displaced samples and seconds of one picture."""
    ours.model.eval()
    camera, state = frontal_camera(ours, size), ours.model.performance.neutral()
    with counting(ours) as counted:
        ours.model.render_camera(camera, state)
    seconds = Clock(ours.device).repeat(lambda: ours.model.render_camera(camera, state), 1, warmup=0).median
    return float(sum(n for n, _ in counted)), float(sum(m for _, m in counted)), seconds


def _seconds_or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
