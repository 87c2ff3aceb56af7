"""Stages frames, mattes, landmarks and camera: from files to `Footage`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError, TrackError
from threevp_nerfstudio.tracking import mediapipe_home
from threevp_nerfstudio.tracking.background import Background, diverse, from_plate
from threevp_nerfstudio.tracking.camera import CameraEstimate, first_estimate, refine_by_sfm, sfm_available
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.framing import automatic_crop, parse_crop
from threevp_nerfstudio.tracking.ingest import Geometry, Source, ingest, plan_geometry
from threevp_nerfstudio.tracking.landmarks import assemble, face_detector, find_in, user_landmarks
from threevp_nerfstudio.tracking.mattes import (
    Follower,
    Matting,
    learn_room,
    matte_quality,
    person_segmenter,
    read_matte,
    refine,
    user_mattes,
)
from threevp_nerfstudio.tracking.quality import exposure_notes, matte_notes, picture_quality, usable_pictures
from threevp_nerfstudio.tracking.settings import Stage, TrackSettings
from threevp_nerfstudio.tracking.split import Split, find_split, split_at
from threevp_nerfstudio.tracking.stages import Job, Workspace
from threevp_nerfstudio.tracking.store import PictureWriter, open_pictures, read_arrays, write_arrays, write_json
from threevp_nerfstudio.tracking.video import Clip, probe, resized
from threevp_nerfstudio.workers import shared

REMADE = "alpha.npy"
"""Mattes that the stages tracking and polish made anew, in their folders."""
Mattes = Literal["first", "settled", "polished"]
LATER_MATTES: dict[Mattes, tuple[Stage, ...]] = {"first": (), "settled": ("tracking",), "polished": ("polish", "tracking")}
"""Stages whose mattes are taken, the best first."""
ROOM_SAMPLES = 56
CANDIDATES = 240
FEWEST = 8
LOOKS_ROUND = 16
"""Pictures that are searched as a whole for a second face."""


@dataclass(frozen=True)
class Stored:
    """What the frames stage left."""

    rgb: UInt8[Array, "M h w 3"]
    times: Float[Array, "M"]
    clip: Int[Array, "M"]
    geometry: Geometry
    tags: dict[str, str]
    alpha: UInt8[Array, "M h w"] | None
    """Mattes that came with the pictures."""

    @classmethod
    def load(cls, workspace: Workspace) -> Stored:
        folder = workspace.root / "frames"
        arrays = read_arrays(folder / "pictures.npz")
        facts = read_json(folder / "frames.json")
        shot = slice(facts["first"], facts["last"])
        alpha = open_pictures(folder / "given_alpha.npy")[shot] if facts["has_alpha"] else None
        rgb = open_pictures(folder / "rgb.npy")[shot]
        geometry = Geometry.from_json(facts["geometry"])
        return cls(rgb, arrays["times"][shot], arrays["clip"][shot], geometry, facts["tags"], alpha)


def read_json(path: Path) -> dict:
    """Raises `TrackError`."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrackError(f"{path} cannot be read ({error}); run again from the stage that writes it (--from).") from error


def sources(settings: TrackSettings) -> list[Source]:
    """The videos that the settings name, in order. Raises `FootageError`."""
    s = settings
    if (s.video is None) == (s.static is None and s.dynamic is None):
        raise FootageError("give either --video, or --static and --dynamic.")
    if s.stride < 1 or (s.end is not None and s.end <= s.start) or s.start < 0:
        raise FootageError(f"--start {s.start:g}, --end {s.end} and --stride {s.stride} leave no picture.")
    if s.video is not None:
        return [Source(probe(s.video, s.fps), s.start, s.end, s.stride)]
    if s.static is None or s.dynamic is None:
        raise FootageError("--static (the turn) and --dynamic (the performance) come together.")
    clips = [probe(s.static, s.fps), probe(s.dynamic, s.fps)]
    a, b = clips
    if (a.width, a.height) != (b.width, b.height):
        raise FootageError(
            f"{a.path} is {a.width}x{a.height}, {b.path} {b.width}x{b.height}: both come from the same camera at the same place."
        )
    return [Source(clip, stride=s.stride) for clip in clips]


def segments(job: Job) -> bool:
    """Whether the person is segmented, MediaPipe installed for it if need be; not where the user's plate or mattes do without it."""
    if not mediapipe_home.available():
        if job.settings.plate is not None or job.settings.mattes is not None:
            return False
        if job.settings.install:
            job.say(f"getting MediaPipe {mediapipe_home.VERSION} (35 MB) from the package index into {mediapipe_home.home()} ...")
            mediapipe_home.install()
    return True


