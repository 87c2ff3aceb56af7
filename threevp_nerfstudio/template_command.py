"""`threevp template`: make the rigged template that everything downstream reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from threevp_nerfstudio.body.body_model import BodyModel, stored
from threevp_nerfstudio.body.labels import REGION_NAMES
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError


@dataclass
class Template:
    """Make template.npz: a rigged head, neck, torso and upper arms from Anny, from SMPL-X, or from your own scan.

    `threevp template`: Anny, free, nothing to download.

    `threevp template --phenotype gender 0.2 age 0.7`: another person.

    `threevp template --scan head.glb`: registered to your scan.

    `threevp template --body smplx --model-path SMPLX_NEUTRAL.npz`: SMPL-X from your own file.

    `threevp template --show`: open the result (or an existing --output) in the browser.
    """

    output: Path = Path("template.npz")
    """Where the template goes. `texture.png`, `<name>_sheet.png` and, for scans, `<name>_distances.png` go beside it."""
    body: Literal["anny", "smplx"] = "anny"
    """Body model. Anny is free (CC0 and Apache-2.0); SMPL-X needs your own licensed file."""
    model_path: Path | None = None
    """SMPLX_*.npz, or the folder with it. Default: the environment variable THREEVP_SMPLX_MODEL."""
    gender: Literal["neutral", "female", "male"] = "neutral"
    """Which SMPL-X file to take from a folder."""
    segmentation: Path | None = None
    """SMPL-X vertex parts (smplx_vert_segmentation.json); without, regions follow from skin weights and landmarks."""
    betas: int = 10
    """SMPL-X: number of shape components."""
    expressions: int = 50
    """SMPL-X: number of expression components, 1 to 100."""
    phenotype: dict[str, float] = field(default_factory=dict)
    """Shape parameters by name, e.g. gender 0.2 age 0.7 nose-hump-incr 0.5 (Anny), or beta0 1.5 (SMPL-X)."""
    list_parameters: bool = False
    """Print the names and ranges of the shape parameters and stop."""
    jaw: bool = False
    """Anny: add a jaw joint. Without, the mouth opens by the action jawOpen, which the expression basis has anyway."""
    torso: float = 0.33
    """Metres of torso kept below the base of the neck. A scan's own extent decides when --scan is given."""
    closed: bool = False
    """Put caps over the cuts at torso and arms."""
    subdivide: tuple[str, ...] = ()
    """Regions whose triangles are split into four, e.g. face lips. Twice named, split twice."""
    offset: dict[str, float] = field(default_factory=dict)
    """Metres of hair or clothes over a region, e.g. scalp 0.02 torso 0.008, rising smoothly from its border."""
    scan: Path | None = None
    """A scan of the person (.obj, .ply, .glb, .stl), neutral face, mouth closed, to register the body model to."""
    mesh: Literal["body", "scan"] = "body"
    """With --scan: keep the body model's mesh, wrapped onto the scan, or the scan's own mesh, rigged."""
    landmarks: Path | None = None
    """JSON of points on the scan in its own coordinates, {"nose_tip": [x, y, z], ...}: four or more of those that
    --list-parameters names. With them no guess is needed."""
    scan_unit: Literal["m", "cm", "mm", "in"] | None = None
    """Unit of the scan, if you know it."""
    scan_up: str | None = None
    """Axis of the scan that points to the crown, e.g. +y."""
    scan_front: str | None = None
    """Axis of the scan that the face looks along, e.g. +z."""
    accept_guess: bool = False
    """Go on with the guessed unit and axes. Look at the picture that was written before you say so."""
    texture_size: int = 1024
    """Width and height of the baked texture in pixels."""
    show: bool = False
    """Open a page with joint, expression and region controls. Alone (with --output of an existing template): just show it."""
    port: int = 7008
    """Port of that page."""
    overwrite: bool = False
    """Replace an existing template."""

    def main(self) -> None:
        """Make the template, or show an existing one. Raises `TemplateError`."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if self.list_parameters:
            print(parameter_table(self.whole_body()))
            return
        if self.only_shows() and self.output.is_file():
            self.open_page(self.output)
            return
        check_output(self.output, self.overwrite, "a template", "; --show alone opens it")
        if self.scan and not self.overwrite and self.texture_path().exists():
            raise TemplateError(f"{self.texture_path()} exists and would be replaced; choose another folder, or pass --overwrite.")
        print(f"body model {self.body} ...", flush=True)
        whole = self.whole_body()
        whole = whole.at(whole.identity_from(self.phenotype))
        template = self.from_scan(whole) if self.scan else self.from_parameters(whole)
        self.write(template)
        if self.show:
            self.open_page(self.output)

    def only_shows(self) -> bool:
        """Whether nothing is asked for but a look at an existing template."""
        makes = [f.name for f in fields(self) if f.name not in ("output", "show", "port")]
        return self.show and all(getattr(self, name) == getattr(Template(), name) for name in makes)

    def texture_path(self) -> Path:
        return self.output.with_name("texture.png")

    def whole_body(self) -> BodyModel:
        """The body model before cropping, with every shape parameter."""
        if self.body == "anny":
            from threevp_nerfstudio.body.anny_body import anny_body

            return anny_body(self.jaw)
        from threevp_nerfstudio.body.smplx_body import smplx_body
        from threevp_nerfstudio.body.smplx_file import find_model, read_smplx

        file = read_smplx(find_model(self.model_path, self.gender))
        return smplx_body(file, self.betas, min(self.expressions, file.expression.shape[2]), self.segmentation)

    def from_parameters(self, whole: BodyModel) -> RiggedTemplate:
        """A template by shape parameters alone."""
        from threevp_nerfstudio.body.crop import crop

        body = self.subdivided(crop(whole, self.torso, self.closed))
        return self.with_offsets(body.template)

    def from_scan(self, whole: BodyModel) -> RiggedTemplate:
        """A template registered to the scan; writes texture and heat map."""
        from threevp_nerfstudio.body.register import heat_map, register
        from threevp_nerfstudio.body.render import save_picture
        from threevp_nerfstudio.body.scan import load_scan

        if self.subdivide or self.offset:
            raise TemplateError("--subdivide and --offset are for templates without a scan; a scan decides both itself.")
        assert self.scan is not None
        scan = load_scan(self.scan)
        for note in scan.notes:
            print(f"scan: {note}")
        similarity, landmarks = self.alignment(whole, scan)
        scan = scan.moved(similarity.apply(scan.vertices))
        placed = {n: similarity.apply(p[None])[0] for n, p in landmarks.items()}
        result = register(whole, scan, self.mesh, placed or None, self.closed, self.texture_size, lambda t: print(t, flush=True))
        for line in [n for n in result.notes if n not in scan.notes] + result.summary():
            print(line)
        heat = self.beside("_distances.png")
        save_picture(heat_map(result), heat)
        print(f"distances drawn in {heat}")
        if result.texture is not None:
            save_picture(result.texture, self.texture_path())
            print(f"texture in {self.texture_path()}")
        return result.template

    def alignment(self, whole: BodyModel, scan):
        """Similarity of the scan to the world, and landmarks on it in its own frame. Asks for confirmation of a guess."""
        from threevp_nerfstudio.body import align
        from threevp_nerfstudio.body.crop import crop

        body = crop(whole, self.torso)
        if self.landmarks is not None:
            points = align.read_landmarks(self.landmarks, body)
            return align.align_by_landmarks(points, body), points
        if bool(self.scan_up) != bool(self.scan_front):
            raise TemplateError("--scan-up and --scan-front come together.")
        axes = (self.scan_up, self.scan_front) if self.scan_up and self.scan_front else None
        if axes and self.scan_unit:
            guess = align.align_stated(scan, body, self.scan_unit, *axes)
            print(f"scan: {guess.text()}")
            return guess.similarity, {}
        print(f"guessing {'the unit' if axes else 'axes' if self.scan_unit else 'unit and axes'} of the scan ...", flush=True)
        guess = align.guess_alignment(scan, body, self.scan_unit, axes)
        print(f"scan, guessed: {guess.text()}")
        if scan.stated_frame and (guess.unit, guess.up) != ("m", "+y"):
            print("scan: glTF files are in metres with +y up by their standard; this one looks otherwise. Is the guess right?")
        if not self.accept_guess:
            picture = self.beside("_guess.png")
            draw_guess(scan, guess, body, picture)
            flags = f"--scan-unit {guess.unit} " if guess.unit in align.UNITS else ""
            raise TemplateError(
                f"the scan's unit and axes are guesses: {guess.text()}. Look at {picture}: the head must be upright and look "
                f"out of the first picture, as large as the body model beside it. If so, run again with --accept-guess; if not, with "
                f"{flags}--scan-up {guess.up} --scan-front {guess.front} put right, or with --landmarks."
            )
        return guess.similarity, {}

    def subdivided(self, body: BodyModel) -> BodyModel:
        from threevp_nerfstudio.body.mesh import subdivide
        from threevp_nerfstudio.body.personal import chosen_faces

        for region in self.subdivide:
            chosen = chosen_faces(body.template, (region,))
            body = body.remapped(subdivide(body.template.faces.astype(np.int64), chosen, len(body.template.vertices)))
        return body

    def with_offsets(self, template: RiggedTemplate) -> RiggedTemplate:
        from threevp_nerfstudio.body.personal import region_offsets

        return region_offsets(template, self.offset).apply(template) if self.offset else template

    def write(self, template: RiggedTemplate) -> None:
        """Store the template, read it back through the strict reader, and draw the contact sheet."""
        from threevp_nerfstudio.body.contact_sheet import contact_sheet
        from threevp_nerfstudio.body.render import save_picture
        from threevp_nerfstudio.capture.rig_files import load_template

        template = stored(template)
        template.save(self.output)
        load_template(self.output)
        sheet = self.beside("_sheet.png")
        save_picture(contact_sheet(template), sheet)
        counts = np.bincount(template.face_regions, minlength=len(template.region_names))
        parts = ", ".join(f"{n} {c}" for n, c in zip(template.region_names, counts, strict=True) if c)
        print(
            f"{self.output}: {len(template.vertices)} vertices, {len(template.faces)} triangles, "
            f"{len(template.joint_names)} joints, {len(template.expression_names)} expressions\n"
            f"triangles by region: {parts}\nlicence: {template.license}\npictures in {sheet}"
        )

    def open_page(self, path: Path) -> None:
        from threevp_nerfstudio.capture.rig_files import load_template
        from threevp_nerfstudio.viewer.template_page import TemplatePage

        TemplatePage(load_template(path), self.port).serve_forever()

    def beside(self, ending: str) -> Path:
        return self.output.with_name(self.output.stem + ending)


def check_output(path: Path, overwrite: bool, what: str, hint: str = "") -> None:
    """Refuse an output that is no .npz or exists, before work is done; make its folder. Raises `TemplateError`."""
    if path.suffix != ".npz":
        raise TemplateError(f"--output {path}: {what} is an .npz file.")
    if path.exists() and not overwrite:
        raise TemplateError(f"{path} exists; pass --overwrite to replace it{hint}.")
    path.parent.mkdir(parents=True, exist_ok=True)


def parameter_table(body: BodyModel) -> str:
    """Names and ranges of the shape parameters, landmarks and regions."""
    identity = body.identity
    rows = [
        f"  {n:<42} {low:g} to {high:g}, default {d:g}"
        for n, low, high, d in zip(identity.names, identity.lower, identity.upper, identity.default, strict=True)
    ]
    return "\n".join(
        [f"shape parameters of {body.name} (--phenotype NAME VALUE ...):"]
        + rows
        + ["landmarks (--landmarks):", "  " + ", ".join(body.landmarks), "regions (--subdivide, --offset):", "  " + ", ".join(REGION_NAMES)]
    )


def draw_guess(scan, guess, body: BodyModel, path: Path) -> None:
    """The scan as guessed and the body model at the same scale, from the front and from the subject's left."""
    from threevp_nerfstudio.body.render import grid, save_picture, shade

    placed = guess.similarity.apply(scan.vertices)
    both = np.concatenate([placed, body.template.vertices])
    centre, radius = (both.min(0) + both.max(0)) / 2, float(np.ptp(both, axis=0).max()) / 2 * 1.05
    pictures = []
    for vertices, faces in ((placed, scan.faces), (body.template.vertices, body.template.faces)):
        grey = np.full((len(faces), 3), 200.0)
        pictures += [shade(vertices, faces, grey, yaw, 360, centre, radius) for yaw in (0.0, np.pi / 2)]
    save_picture(grid(pictures, 4, ["scan, as guessed: front", "its left side", "body model: front", "its left side"]), path)


