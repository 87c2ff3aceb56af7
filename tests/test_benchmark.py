"""The benchmark measures what it says: clocks, baselines, changed captures, tables. No test times anything."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_training import tiny_config
from threevp_nerfstudio.benchmark import floor
from threevp_nerfstudio.benchmark import growth as growth_module
from threevp_nerfstudio.benchmark import suite as suite_module
from threevp_nerfstudio.benchmark.ablation import Ablation, Settings, chosen_frames
from threevp_nerfstudio.benchmark.baselines import box_ends
from threevp_nerfstudio.benchmark.captures import (
    LEFT_OUT,
    left_out_behind,
    repeat_frames,
    resampled_template,
    resized,
    thin_behind,
)
from threevp_nerfstudio.benchmark.growth import Axis, transplant
from threevp_nerfstudio.benchmark.measure import Clock, PartTimer, Stat
from threevp_nerfstudio.benchmark.report import END, START
from threevp_nerfstudio.benchmark.suite import Effort, Suite
from threevp_nerfstudio.benchmark.trainees import make_uniform
from threevp_nerfstudio.benchmark.training import Course, evaluate, sample_frames, sample_pixels, train
from threevp_nerfstudio.benchmark.variants import VARIANTS
from threevp_nerfstudio.capture.capture import Capture, load_capture, yaw_deg
from threevp_nerfstudio.engine.short_training import configured, make_avatar
from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

EXAMPLES = Path(__file__).parents[1] / "examples"

# ---- measuring -------------------------------------------------------------------------------------------------------


def test_a_figure_is_a_median_with_the_middle_half():
    stat = Stat.of([5.0, 1.0, 2.0, 3.0, 100.0])
    assert (stat.median, stat.low, stat.high, stat.n) == (3.0, 2.0, 5.0, 5)
    assert stat.times(2).high == 10.0
    rate = stat.inverse(6.0)
    assert (rate.low, rate.median, rate.high) == (6 / 5, 2.0, 3.0)
    assert str(Stat.of([0.5])) == "0.5"


class FakeClock(Clock):
    """Advances only when told to."""

    def __init__(self) -> None:
        self.cuda, self.time = False, 0.0

    def now(self) -> float:
        return self.time


class Work:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def outer(self) -> None:
        self.clock.time += 1.0
        self.inner()
        self.inner()

    def inner(self) -> None:
        self.clock.time += 3.0


def test_parts_do_not_count_what_they_call_of_one_another():
    clock = FakeClock()
    work, timer = Work(clock), PartTimer(clock)
    with timer.watching([("outer", work, "outer"), ("inner", work, "inner"), ("none", work, "missing")]), timer.part("rest"):
        clock.time += 0.5
        work.outer()
    assert timer.seconds == {"outer": 1.0, "inner": 6.0, "rest": 0.5}
    assert "outer" not in vars(work)  # the class's own method shows again


def test_warming_up_does_not_count():
    clock, calls = FakeClock(), []

    def function() -> None:
        calls.append(1)
        clock.time += 10.0 if len(calls) <= 2 else 1.0

    assert clock.repeat(function, 3) == Stat(1.0, 1.0, 1.0, 3)


def test_time_to_a_level_is_interpolated_and_may_never_come():
    course = Course("x", [10.0, 20.0], [1, 2], [{"val": 20.0}, {"val": 24.0}])
    assert course.seconds_to(18.0) == 10.0
    assert course.seconds_to(22.0) == pytest.approx(15.0)
    assert course.seconds_to(30.0) is None and course.seconds_to(20.0, "face") is None


# ---- captures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def capture(tiny_capture: Path) -> Capture:
    return load_capture(tiny_capture, check_pictures=False)


def test_thinning_out_the_back_leaves_the_front_and_the_numbering(capture: Capture):
    thinned = thin_behind(3)(capture)
    left_out = thinned.frames.split == LEFT_OUT
    assert np.array_equal(left_out, left_out_behind(capture, 3)) and left_out.any()
    yaw = np.abs(yaw_deg(capture.frames.camera_to_world))
    assert (yaw[left_out] > 90).all() and len(thinned.frames) == len(capture.frames)
    behind = (yaw > 90) & (capture.frames.split == "train")
    assert np.count_nonzero(behind & ~left_out) == -(-np.count_nonzero(behind) // 3)
    assert np.array_equal(thinned.frames.split[~left_out], capture.frames.split[~left_out])


@pytest.mark.parametrize("count", [10, 48, 130])
def test_repeated_frames_have_motion_of_their_own_that_says_the_same(capture: Capture, count: int):
    repeated = repeat_frames(count)(capture)
    assert len(repeated.frames) == count and len(repeated.motion) > repeated.frames.motion_index.max()
    for i in (0, count // 2, count - 1):
        original = i % len(capture.frames)
        row, old = repeated.frames.motion_index[i], capture.frames.motion_index[original]
        assert np.array_equal(repeated.motion.expression[row], capture.motion.expression[old])
        assert repeated.frames.image_paths[i] == capture.frames.image_paths[original]
    if count > len(capture.frames):
        assert len(np.unique(repeated.frames.motion_index)) > len(np.unique(capture.frames.motion_index))


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_a_template_of_other_triangles_is_the_same_shape(capture: Capture, factor: float):
    old = capture.template
    new = resampled_template(old, int(len(old.faces) * factor))
    assert len(new.faces) == pytest.approx(len(old.faces) * factor, rel=0.02)
    np.testing.assert_allclose(new.skin_weights.sum(1), 1.0, atol=1e-5)
    size = np.ptp(old.vertices, axis=0).max()
    assert np.median(MeshQuery(old.vertices, old.faces).nearest(new.vertices).distance) < 0.005 * size
    assert np.abs(new.expression_basis).max() == pytest.approx(np.abs(old.expression_basis).max(), rel=0.3)


def test_a_resized_capture_loads_and_looks_at_the_same(capture: Capture, tiny_capture: Path, tmp_path: Path):
    small = load_capture(resized(tiny_capture, tmp_path / "small", 24, frames=6))
    assert len(small.frames) == 6 and (small.frames.size == 24).all()
    np.testing.assert_allclose(small.frames.focal[0], capture.frames.focal[0] * 24 / capture.frames.size[0], rtol=1e-6)


# ---- contestants -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory):
    return configured(tiny_config(tiny_capture, tmp_path_factory.mktemp("out")), tiny_capture)


def test_a_ray_enters_and_leaves_its_box():
    origins = torch.tensor([[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, 5.0, 0.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 3)
    near, far = box_ends(origins, directions, -torch.ones(3, 3), torch.ones(3, 3))
    torch.testing.assert_close(near[:2, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(far[:2, 0], torch.tensor([3.0, 1.0]))
    assert far[2] == near[2]


def test_with_our_field_the_uniform_baseline_draws_our_picture(config):
    config.pipeline.model.occupancy.carve = False  # the baseline knows nothing of mattes
    ours, uniform = make_avatar("ours", config, "cpu"), make_uniform(config, "cpu", samples=400)
    ours.model.config.sample_step = ours.model.march_settings().reach / 40
    ours.model.config.max_samples = 400
    uniform.model.field = ours.model.field
    with torch.no_grad():  # opaque: how deep inside the body samples go is then no matter
        ours.model.field.density_net[-1].bias[0] += 4.0
    capture = ours.data.train_dataset.capture
    pixels = sample_pixels(capture, [(0, "static"), (30, "val")], 60, 0, "cpu")
    for entry in pixels:
        a, b = (t.colours(entry.origins, entry.directions, entry.frame) for t in (ours, uniform))
        assert (a - b).abs().mean() < 0.02
        assert (a - 1.0).abs().mean() > 0.05  # there is something to see


def test_pixels_to_compare_are_the_subjects_and_carry_their_colours(capture: Capture):
    frames, kind = sample_frames(capture, 2)
    assert kind in ("held out", "training frames") and {g for _, g in frames} == {"val", "static"}
    again = [sample_pixels(capture, frames, 40, 5, "cpu") for _ in range(2)]
    for a, b in zip(*again, strict=True):
        assert torch.equal(a.directions, b.directions) and len(a.colours) == len(a.face)
        assert (a.colours < 0.999).any(1).float().mean() > 0.5  # hardly any white


def test_training_for_steps_improves_what_is_looked_at(config, capture: Capture):
    trainee = make_avatar("ours", config, "cpu")
    pixels = sample_pixels(capture, sample_frames(capture, 3)[0], 60, 0, "cpu")
    before = evaluate(trainee, pixels)
    course = train(trainee, pixels, steps=60, looks=2)
    assert course.steps == [30, 60] and len(course.psnr) == 2
    assert course.final["val"] > before["val"] + 0.3
    with pytest.raises(ValueError, match="either"):
        train(trainee, pixels, steps=1, seconds=1.0)


def test_a_transplanted_state_is_taken_as_far_as_it_fits(config):
    trained = make_avatar("a", config, "cpu")
    with torch.no_grad():
        trained.model.field.grid.table.fill_(0.5)
    other = configured(config, config.data)
    other.pipeline.model.field_config.blendfields.num_fields = 3
    receiver = make_avatar("b", other, "cpu")
    transplant(trained.model.state_dict(), receiver)
    assert (receiver.model.field.grid.table == 0.5).all()
    assert receiver.model.field.blendfields.num_fields == 3


def test_the_whole_suite_fills_its_report(config, tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    specification = replace(suite_module.METHODS["threevp-small"][1], config=config)
    monkeypatch.setitem(suite_module.METHODS, "threevp-small", ("threevp_small", specification))
    monkeypatch.setattr(suite_module, "SIZES", (32,))
    monkeypatch.setattr(growth_module, "PICTURE", 24)
    monkeypatch.setattr(floor.Peaks, "measure", lambda device: floor.Peaks(1e9, 1e9))
    monkeypatch.setattr(suite_module, "FLOOR_PICTURE", 48)
    axes = [("rays in a step", 32), ("samples per metre of ray", 60), ("blendfields (K)", 3)]
    axes += [("faces of the template", 700), ("frames in the capture", 60), ("picture size, pixels", 24)]
    monkeypatch.setattr(suite_module, "AXES", tuple(Axis(name, (value,), (value,)) for name, value in axes))
    monkeypatch.setattr(suite_module, "import_seconds", lambda repeats: (Stat.of([1.0]), Stat.of([2.0])))
    monkeypatch.setattr(suite_module, "setup_seconds", lambda *args, **kwargs: {"set-up": 1.0})
    effort = Effort(seconds=0.2, frames=1, pixels=16, repeats=2, startup_repeats=1, quick=False)
    report = Suite("threevp-small", tiny_capture, "cpu", effort, seed=1).run()

    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    report.write_into(page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    names = (axes[0][0], axes[-1][0])
    for expected in ("nerfacto", "48 uniform samples", "tinycudann: not measured", "march and map", "Physical floor", *names):
        assert expected in text, expected
    report.write_json(tmp_path / "figures.json")
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["machine"]["versions"]["nerfstudio"] == "1.1.5" and document["settings"]["seed"] == 1
    assert {len(points) for points in document["figures"]["growth"].values()} == {1}
    assert all(p.stat().st_size > 1000 for p in report.plots(tmp_path))
    report.print()
    (tmp_path / "no_markers.md").write_text("x")
    with pytest.raises(ThreeVPError, match="markers|missing"):
        report.write_into(tmp_path / "no_markers.md")


# ---- ablation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_changes_what_it_says_and_nothing_of_the_others(config, name: str):
    changed = configured(config, config.data)
    VARIANTS[name].apply(changed)
    model, data = changed.pipeline.model, changed.pipeline.datamanager
    assert (model.field_config.expression != "blendfields") == (name in ("coarse-only", "color", "reduced-color", "reduced-none"))
    assert (model.mesh_expressions is not None) == name.startswith("reduced")
    assert (not data.balance_views) == (name in ("unbalanced", "thin-unbalanced"))
    assert (model.field_config.appearance == "view") == (name == "view")
    assert (VARIANTS[name].edit is not None) == name.startswith("thin")


def test_groups_of_pictures_are_held_out_as_they_say(capture: Capture):
    groups = chosen_frames(capture, 4)
    split = capture.frames.split
    assert all(split[i] != "train" for i in groups["val"]) and 1 <= len(groups["val"]) <= 4
    trained = np.flatnonzero(thin_behind()(capture).frames.split == "train")
    assert groups["back"] and not set(groups["back"]) & set(trained.tolist())


def test_an_ablation_resumes_and_refuses_to_mix_settings(config, tiny_capture: Path, tmp_path: Path):
    settings = Settings("threevp-small", "tiny", 3, None, 1, 0)
    ablation = Ablation(config, tiny_capture, tmp_path, settings, "cpu")
    seen: list[str] = []
    names = ("reduced-none", "thin-balanced")
    results = [ablation.run(VARIANTS[n], lambda what, part: seen.append(what)) for n in names]
    assert {"training", "measuring"} <= set(seen)
    seen.clear()
    again = ablation.run(VARIANTS["reduced-none"], lambda what, part: seen.append(what))
    assert not seen and again == results[0] and again.steps == 3
    ablation.write_tables(results, VARIANTS)
    table = (tmp_path / "ablation.md").read_text()
    assert all(n in table for n in names) and "From behind" in table and "yaw sector" in table
    assert len(json.loads((tmp_path / "ablation.json").read_text())["results"]) == 2
    other = Ablation(config, tiny_capture, tmp_path, replace(settings, steps=4), "cpu")
    with pytest.raises(ThreeVPError, match="other settings"):
        other.run(VARIANTS["reduced-none"], lambda what, part: None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--only", "nonsense", "--steps", "1"], "no variant nonsense"), ([], "either --steps N"), (["--list"], "")],
)
def test_the_ablation_command_says_what_is_wrong_before_it_trains(arguments: list[str], expected: str):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / "ablation.py"), *arguments], capture_output=True, text=True, timeout=100
    )
    if expected:
        assert result.returncode == 1 and expected in result.stderr
    else:
        assert result.returncode == 0 and all(name in result.stdout for name in VARIANTS)
