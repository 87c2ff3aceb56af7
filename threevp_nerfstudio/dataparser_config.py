"""The dataparser's registration.

nerfstudio loads this module while its data managers are half imported, so it may import nothing that needs them.
"""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from threevp_nerfstudio.data.dataparser import ThreeVPDataParserConfig

threevp_dataparser = DataParserSpecification(
    config=ThreeVPDataParserConfig(),
    description="Tracked monocular portrait captures (transforms.json, template.npz, motion.npz).",
)
