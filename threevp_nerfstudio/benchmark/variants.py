"""The ablations: changes of a method's configuration or of the capture, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from threevp_nerfstudio.benchmark.captures import Edit, thin_behind
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig

Change = Callable[[ThreeVPTrainerConfig], None]
REDUCED_RIG = ("jawOpen",)
"""All that moves the mesh in the reduced rig: what a coarse tracker gives."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    says: str
    """What is different."""
    changes: tuple[Change, ...] = ()
    edit: Edit | None = None

    def apply(self, config: ThreeVPTrainerConfig) -> None:
        for change in self.changes:
            change(config)


def expression(kind: Literal["blendfields", "color", "none"]) -> Change:
    """How expression enters beside the mesh."""

    def change(config: ThreeVPTrainerConfig) -> None:
        config.pipeline.model.field_config.expression = kind

    return change


def fields(count: int) -> Change:
    """K, the number of blendfields."""

    def change(config: ThreeVPTrainerConfig) -> None:
        config.pipeline.model.field_config.blendfields.num_fields = count

    return change


def unbalanced(config: ThreeVPTrainerConfig) -> None:
    """Frames drawn uniformly."""
    config.pipeline.datamanager.balance_views = False
    config.pipeline.datamanager.balance_expressions = False


def uniform_pixels(config: ThreeVPTrainerConfig) -> None:
    config.pipeline.datamanager.pixels.balanced = False


def mapping_mlp(config: ThreeVPTrainerConfig) -> None:
    config.pipeline.model.field_config.blendfields.mapping = "mlp"


def reduced_rig(config: ThreeVPTrainerConfig) -> None:
    """Only the jaw opens; all coefficients drive the fields all the same."""
    config.pipeline.model.mesh_expressions = REDUCED_RIG


def view_for_light(config: ThreeVPTrainerConfig) -> None:
    config.pipeline.model.field_config.appearance = "view"


def density_blind_to_views(config: ThreeVPTrainerConfig) -> None:
    config.pipeline.model.field_config.grain = 0.0


def fresh_rays_only(config: ThreeVPTrainerConfig) -> None:
    """No bank of mapped rays; as many rays in a step."""
    config.pipeline.datamanager.train_num_rays_per_batch = config.pipeline.model.rays_per_step
    config.pipeline.model.bank_size = 0


VARIANTS = {
    v.name: v
    for v in (
        Variant("full", "the method as it is"),
        Variant("coarse-only", "no blendfields: the mesh alone deforms", (expression("none"),)),
        Variant(
            "color", "density and colour conditioned on expression, in place of deformation", (expression("color"),)
        ),
        Variant("unbalanced", "frames drawn uniformly", (unbalanced,)),
        Variant("uniform-pixels", "pixels drawn uniformly over the picture", (uniform_pixels,)),
        Variant("k-4", "4 blendfields", (fields(4),)),
        Variant("k-all", "one blendfield per channel", (fields(0),)),
        Variant("mapping-mlp", "coefficients of the 16 blendfields from an MLP (the paper's)", (mapping_mlp,)),
        Variant("reduced-blendfields", "only jawOpen moves the mesh; blendfields", (reduced_rig,)),
        Variant("reduced-color", "only jawOpen moves the mesh; colour blending", (reduced_rig, expression("color"))),
        Variant("reduced-none", "only jawOpen moves the mesh; coarse only", (reduced_rig, expression("none"))),
        Variant("view", "colour sees the view direction in place of the light", (view_for_light,)),
        Variant("no-grain", "density is the same from everywhere", (density_blind_to_views,)),
        Variant("fresh-rays", "no bank of mapped rays", (fresh_rays_only,)),
        Variant("thin-balanced", "every tenth frame behind 90 degrees; balanced", (), thin_behind()),
        Variant(
            "thin-unbalanced",
            "every tenth frame behind 90 degrees; frames drawn uniformly",
            (unbalanced,),
            thin_behind(),
        ),
    )
}
