"""The person's template from the turn: shape, pose, camera and colours, fitted to silhouettes, landmarks and colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.tracking.fitted import FittedTemplate, Turn
from threevp_nerfstudio.tracking.footage import Footage

__all__ = ["FitOptions", "FittedTemplate", "Turn", "fit_template"]

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all."""


@dataclass(frozen=True)
class FitOptions:
    """How the template is fitted."""

    frames: int = 48
    """Pictures of the turn that the shape is fitted to."""
    working_size: int = 256
    """Longer side of the pictures that are fitted, pixels."""
    focal_known: bool = False
    """The footage's focal length comes from the user or from calibration: keep it. Otherwise it is only where the fit starts."""
    texture_size: int = 1024
    """Width and height of the baked texture."""


def fit_template(
    footage: Footage,
    options: FitOptions,
    body: BodyModel | None = None,
    template: RiggedTemplate | None = None,
    progress: Progress = lambda *_: None,
) -> FittedTemplate:
    """Fit `body` (Anny by default), or keep the shape of a given `template` and find only its poses and colours.

    Raises `TrackError`.
    """
    raise NotImplementedError
