"""A small avatar of all pictures, trained together with a correction of each picture's pose.

The tracker's template lacks hair, clothes and teeth, and its shape errs by a millimetre or two, which turns the head by a degree where
only one side is seen. The avatar has all that; what is left is each picture's own error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.config import threevp_small
from threevp_nerfstudio.engine.device import cpu_threads, usable
from threevp_nerfstudio.engine.short_training import AvatarTrainee, configured, make_avatar
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.polish.alignment import RAYS, align_pictures
from threevp_nerfstudio.polish.folding import Corrections

AVATAR_FIRST = 1 / 3
"""Share of the steps before corrections set in."""
ALIGNED_FIRST = 2 / 3
"""Share of the steps after which pictures are aligned for the first time, so that the avatar gets sharper on the rest of them."""
FIRST_EVERY = 2
"""Pictures of which one is aligned then."""
LARGEST = 4.0
"""In the same units: what asks for more is no error of tracking, and stays as it was."""
SAVE_EVERY_S = 30.0
Progress = Callable[[str, int, int], None]


def learn_corrections(
    data: Path, steps: int, resume: Path, progress: Progress = lambda *_: None, device: str | None = None
) -> tuple[Corrections, ThreeVPModel]:
    """Corrections of all frames of the capture in `data`, held-out ones included (they are tracked on their pictures like the others), and
    the avatar that they were learned with.

    The state is kept in `resume` every half a minute and after Ctrl-C, and taken up from it.

    Raises `CaptureError`.
    """
    device, _ = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with cpu_threads(device, 1):
        trainee = make_avatar("polish", configured(_method(steps), data, _all_for_training), device)
        _restore(trainee, resume)
        halt = round(ALIGNED_FIRST * steps)
        if trainee.steps <= halt:
            _train(trainee, halt, steps, resume, progress)
            _align(trainee, halt / steps, RAYS // 2, FIRST_EVERY, resume, progress)
        _train(trainee, steps, steps, resume, progress)
        _align(trainee, 1.0, RAYS, 1, resume, progress)
    corrections = trainee.model.corrections
    assert corrections is not None
    frames = torch.arange(len(corrections.body), device=corrections.body.device)
    parts = [part.detach().cpu().double().numpy() for part in corrections.motions(frames)]
    body, head = np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)
    wild = (torch.cat([corrections.body, corrections.head], 1).abs() > LARGEST).any(1).cpu().numpy()
    body[wild], head[wild] = 0.0, 0.0
    return Corrections(body, head, corrections.pivot.cpu().double().numpy()), trainee.model


def _method(steps: int) -> ThreeVPTrainerConfig:
    config = deepcopy(threevp_small.config)
    assert isinstance(config, ThreeVPTrainerConfig)
    model = config.pipeline.model
    model.refinement = replace(model.refinement, enabled=True, start=round(AVATAR_FIRST * steps))
    return config


def _all_for_training(capture: Capture) -> Capture:
    return replace(capture, frames=replace(capture.frames, split=np.full_like(capture.frames.split, "train")))


def _align(trainee: AvatarTrainee, at: float, rays: int, every: int, resume: Path, progress: Progress) -> None:
    _save(trainee, resume)
    trainee.schedule(at)  # a state that was taken up again right here has seen none
    align_pictures(trainee.model, trainee.data.train_dataset.capture, rays, every, progress)
    trainee.optimizers["refinement"].state.clear()  # it knows where corrections were heading before


def _train(trainee: AvatarTrainee, until: int, steps: int, resume: Path, progress: Progress) -> None:
    saved = time.monotonic()
    try:
        while trainee.steps < until:
            trainee.step(trainee.steps / steps)
            progress("correcting poses by an avatar", trainee.steps, steps)
            if time.monotonic() - saved > SAVE_EVERY_S:
                _save(trainee, resume)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(trainee, resume)
        raise


def _save(trainee: AvatarTrainee, path: Path) -> None:
    """What cannot be written is left: the training needs no disk, and goes on."""
    optimizers = {name: optimizer.state_dict() for name, optimizer in trainee.optimizers.items()}
    partial = path.with_suffix(".partial")
    try:
        torch.save({"steps": trainee.steps, "model": trainee.model.state_dict(), "optimizers": optimizers}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter for a full disk
        partial.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[0]
        CONSOLE.print(f"[bold yellow]Warning: {path} cannot be written ({reason}). Interrupted now, the polish would begin anew.")


def _restore(trainee: AvatarTrainee, path: Path) -> None:
    """Go on from a saved state; one that cannot be read or is of another capture does not count."""
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location=trainee.device, weights_only=True)
        trainee.model.load_state_dict(state["model"])
        for name, optimizer in trainee.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        trainee.steps = int(state["steps"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError):
        path.unlink(missing_ok=True)