def frames_stage(job: Job) -> None:
    """Decode, cut to the subject, scale and store; find where the camera cuts."""
    folder = job.workspace.folder("frames")
    if job.settings.size < 64:
        raise FootageError(f"--size {job.settings.size} is too small to track a face; 256 or more make sense.")
    parts = sources(job.settings)
    clip: Clip = parts[0].clip
    crop = parse_crop(job.settings.crop)
    if job.settings.crop == "auto" and job.settings.mattes is None and segments(job):
        crop = automatic_crop(parts, person_segmenter, job.note)
    result = ingest(parts, plan_geometry(clip, job.settings.size, crop), folder, job.progress)
    if result.last - result.first < FEWEST:
        raise FootageError(f"{result.last - result.first} pictures are too few to track; record a turn and a performance, some 20 seconds.")
    for note in result.notes:
        job.note(note)
    if clip.transfer != "sdr":
        job.note(f"{clip.path.name} is HDR ({clip.transfer.upper()}); its colours were brought to sRGB.")
    write_arrays(folder / "pictures.npz", times=result.times, clip=result.clip)
    write_json(folder / "frames.json", {**result.as_json(), "tags": clip.tags, "fps": clip.fps, "video": str(clip.path)})


def mattes_stage(job: Job) -> None:
    """A matte for every picture; pictures without the subject are left out."""
    stored = Stored.load(job.workspace)
    folder = job.workspace.folder("mattes")
    count, height, width = stored.rgb.shape[:3]
    coarse = None
    for name in ("coarse.npy", "room.npz"):
        (folder / name).unlink(missing_ok=True)
    with PictureWriter(folder / "all_alpha.npy", (height, width)) as writer:
        if job.settings.mattes is not None:
            _user_mattes(job, stored, writer)
        elif stored.alpha is not None:
            for alpha in stored.alpha:
                writer.append(alpha)
            job.note("mattes are the alpha channel of the pictures.")
        else:
            coarse = _made_mattes(job, stored, folder, writer)
    alpha = open_pictures(folder / "all_alpha.npy")
    quality = matte_quality(alpha, coarse)
    keep = usable_pictures(quality, stored.times, job.note)
    pictures = picture_quality(stored.rgb, alpha)
    matte_notes(quality, keep, job.note)
    exposure_notes(pictures, keep, stored.times, job.note)
    write_arrays(folder / "mattes.npz", keep=keep, **vars(quality), **vars(pictures))
    _select(stored.rgb, alpha, keep, folder)


def matting(workspace: Workspace) -> Matting | None:
    """What the mattes of the tracked pictures were made of; None where they are the user's own."""
    folder = workspace.root / "mattes"
    rows = np.flatnonzero(read_arrays(folder / "mattes.npz")["keep"])
    coarse = None
    if (folder / "coarse.npy").is_file():
        stored = open_pictures(folder / "coarse.npy")
        first, last = rows[0], rows[-1] + 1
        coarse = stored[first:last] if len(rows) == last - first else stored[rows]  # a view of the file where it can be
    room = Background.load(folder / "room.npz") if (folder / "room.npz").is_file() else None
    if coarse is None and room is None:
        return None
    return Matting(coarse, room)


def _user_mattes(job: Job, stored: Stored, writer: PictureWriter) -> None:
    assert job.settings.mattes is not None
    files = user_mattes(job.settings.mattes)
    total = len(read_arrays(job.workspace.root / "frames" / "pictures.npz")["times"])
    if len(files) != total:
        raise FootageError(
            f"--mattes {job.settings.mattes} holds {len(files)} pictures, {total} were read from the video; one each is needed, in order."
        )
    first = read_json(job.workspace.root / "frames" / "frames.json")["first"]
    for i in range(len(stored.times)):
        matte = read_matte(files[first + i])
        W, H = stored.geometry.original
        if matte.shape == stored.rgb.shape[1:3]:
            writer.append(matte)
        elif matte.shape == (H, W):
            writer.append(stored.geometry.apply(matte))
        else:
            raise FootageError(f"{files[first + i]} is {matte.shape[1]}x{matte.shape[0]}, the video {W}x{H}; mattes have the video's size.")
        job.progress("reading mattes", i + 1, len(stored.times))
    job.note(f"mattes are yours, from {job.settings.mattes}.")


