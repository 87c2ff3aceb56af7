"""`threevp join`: a film from the folder of PNG files that `threevp animate` wrote, in shards or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image
from rich.console import Console

from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.film import progress
from threevp_nerfstudio.render.interrupts import interrupts
from threevp_nerfstudio.render.outputs import (
    OutputSpec,
    check_writable,
    is_folder,
    open_output,
    picture_path,
    read_manifest,
)
from threevp_nerfstudio.render.pixels import background_of, over_color, with_alpha


@dataclass
class Join:
    """Join the pictures of a folder into a film."""

    folder: tyro.conf.Positional[Path]
    """Folder that threevp animate wrote."""
    output: Path | None = None
    """.mp4, .webm or .gif; default: the folder's name with .mp4, or with .webm where the pictures are transparent."""
    fps: float | None = None
    """Pictures per second; default: as rendered."""
    background: str | None = None
    """A colour behind transparent pictures; default: they stay transparent."""

    def main(self) -> None:
        output = self.join()
        Console().print(f"Film: {output.absolute()}", soft_wrap=True)

    def join(self) -> Path:
        """Write the film and return its path.

        Raises:
            ThreeVPError: pictures are missing or damaged, or the film cannot be written.
        """
        spec, background = self.check()
        with interrupts() as interrupt, open_output(spec, {}) as film:
            for index in progress(list(range(spec.count)), "Joining"):
                picture = read_picture(self.folder, index, (spec.width, spec.height))
                if background is not None:
                    picture = over_color(with_alpha(picture), background)
                with interrupt.held():
                    film.write(index, with_alpha(picture) if spec.alpha else picture[..., :3])
            interrupt.hold()
        return spec.path

    def check(self) -> tuple[OutputSpec, tuple[float, float, float] | None]:
        """Refuse, before anything is written, what cannot become a film. Raises `ThreeVPError`."""
        about = read_manifest(self.folder)
        alpha = bool(about["alpha"])
        background = None if self.background is None else background_of(self.background)
        keep_alpha = alpha and background is None
        output = self.output or self.folder.with_suffix(".webm" if keep_alpha else ".mp4")
        if is_folder(output):
            raise ThreeVPError(f"--output {output}: a film is written; give it the ending .mp4, .webm or .gif.")
        spec = OutputSpec(
            output, about["width"], about["height"], self.fps or about["fps"], about["count"], keep_alpha
        )
        spec.check()
        missing = [i for i in range(spec.count) if not picture_path(self.folder, i).is_file()]
        if missing:
            raise ThreeVPError(
                f"{self.folder}: {len(missing)} of {spec.count} pictures are missing, the first is "
                f"{picture_path(self.folder, missing[0]).name}. Run the shard of threevp animate that makes it again; it goes "
                "on where it stopped."
            )
        check_writable(output)
        return spec, background


def read_picture(folder: Path, index: int, size: tuple[int, int]) -> UInt8[Array, "h w c"]:
    """A picture of a folder, of the size that its film.json says. Raises `ThreeVPError`."""
    path = picture_path(folder, index)
    try:
        with Image.open(path) as picture:
            seen, mode = picture.size, picture.mode
            pixels = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise ThreeVPError(f"{path}: cannot be decoded ({error}); delete it and render it again.") from error
    if seen != size or mode not in ("RGB", "RGBA"):
        raise ThreeVPError(f"{path}: is {seen[0]} x {seen[1]} ({mode}); {size[0]} x {size[1]} RGB or RGBA is expected.")
    return pixels
