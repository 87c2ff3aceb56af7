"""Rendering times: whole pictures of an avatar from cameras of our own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from threevp_nerfstudio.benchmark.measure import Clock, Stat
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.engine.short_training import AvatarTrainee, Trainee
from threevp_nerfstudio.model.performance import PoseState

FILLED_ZOOM = 2.2
"""Of a camera whose picture the subject fills."""


def frontal_camera(trainee: Trainee, size: int, zoom: float = 1.0) -> Cameras:
    """The capture's most frontal camera, with square pictures of `size` pixels; `zoom` narrows its view."""
    frames = trainee.data.train_dataset.capture.frames
    position = frames.camera_to_world[:, :3, 3]
    i = int(np.argmin(np.abs(np.arctan2(position[:, 0], -position[:, 1]))))
    camera = cameras_of(trainee.data.train_dataset.capture, np.array([i]))
    scale = size / float(camera.height[0, 0])
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx * scale * zoom,
        fy=camera.fy * scale * zoom,
        cx=torch.full((1, 1), size / 2),
        cy=torch.full((1, 1), size / 2),
        width=size,
        height=size,
        camera_type=CameraType.PERSPECTIVE,
    )


def poses(trainee: AvatarTrainee, count: int = 16) -> list[PoseState]:
    """Different poses of the performance, so that no cache of one picture helps with the next."""
    return [trainee.model.performance.at_time(t) for t in np.linspace(0.05, 0.95, count)]


def picture_seconds(trainee: AvatarTrainee, size: int, repeats: int, zoom: float = 1.0, warmup: int = 1) -> Stat:
    """Seconds of one picture, posing included."""
    camera, states = frontal_camera(trainee, size, zoom), poses(trainee)
    turn = iter(range(1 << 30))
    trainee.model.eval()
    return Clock(trainee.device).repeat(
        lambda: trainee.model.render_camera(camera, states[next(turn) % len(states)]), repeats, warmup=warmup
    )


def slider_seconds(trainee: AvatarTrainee, size: int, repeats: int) -> Stat:
    """From a moved expression slider to the first picture of the new face."""
    camera, state = frontal_camera(trainee, size), trainee.model.performance.neutral()
    performance, turn = trainee.model.performance, iter(range(1 << 30))
    trainee.model.eval()

    def moved() -> None:
        if performance.rigged:
            expression = torch.zeros_like(state.expression)
            expression[:, next(turn) % expression.shape[1]] = 0.5
            new = performance.with_expression(state, expression)
        else:
            new = replace(state, conditioning=torch.full_like(state.conditioning, 0.1 * (next(turn) % 5)))
        trainee.model.render_camera(camera, new)

    return Clock(trainee.device).repeat(moved, repeats, warmup=1)


@torch.no_grad()
def rows_seconds(trainee: Trainee, size: int, share: int, repeats: int) -> Stat:
    """Seconds of one picture of a slow method: every `share`-th row is rendered, and the time multiplied."""
    camera = frontal_camera(trainee, size).to(trainee.device)
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    o, d = (x[share // 2 :: share].reshape(-1, 3).contiguous() for x in (bundle.origins, bundle.directions))
    frame = int(trainee.data.train_dataset.frames[0])
    once = Clock(trainee.device).repeat(lambda: trainee.colours(o, d, frame), repeats, warmup=0)
    return once.times(size / len(range(share // 2, size, share)))