def _made_mattes(job: Job, stored: Stored, folder: Path, writer: PictureWriter) -> UInt8[Array, "M h w"] | None:
    """Segment and refine; returns the coarse probabilities (on disk), or None without a network."""
    count, height, width = stored.rgb.shape[:3]
    coarse: UInt8[Array, "M h w"] | None = None
    subject: list[UInt8[Array, "u v"]] = []
    if segments(job):

        def finder():
            segment = person_segmenter()
            return lambda i: segment(stored.rgb[i])

        follow = Follower()
        with PictureWriter(folder / "coarse.npy", (height, width)) as coarse_writer:
            for i, found in enumerate(shared(range(count), finder, apart=True)):
                coarse_writer.append(found)
                subject.append(follow(found))
                job.progress("finding the person", i + 1, count)
        coarse = open_pictures(folder / "coarse.npy")
        if float(np.median([(p > 127).mean() for p in coarse])) < 0.003:
            raise FootageError(
                "no person was found in most pictures. Is the subject in view, upright, and lit? For anything that is not recognised, "
                "give --plate (a picture of the empty room) or --mattes."
            )
    room = _room(job, stored, coarse)
    if room is not None:
        room.save(folder / "room.npz")
        picture = np.where(room.known[..., None], room.colour, [255, 0, 255]).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "room.png"), picture[..., ::-1])
    for i, alpha in enumerate(_refined(stored.rgb, coarse, room, subject)):
        writer.append(alpha)
        job.progress("refining mattes", i + 1, count)
    return coarse


def _refined(
    rgb: UInt8[Array, "M h w 3"], coarse: UInt8[Array, "M h w"] | None, room: Background | None, subject: list[UInt8[Array, "u v"]]
) -> Iterator[UInt8[Array, "h w"]]:
    if coarse is not None:
        yield from shared(range(len(rgb)), lambda: lambda i: refine(rgb[i], coarse[i], room, subject[i]))
        return
    before = None  # nothing else tells who is who
    for picture in rgb:
        before = refine(picture, None, room, before)
        yield before


def _room(job: Job, stored: Stored, coarse: UInt8[Array, "M h w"] | None) -> Background | None:
    """From the user's plate, else learned."""
    if job.settings.plate is not None:
        plate = _plate(job.settings.plate, stored.geometry)
        job.note(f"mattes use your picture of the empty room, {job.settings.plate.name}.")
        return from_plate(plate)
    assert coarse is not None
    rows = np.unique(np.linspace(0, len(coarse) - 1, CANDIDATES).round().astype(int))
    thumbs = np.stack([resized(stored.rgb[i], 24, 24) for i in rows])
    chosen = rows[diverse(thumbs, ROOM_SAMPLES)]
    job.progress("learning the room", 0, 1)
    return learn_room(stored.rgb[chosen], coarse[chosen])


