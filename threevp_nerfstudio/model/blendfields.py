"""Blendfields: learned displacement fields of canonical space, blended by coefficients of the expression.

    x^ = x_c + scale * sum_k w_k(jaw, psi) B_k(x_c)          (arXiv 2312.05311, section 3.3)

The coefficients come from a mapping network of jaw pose and expression, never of the view. They vanish at neutral, so
a neutral face is not displaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threevp_nerfstudio.model.encodings import HashGrid, HashGridConfig, Implementation
from threevp_nerfstudio.model.networks import layers, mlp


@dataclass
class BlendfieldConfig:
    """Size and kind of the blendfields."""

    num_fields: int = 16
    """K, the number of displacement fields; 0: one per conditioning channel, of which a linear mapping has use for no more. 16
    measure a little better than 52 on held-out expressions, and steps are cheaper."""
    mapping: Literal["linear", "mlp"] = "linear"
    """Mapping network from jaw pose and expression to coefficients. Linear measures best on held-out expressions."""
    scale: float = 0.01
    """Metres of displacement per unit of a field's output."""
    grid: HashGridConfig = field(
        default_factory=lambda: HashGridConfig(levels=8, features=4, log2_size=14, coarsest=16, finest=96)
    )
    """Hash grid of the fields. Displacements are smooth: fine levels only overfit."""
    hidden: int = 64
    """Width of the fields' network."""


class MappingNetwork(nn.Module):
    """Coefficients of the blendfields from the conditioning (jaw pose and expression); zero at neutral."""

    def __init__(self, num_conditioning: int, num_fields: int, kind: Literal["linear", "mlp"]) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            weight = torch.eye(num_fields, num_conditioning)
            if num_fields < num_conditioning:
                generator = torch.Generator().manual_seed(0)
                weight = torch.linalg.qr(torch.randn(num_conditioning, num_fields, generator=generator))[0].T
            self.weight = nn.Parameter(weight.contiguous())
        else:
            self.net = mlp([num_conditioning, 64, 64, num_fields])

    def forward(self, conditioning: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        if self.kind == "linear":
            return conditioning @ self.weight.T
        return self.net(conditioning) - self.net(torch.zeros_like(conditioning[:1]))


class Blendfields(nn.Module):
    """K displacement fields that share one smooth hash grid."""

    def __init__(self, num_conditioning: int, config: BlendfieldConfig, implementation: Implementation) -> None:
        super().__init__()
        self.scale = config.scale
        self.num_fields = config.num_fields or num_conditioning
        if config.mapping == "linear":
            self.num_fields = min(self.num_fields, num_conditioning)
        self.mapping = MappingNetwork(num_conditioning, self.num_fields, config.mapping)
        self.grid = HashGrid(config.grid, "warp" if implementation == "tcnn" else implementation)
        self.net = mlp([self.grid.out_dim, config.hidden, self.num_fields * 3])
        nn.init.uniform_(self.net[-1].weight, -1e-3, 1e-3)
        nn.init.zeros_(self.net[-1].bias)

    def raw(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N K3"]:
        """`B_k` at points of the unit cube, side by side; `scale` makes them metres."""
        return self.net(self.grid(x))

    def fields(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N K 3"]:
        """`scale * B_k` at points of the unit cube, metres."""
        return self.scale * self.raw(x).view(-1, self.num_fields, 3)

    def forward(self, x: Float[Tensor, "N 3"], coefficients: Float[Tensor, "N K"]) -> Float[Tensor, "N 3"]:
        """Displacement in metres at points of the unit cube."""
        return torch.bmm(coefficients[:, None], self.fields(x)).squeeze(1)

    def blended(self, x: Float[Tensor, "N 3"], coefficients: Float[Tensor, "K"]) -> Float[Tensor, "N 3"]:
        """`forward` for one set of coefficients: the fields are blended in the last layer, before it meets the points."""
        first, last = self.net[0], self.net[-1]
        weight = torch.einsum("k,kdh->dh", coefficients, last.weight.view(self.num_fields, 3, -1))
        bias = coefficients @ last.bias.view(self.num_fields, 3)
        return self.scale * layers(self.grid(x), [first.weight, first.bias, weight, bias], self.net.matrix_units)
