"""360° volumetric portrait avatars from one camera, as a nerfstudio method."""

__version__ = "0.1.0"