def _plate(path: Path, geometry: Geometry) -> UInt8[Array, "h w 3"]:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            plate = np.array(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise FootageError(f"--plate {path} is not a readable picture ({error}).") from error
    W, H = geometry.original
    if abs(plate.shape[1] / plate.shape[0] - W / H) > 0.01:
        raise FootageError(f"--plate {path} is {plate.shape[1]}x{plate.shape[0]}, the video {W}x{H}: it must show the same view.")
    return geometry.apply(resized(plate, W, H))


def _select(rgb: UInt8[Array, "M h w 3"], alpha: UInt8[Array, "M h w"], keep: Array, folder: Path) -> None:
    """Where pictures are left out in the middle, the others are stored once more, side by side."""
    for name in ("rgb.npy", "alpha.npy"):
        (folder / name).unlink(missing_ok=True)
    rows = np.flatnonzero(keep)
    if len(rows) == rows[-1] - rows[0] + 1:
        return
    for name, source in (("rgb.npy", rgb), ("alpha.npy", alpha)):
        with PictureWriter(folder / name, source.shape[1:]) as writer:
            for i in rows:
                writer.append(source[i])


def selected(workspace: Workspace) -> tuple[Stored, UInt8[Array, "N h w 3"], UInt8[Array, "N h w"], Int[Array, "N"]]:
    """Pictures and mattes that are tracked, and their rows in what was stored."""
    stored, folder = Stored.load(workspace), workspace.root / "mattes"
    rows = np.flatnonzero(read_arrays(folder / "mattes.npz")["keep"])
    if (folder / "rgb.npy").is_file():
        return stored, open_pictures(folder / "rgb.npy"), open_pictures(folder / "alpha.npy"), rows
    part = slice(int(rows[0]), int(rows[-1]) + 1)
    return stored, stored.rgb[part], open_pictures(folder / "all_alpha.npy")[part], rows


def landmarks_stage(job: Job) -> None:
    """Face landmarks, and where the turn ends."""
    stored, rgb, alpha, rows = selected(job.workspace)
    folder = job.workspace.folder("landmarks")
    times = stored.times[rows]
    if job.settings.landmarks is not None:
        facts = read_json(job.workspace.root / "frames" / "frames.json")
        total = len(read_arrays(job.workspace.root / "frames" / "pictures.npz")["times"])
        crop = stored.geometry.crop
        found = user_landmarks(job.settings.landmarks, total, stored.geometry.scale, (crop[0], crop[1]), facts["first"] + rows)
    else:
        if not mediapipe_home.available() and job.settings.install:
            mediapipe_home.install()

        looked = set(np.linspace(0, len(rows) - 1, LOOKS_ROUND).round().astype(int).tolist())

        def finder():
            detect = face_detector()
            return lambda i: (find_in(rgb[i], alpha[i], detect), i in looked and _two_faces(detect(rgb[i])))

        faces, two = [], []
        for i, (found_here, in_company) in enumerate(shared(range(len(rows)), finder, apart=True)):
            faces.append(found_here)
            if in_company:
                two.append(times[i])
            job.progress("finding the face", i + 1, len(rows))
        found = assemble(faces, times)
        if len(two) >= 2:
            job.note(
                f"two faces are in view at {', '.join(f'{t:.1f} s' for t in two[:5])}: the larger subject is tracked, the other may "
                "spoil the mattes. Record one person, or cut the picture with --crop left,top,width,height."
            )
    seen = found.score > 0
    if not seen.any():
        raise FootageError(
            "no face was found in any picture. The face must be in view at the start of the turn, sharp, lit, and some 80 pixels high; "
            "a larger --size may help. Your own landmarks can be given with --landmarks."
        )
    dropped = int((found.faces > 0).sum() - seen.sum())
    if dropped:
        job.note(f"{dropped} faces that appeared where none can be (back of the head) were not believed.")
    split = _split(job, stored, found, times, rows)
    if split.note:
        job.note(split.note)
    write_arrays(folder / "landmarks.npz", points=found.points.astype(np.float32), score=found.score, yaw_deg=found.yaw_deg)
    write_json(folder / "split.json", asdict(split))


def _two_faces(faces: list[Float[Array, "478 3"]]) -> bool:
    """Whether a second face of like size is among those of a whole picture."""
    sizes = [float(np.ptp(face[:, 1])) for face in faces]
    return len(sizes) > 1 and sizes[1] > 0.5 * sizes[0]


def _split(job: Job, stored: Stored, found, times: Array, rows: Array) -> Split:
    if job.settings.turn_end is not None:
        return split_at(times, job.settings.turn_end)
    second = stored.clip[rows] > 0
    if job.settings.dynamic is not None and second.any() and not second.all():
        return Split(0, int(second.argmax()), True)
    return find_split(found, times)


def camera_stage(job: Job) -> None:
    """The focal length, as far as it can be told before the template is fitted."""
    s = job.settings
    stored, rgb, alpha, _ = selected(job.workspace)
    split = Split(**read_json(job.workspace.root / "landmarks" / "split.json"))
    estimate = first_estimate(stored.geometry, stored.tags, s.focal_px, s.focal_35mm, s.distortion)
    if s.sfm == "on" and not sfm_available():
        raise FootageError("--sfm on needs pycolmap: pip install pycolmap")
    if s.sfm != "off" and estimate.origin != "user":
        if not sfm_available():
            job.note("the focal length is estimated from the template alone; pycolmap (pip install pycolmap) usually finds it better.")
        elif split.full_turn or s.sfm == "on":
            job.progress("structure from motion (a minute or so)", 0, 1)
            estimate = refine_by_sfm(estimate, rgb, alpha, split.mask(len(rgb)))
    for note in estimate.notes:
        job.note(note)
    content = {"camera": asdict(estimate.camera), "origin": estimate.origin, "notes": estimate.notes}
    write_json(job.workspace.folder("camera") / "camera.json", content)


def load_footage(workspace: Workspace, mattes: Mattes = "first") -> tuple[Footage, CameraEstimate]:
    """All that the input stages found, with the mattes of a later stage where that made any."""
    stored, rgb, alpha, rows = selected(workspace)
    found = read_arrays(workspace.root / "landmarks" / "landmarks.npz")
    split = Split(**read_json(workspace.root / "landmarks" / "split.json"))
    content = read_json(workspace.root / "camera" / "camera.json")
    camera = PinholeCamera(**{**content["camera"], "distortion": tuple(content["camera"]["distortion"])})
    times = stored.times[rows]
    later = [workspace.root / stage / REMADE for stage in LATER_MATTES[mattes]]
    if (best := next((path for path in later if path.is_file()), None)) is not None:
        alpha = open_pictures(best)
    footage = Footage(
        rgb=rgb,
        alpha=alpha,
        times=times - times[0],
        static=split.mask(len(rows)),
        camera=camera,
        landmarks=found["points"].astype(np.float64),
        landmark_score=found["score"],
    )
    return footage, CameraEstimate(camera, content["origin"], tuple(content["notes"]))
