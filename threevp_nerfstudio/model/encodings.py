"""Encodings: the hash grid behind one interface, and spherical harmonics of directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Implementation = Literal["warp", "torch", "tcnn"]


@dataclass
class HashGridConfig:
    """Sizes of a multiresolution hash grid (Müller et al. 2022)."""

    levels: int = 16
    """Number of resolutions."""
    features: int = 2
    """Values per entry and level."""
    log2_size: int = 16
    """log2 of the entries per level."""
    coarsest: int = 16
    """Cells along the longest side of the canonical box, coarsest level."""
    finest: int = 1024
    """The same of the finest level. Half the size of a pixel on the subject is enough."""


class HashGrid(nn.Module):
    """Learned features at points of the unit cube."""

    def __init__(self, config: HashGridConfig, implementation: Implementation = "warp") -> None:
        super().__init__()
        self.implementation = implementation
        self.out_dim = config.levels * config.features
        growth = (config.finest / config.coarsest) ** (1.0 / max(config.levels - 1, 1))
        resolutions = [int(config.coarsest * growth**i + 1e-6) for i in range(config.levels)]
        self.register_buffer("resolutions", torch.tensor(resolutions, dtype=torch.int32), persistent=False)
        if implementation == "tcnn":
            self.encoding = _tcnn_grid(config, growth)
            return
        table = torch.empty(config.levels, 2**config.log2_size, config.features)
        self.table = nn.Parameter(nn.init.uniform_(table, -1e-4, 1e-4))

    def forward(self, x: Float[Tensor, "N 3"], moving: Bool[Tensor, "N"] | None = None) -> Float[Tensor, "N D"]:
        """Features at `x`. `moving`: points whose gradient will be asked for; None: all."""
        if self.implementation == "tcnn":
            return self.encoding(x).float()
        if self.implementation == "torch":
            from threevp_nerfstudio.kernels.hash_grid import hash_encode_torch as encode
        else:
            from threevp_nerfstudio.kernels.hash_grid import hash_encode as encode
        return encode(x, self.table, self.resolutions, moving)


def _tcnn_grid(config: HashGridConfig, growth: float) -> nn.Module:
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # tinycudann raises OSError without a CUDA device
        raise ImportError(
            f'implementation = "tcnn" needs tinycudann and a CUDA device ({error}). Install it with `pip install '
            '"git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"`, or choose "warp".'
        ) from error
    return tinycudann.Encoding(
        3,
        {
            "otype": "HashGrid",
            "n_levels": config.levels,
            "n_features_per_level": config.features,
            "log2_hashmap_size": config.log2_size,
            "base_resolution": config.coarsest,
            "per_level_scale": growth,
        },
    )


def spherical_harmonics(d: Float[Tensor, "*n 3"], degree: int) -> Float[Tensor, "*n D"]:
    """Real spherical harmonics of bands 1 to `degree` (at most 3) of unit vectors, up to constant factors.

    Band 0 is left out: it is constant, and the networks have biases. Scaled to about unit size.
    """
    x, y, z = d.unbind(-1)
    terms = [x, y, z]
    if degree >= 2:
        terms += [x * y * 2, y * z * 2, x * z * 2, x * x - y * y, (3 * z * z - 1) / 2]
    if degree >= 3:
        terms += [
            y * (3 * x * x - y * y),
            4 * x * y * z,
            y * (5 * z * z - 1) / 2,
            z * (5 * z * z - 3) / 2,
            x * (5 * z * z - 1) / 2,
            2 * z * (x * x - y * y),
            x * (x * x - 3 * y * y),
        ]
    if degree > 3:
        raise ValueError(f"spherical harmonics up to degree 3 are available, {degree} was asked for")
    return torch.stack(terms, -1)