@dataclass
class ConvertExpressions:
    """Convert expression channels between templates' body models (Anny's ARKit names, SMPL-X's components).

    Fit: `threevp convert-expressions --to smplx --model-path SMPLX_NEUTRAL.npz --output anny_to_smplx.npz`

    Apply: `threevp convert-expressions --conversion anny_to_smplx.npz --motion motion.npz --source template.npz
    --target other.npz --output converted.npz`
    """

    output: Path
    """The conversion matrix, or with --motion the converted motion."""
    to: Literal["anny", "smplx"] = "smplx"
    """Body model whose channels are wanted; the other one is the source."""
    model_path: Path | None = None
    """SMPLX_*.npz, or THREEVP_SMPLX_MODEL."""
    expressions: int = 50
    """SMPL-X: number of expression components."""
    jaw: bool = False
    """Anny with its jaw joint, for templates made with `threevp template --jaw`."""
    overwrite: bool = False
    """Replace an existing --output."""
    conversion: Path | None = None
    """A conversion made before, to apply to --motion."""
    motion: Path | None = None
    """motion.npz of the source template."""
    source: Path | None = None
    """template.npz that the motion belongs to."""
    target: Path | None = None
    """template.npz that the converted motion shall drive."""

    def main(self) -> None:
        """Fit a conversion, or apply one. Raises `TemplateError`."""
        given = [p is not None for p in (self.conversion, self.motion, self.source, self.target)]
        if any(given):
            if not all(given):
                raise TemplateError("--conversion, --motion, --source and --target come together.")
            check_output(self.output, self.overwrite, "a motion")
            self.apply()
        else:
            check_output(self.output, self.overwrite, "a conversion")
            self.fit()

    def apply(self) -> None:
        """Convert a motion by a stored conversion."""
        from threevp_nerfstudio.body.expressions import JAW_COMPONENTS, convert_motion, load_conversion
        from threevp_nerfstudio.capture.rig_files import load_motion, load_template

        assert self.conversion and self.motion and self.source and self.target
        source, target = load_template(self.source), load_template(self.target)
        conversion = load_conversion(self.conversion)
        motion = convert_motion(load_motion(self.motion, source), conversion, source, target)
        names = ("joint_rotations", "root_translation", "expression")
        floats = {k: v.astype(np.float32) for k in names if (v := getattr(motion, k)) is not None}
        replace(motion, **floats).save(self.output)
        missing = [n for n in conversion.target_names if n not in (*target.expression_names, *JAW_COMPONENTS)]
        print(f"{self.output}: {len(motion)} frames for {len(target.expression_names)} channels")
        if missing:
            print(f"{len(missing)} channels of the conversion are not in the target template and were left out ({missing[0]} ...)")

    def fit(self) -> None:
        """Make and store a conversion, and say what it loses."""
        from threevp_nerfstudio.body.expressions import fit_conversion

        anny = Template(body="anny", jaw=self.jaw).whole_body()
        smplx = Template(body="smplx", model_path=self.model_path, expressions=self.expressions).whole_body()
        result = fit_conversion(*((anny, smplx) if self.to == "smplx" else (smplx, anny)))
        result.save(self.output)
        print(f"{self.output}\n{result.report()}")
