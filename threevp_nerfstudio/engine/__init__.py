"""Trainer, optimisers and schedulers: small corrections to nerfstudio's."""
