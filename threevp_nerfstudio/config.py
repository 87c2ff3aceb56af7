"""The methods: `threevp` for a CUDA device, `threevp-small` for a CPU. Both come from one function."""

from __future__ import annotations

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from threevp_nerfstudio.data.datamanager import ThreeVPDataManagerConfig
from threevp_nerfstudio.engine.optimizers import AdamConfig, DecayConfig
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig
from threevp_nerfstudio.model.encodings import HashGridConfig
from threevp_nerfstudio.model.field import FieldConfig
from threevp_nerfstudio.model.model import ThreeVPModelConfig
from threevp_nerfstudio.pipeline import ThreeVPPipelineConfig


def method(
    name: str,
    description: str,
    *,
    steps: int,
    rays: int,
    fresh_rays: int,
    frames: int,
    grid: HashGridConfig,
    sample_step: float,
    bank: int,
    chunk: int,
    device: str,
) -> MethodSpecification:
    """A method of the given size. The learning rates and everything else are shared."""

    def optimizer(lr: float) -> dict:
        return {"optimizer": AdamConfig(lr=lr), "scheduler": DecayConfig(steps=steps)}

    trainer = ThreeVPTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=1000,
        steps_per_eval_batch=500,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=max(steps, 1_000_000),
        mixed_precision=False,
        pipeline=ThreeVPPipelineConfig(
            datamanager=ThreeVPDataManagerConfig(train_num_rays_per_batch=fresh_rays, frames_per_step=frames),
            model=ThreeVPModelConfig(
                field_config=FieldConfig(grid=grid),
                rays_per_step=rays,
                bank_size=bank,
                eval_num_rays_per_chunk=chunk,
                sample_step=sample_step,
                blendfields_start=steps // 4,
                average_start=steps // 2,
            ),
        ),
        optimizers={
            "grid": optimizer(4e-2),
            "networks": optimizer(1.6e-2),
            "blendfields": optimizer(2e-2),
            "refinement": optimizer(2e-2),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer",
    )
    trainer.machine.device_type = device
    return MethodSpecification(config=trainer, description=description)


threevp = method(
    "threevp",
    "Animatable 360° portrait avatar from a tracked monocular capture.",
    steps=20_000,
    rays=4096,
    fresh_rays=512,
    frames=4,
    grid=HashGridConfig(levels=16, features=2, log2_size=18, coarsest=16, finest=2048),
    sample_step=0.003,
    bank=1 << 18,
    chunk=1 << 19,
    device="cuda",
)

threevp_small = method(
    "threevp-small",
    "Animatable 360° portrait avatar, sized for a CPU: about five minutes on two cores.",
    steps=6_000,
    rays=1024,
    fresh_rays=128,
    frames=1,
    grid=HashGridConfig(levels=16, features=2, log2_size=16, coarsest=16, finest=1024),
    sample_step=0.004,
    bank=1 << 16,
    chunk=1 << 16,
    device="cpu",
)
