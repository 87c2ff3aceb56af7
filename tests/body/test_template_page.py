"""The template page: its controls reach the mesh that is drawn."""

import socket

import numpy as np
import pytest

from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.viewer.template_page import TemplatePage


@pytest.fixture(scope="module")
def page(portrait: BodyModel):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    page = TemplatePage(stored(portrait.template), port)
    yield page
    page.server.stop()


def test_sliders_pose_the_template_and_reset_brings_it_back(page, portrait):
    assert len(page._sliders) == 52 + 3 * len(portrait.template.joint_names)
    page.expression[0, portrait.template.expression_names.index("jawOpen")] = 1.0
    page.rotations[0, portrait.template.joint_names.index("head"), 2] = 0.5
    page.redraw()
    assert np.abs(page.posed() - portrait.template.vertices).max() > 0.02
    page.reset()
    np.testing.assert_allclose(page.posed(), portrait.template.vertices, atol=1e-5)


def test_regions_are_coloured_and_hidden(page, portrait):
    whole = sum(len(f) for f, _ in page.parts().values())
    assert {"skin", "teeth", "eyes", "mouth_interior"} <= set(page.parts()) and "lips" not in page.parts()
    page.by_region = True
    assert set(page.parts()) == {n for n in portrait.template.region_names if n != "cap"}
    assert sum(len(f) for f, _ in page.parts().values()) == whole
    page.hidden.add("teeth")
    page.redraw()
    assert "teeth" not in page.parts() and "teeth" not in page.ui.meshes
