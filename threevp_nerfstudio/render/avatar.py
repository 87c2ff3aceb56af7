"""A trained avatar, loaded for films and sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from threevp_nerfstudio.errors import CheckpointError, ThreeVPError
from threevp_nerfstudio.render.orbit import Framing, framing_of

if TYPE_CHECKING:
    from threevp_nerfstudio.animation.controls import AvatarControls
    from threevp_nerfstudio.capture.capture import Capture
    from threevp_nerfstudio.model.model import ThreeVPModel


@dataclass(frozen=True)
class Avatar:
    """A model, the capture that it was trained on, and how that capture frames its subject."""

    model: ThreeVPModel
    capture: Capture
    framing: Framing
    checkpoint: Path

    @property
    def controls(self) -> AvatarControls:
        from threevp_nerfstudio.animation.controls import AvatarControls

        return AvatarControls.of(self.model)

    @property
    def own_seconds(self) -> float:
        """Length of its own performance: the dynamic part of the capture, or all of it where there is none."""
        frames = self.capture.frames
        dynamic = frames.sequence == "dynamic"
        times = frames.times[dynamic] if dynamic.any() else frames.times
        return max(float(times.max() - times.min()), 1e-9)


def check_config(config: Path) -> None:
    """Refuse, before anything is loaded, a config.yml that is not there.

    Raises:
        ThreeVPError: with what to give instead.
    """
    if not config.is_file():
        raise ThreeVPError(
            f"{config}: no such file. --load-config takes the config.yml that ns-train printed at its end "
            "(outputs/NAME/METHOD/TIME/config.yml)."
        )
    checkpoint_of(config)


def checkpoint_of(config: Path) -> Path:
    """The newest checkpoint beside a config.yml. Raises `CheckpointError` where there is none."""
    checkpoints = sorted((config.parent / "nerfstudio_models").glob("step-*.ckpt"))
    if not checkpoints:
        raise CheckpointError(f"{config.parent / 'nerfstudio_models'}: no checkpoint there. Has training saved one yet?")
    return checkpoints[-1]


def load_avatar(config: Path) -> Avatar:
    """The trained avatar of a config.yml.

    Raises:
        CheckpointError: the file is not of a trained avatar.
    """
    checkpoint = checkpoint_of(config)
    from nerfstudio.utils.eval_utils import eval_setup

    from threevp_nerfstudio.model.model import ThreeVPModel

    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    model = pipeline.model
    if not isinstance(model, ThreeVPModel):
        raise CheckpointError(f"{config}: that is a {type(model).__name__}, not a threevp avatar.")
    return avatar_of(model, pipeline.datamanager.train_dataset.capture, checkpoint)


def avatar_of(model: ThreeVPModel, capture: Capture, checkpoint: Path) -> Avatar:
    """An avatar from its parts."""
    frames = capture.frames
    vertices = model.canonical.vertices.cpu().numpy()
    middle = (vertices.min(0) + vertices.max(0)) / 2
    framing = framing_of(frames.camera_to_world, frames.focal[:, 1], frames.size[:, 1], middle)
    return Avatar(model, capture, framing, checkpoint)
