"""The border as an avatar shows it, and mattes that are made anew with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.polish import mattes
from threevp_nerfstudio.polish.mattes import Rims
from threevp_nerfstudio.polish.rays import rays_through
from threevp_nerfstudio.tracking.mattes import border

FRAME = 3


@pytest.fixture(scope="module")
def avatar(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory):
    return tiny_trainer(tiny_capture, tmp_path_factory.mktemp("rims")).pipeline.model.eval()


@pytest.mark.parametrize("rendered", [48, 24])
def test_the_border_is_that_of_the_whole_picture(avatar, tiny_capture: Path, rendered: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mattes, "RENDERED", rendered)
    monkeypatch.setattr(mattes, "OPAQUE", 0.02)  # it was hardly trained
    capture = load_capture(tiny_capture)
    solid = np.zeros((48, 48), bool)
    solid[16:34, 14:36] = True
    band = border(solid, 3)
    step = avatar.config.sample_step
    rim = Rims(avatar, capture)(FRAME, band, solid)
    assert rim.alpha.shape == (48, 48) and rim.colour.shape == (48, 48, 3)
    far = cv2.dilate(band.astype(np.uint8), np.ones((9, 9))) == 0
    assert np.array_equal(rim.alpha[far], solid[far])
    camera = cameras_of(capture, np.array([FRAME]))
    camera.rescale_output_resolution(rendered / 48)
    assert avatar.config.sample_step == step
    monkeypatch.setattr(avatar.config, "sample_step", step * mattes.LONGER)
    with torch.no_grad():
        whole = avatar.get_outputs_for_camera(camera)
    alpha = cv2.resize(whole["accumulation"][..., 0].numpy(), (48, 48), interpolation=cv2.INTER_LINEAR)
    colour = 255 * avatar.get_rgba_image(whole)[..., :3].numpy()
    np.testing.assert_allclose(rim.alpha[band], alpha[band], atol=2e-3)
    if rendered == 48:
        seen = band & (alpha > 0.1)
        assert seen.sum() > 20
        np.testing.assert_allclose(rim.colour[seen], colour[seen], atol=0.5)


def test_poses_are_those_of_the_capture_it_is_asked_for(avatar, tiny_capture: Path):
    capture = load_capture(tiny_capture)
    Rims(avatar, capture)
    assert len(avatar.performance.motion_index) == len(capture.frames)


def test_rays_go_through_the_same_places_at_any_size(tiny_capture: Path):
    """Also at sizes that are no whole fraction of the picture's."""
    capture = load_capture(tiny_capture)
    places = np.array([[0.0, 0.0], [24.0, 24.0], [48.0, 48.0], [11.5, 40.5]])
    own = rays_through(capture, FRAME, places, (48, 48))
    reduced = rays_through(capture, FRAME, places * [17 / 48, 19 / 48], (19, 17))
    torch.testing.assert_close(reduced.directions, own.directions, atol=1e-5, rtol=0)
