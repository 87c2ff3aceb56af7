"""What makes no sense is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.polish.stage import check_settings
from threevp_nerfstudio.tracking.settings import TrackSettings


@pytest.mark.parametrize(("setting", "value"), [("val_share", 1.5), ("val_share", -0.1), ("polish_steps", 3), ("workers", 0)])
def test_refused_before_any_work(setting: str, value: float, tmp_path: Path):
    with pytest.raises(FootageError, match=setting.replace("_", "-")):
        check_settings(TrackSettings(output=tmp_path, **{setting: value}))
