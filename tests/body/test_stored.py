"""A template that was stored comes back through the strict reader."""

import numpy as np

from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.capture.rig_files import load_template


def test_a_template_survives_the_disk(portrait: BodyModel, tmp_path):
    stored(portrait.template).save(tmp_path / "template.npz")
    back = load_template(tmp_path / "template.npz")
    np.testing.assert_allclose(back.vertices, portrait.template.vertices, atol=1e-7)
    assert back.expression_names == portrait.template.expression_names
    assert back.region_names == portrait.template.region_names
    assert "CC0" in back.license
