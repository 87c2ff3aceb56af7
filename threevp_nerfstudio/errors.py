"""Errors that a user can act on. Each says what was seen, where, and what to do about it."""

from __future__ import annotations


class ThreeVPError(Exception):
    """Base of all errors of this package that are meant for the user rather than for a debugger."""


class CaptureError(ThreeVPError):
    """A capture folder, template or motion that cannot be used as it is."""


class TemplateError(ThreeVPError):
    """A body model, scan or rigged template that cannot be used as it is."""


class CheckpointError(ThreeVPError):
    """A checkpoint that does not belong to the data or the settings it is loaded with."""


class PoseError(ThreeVPError):
    """A pose, drive or camera path that this avatar cannot follow."""


class FootageError(ThreeVPError):
    """A video, or pictures, that cannot be tracked as they are."""


class TrackError(ThreeVPError):
    """Tracking went wrong at a frame, or a stage lacks what an earlier one should have left."""


class TrainingError(ThreeVPError):
    """Training cannot go on. What was learned so far is on disk; the message says where."""
