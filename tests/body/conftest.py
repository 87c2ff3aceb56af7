"""Bodies that several tests share. The first construction of Anny on a machine takes 40 s, later ones about 2 s."""

from __future__ import annotations

import pytest

from threevp_nerfstudio.body.anny_body import anny_body
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop


@pytest.fixture(scope="session")
def anny() -> BodyModel:
    return anny_body()


@pytest.fixture(scope="session")
def portrait(anny: BodyModel) -> BodyModel:
    """Head, neck, torso and upper arms of Anny."""
    return crop(anny)
