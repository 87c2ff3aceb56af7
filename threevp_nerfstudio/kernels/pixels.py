"""Training rays on Warp: which pixels of a step's few frames are trained on, with their colours and rays. Each thread draws
a ray: no pictures, pixels or rays pass through the host. `data.pixels.rays_of_pixels` is the oracle of the tests.
"""

from dataclasses import dataclass

import numpy as np
import torch
import warp as wp
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import device_name, initialise, launch, view

ANYWHERE = wp.constant(0)
SUBJECT = wp.constant(1)
RING = wp.constant(2)
BOX = wp.constant(4)
"""Kinds of pixel. `SUBJECT` and `RING` are bits of a crop's kinds."""
TRIES = wp.constant(256)
"""Random pixels that are looked at for one of a kind, before all that follow are."""
UNDISTORTIONS = wp.constant(50)
UNDISTORTED = wp.constant(1.0e-9)
"""Steps of undistortion at most, and the error in pixels that is small enough; as in `capture.cameras`."""


@wp.struct
class Slot:
    """One of a step's frames. `rgba` and `kind` are addresses of a crop's colours (4 bytes a pixel) and kinds (1 byte a
    pixel), `left` and `top` its place in the picture, `kinds` the kinds of pixel that it has. Boxes (up to 4: left, top, right,
    bottom) are in pixels of the crop."""

    frame: wp.int64
    rgba: wp.uint64
    kind: wp.uint64
    width: int
    height: int
    left: int
    top: int
    kinds: int
    num_boxes: int
    boxes: wp.mat44d
    focal: wp.vec2d
    centre: wp.vec2d
    distortion: wp.vec4d
    rotation: wp.mat33d
    origin: wp.vec3d


SLOT = np.dtype(Slot.numpy_dtype())
"""`Slot` on the host."""


# Warp makes arrays of addresses only since 1.9
@wp.func_native("return reinterpret_cast<const unsigned int*>(address)[index];")
def word_at(address: wp.uint64, index: int) -> wp.uint32: ...


@wp.func_native("return reinterpret_cast<const unsigned char*>(address)[index];")
def byte_at(address: wp.uint64, index: int) -> int: ...


@wp.func
def draw_pixel(s: Slot, kind: int, seed: int, stream: int) -> wp.vec2i:
    """A random pixel of one kind, which the crop must have."""
    state = wp.rand_init(seed, stream)
    x = int(0)
    y = int(0)
    if kind == BOX:
        box = wp.min(int(wp.randf(state) * float(s.num_boxes)), s.num_boxes - 1)
        u = wp.float64(wp.randf(state))
        v = wp.float64(wp.randf(state))
        x = int(wp.floor(s.boxes[box, 0] + u * (s.boxes[box, 2] - s.boxes[box, 0])))
        y = int(wp.floor(s.boxes[box, 1] + v * (s.boxes[box, 3] - s.boxes[box, 1])))
        return wp.vec2i(wp.clamp(x, 0, s.width - 1), wp.clamp(y, 0, s.height - 1))
    tries = int(0)
    searching = int(1)
    while searching != 0:
        if tries < TRIES:
            x = wp.min(int(wp.randf(state) * float(s.width)), s.width - 1)
            y = wp.min(int(wp.randf(state) * float(s.height)), s.height - 1)
        else:  # the next one in the crop
            x += 1
            if x == s.width:
                x = int(0)
                y = (y + 1) % s.height
        tries += 1
        if kind == ANYWHERE or (byte_at(s.kind, y * s.width + x) & kind) != 0 or tries > TRIES + s.width * s.height:
            searching = int(0)
    return wp.vec2i(x, y)


@wp.func
def direction_at(s: Slot, column: wp.float64, row: wp.float64) -> wp.vec3d:
    """World direction, with a depth of one, through a point of the picture. Undistorts as OpenCV does."""
    one = wp.float64(1.0)
    two = wp.float64(2.0)
    x0 = (column - s.centre[0]) / s.focal[0]
    y0 = (row - s.centre[1]) / s.focal[1]
    x = wp.float64(x0)
    y = wp.float64(y0)
    k1 = s.distortion[0]
    k2 = s.distortion[1]
    p1 = s.distortion[2]
    p2 = s.distortion[3]
    left = int(UNDISTORTIONS)
    while left > 0:
        left -= 1
        r2 = x * x + y * y
        radial = one + (k2 * r2 + k1) * r2
        if radial < wp.float64(0.0):
            x = x0
            y = y0
            left = int(0)
        else:
            dx = two * p1 * x * y + p2 * (r2 + two * x * x)
            dy = p1 * (r2 + two * y * y) + two * p2 * x * y
            x = (x0 - dx) / radial
            y = (y0 - dy) / radial
            r2 = x * x + y * y
            radial = one + (k2 * r2 + k1) * r2
            ex = x * radial + two * p1 * x * y + p2 * (r2 + two * x * x) - x0
            ey = y * radial + p1 * (r2 + two * y * y) + two * p2 * x * y - y0
            if wp.length(wp.vec2d(ex * s.focal[0], ey * s.focal[1])) < wp.float64(UNDISTORTED):
                left = int(0)
    return s.rotation * wp.vec3d(x, -y, -one)


@wp.kernel(enable_backward=False)
def _draw_rays(
    slots: wp.array(dtype=Slot),
    share: int,
    in_boxes: int,
    in_ring: int,
    anywhere: int,
    side: int,
    radius: int,
    face_weight: float,
    seed: int,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    across: wp.array2d(dtype=float),
    patch: wp.array2d(dtype=wp.uint32),
    weight: wp.array(dtype=float),
    frame: wp.array(dtype=wp.int64),
    slot: wp.array(dtype=int),
    pixel: wp.array(dtype=wp.vec2i),
):
    ray = wp.tid()
    drawn = share * slots.shape[0]
    own = slots.shape[0] - 1
    place = ray - drawn
    stream = ray
    if ray < drawn:
        own = ray // share
        place = ray - own * share
    else:
        stream = drawn  # all rays of the square draw the same middle
    s = slots[own]

    kind = int(SUBJECT)
    if ray < drawn:
        if place < in_boxes:
            kind = int(BOX)
        elif place < in_boxes + in_ring:
            kind = int(RING)
        elif place < in_boxes + in_ring + anywhere:
            kind = int(ANYWHERE)
    else:
        kind = int(BOX)
    if kind != ANYWHERE and (s.kinds & kind) == 0:
        kind = s.kinds & SUBJECT  # what a frame lacks goes to the subject, else anywhere
    xy = draw_pixel(s, kind, seed, stream)
    x = xy[0]
    y = xy[1]
    if ray >= drawn:
        x = wp.clamp(x - side // 2, 0, s.width - side) + place % side
        y = wp.clamp(y - side // 2, 0, s.height - side) + place // side

    k = int(0)
    for dy in range(-radius, radius + 1):
        row = wp.clamp(y + dy, 0, s.height - 1) * s.width
        for dx in range(-radius, radius + 1):
            patch[ray, k] = word_at(s.rgba, row + wp.clamp(x + dx, 0, s.width - 1))
            k += 1

    w = float(1.0)
    px = wp.float64(x)
    py = wp.float64(y)
    for b in range(s.num_boxes):
        if px >= s.boxes[b, 0] and py >= s.boxes[b, 1] and px <= s.boxes[b, 2] and py <= s.boxes[b, 3]:
            w = face_weight

    one = wp.float64(1.0)
    column = wp.float64(x + s.left) + wp.float64(0.5)
    line = wp.float64(y + s.top) + wp.float64(0.5)
    centre = direction_at(s, column, line)
    right = direction_at(s, column + one, line) - centre
    down = direction_at(s, column, line + one) - centre
    length = wp.length(centre)
    for axis in range(3):
        across[ray, 2 * axis] = float(right[axis] / length)
        across[ray, 2 * axis + 1] = float(down[axis] / length)
    origins[ray] = wp.vec3(float(s.origin[0]), float(s.origin[1]), float(s.origin[2]))
    directions[ray] = wp.vec3(float(centre[0] / length), float(centre[1] / length), float(centre[2] / length))
    weight[ray] = w
    frame[ray] = s.frame
    slot[ray] = own
    pixel[ray] = wp.vec2i(x + s.left, y + s.top)


@dataclass(frozen=True)
class DrawnRays:
    """Rays through pixels that were drawn, those of the first slot first."""

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    across: Float[Tensor, "R 6"]
    """What a step of one pixel to the right, and one down, adds to the direction: x, x, y, y, z, z."""
    patch: UInt8[Tensor, "R P4"]
    """RGBA of the (2 radius + 1)^2 pixels round each ray's, row by row; at the crop's edge the last pixel is repeated."""
    weight: Float[Tensor, "R 1"]
    frame: Int[Tensor, "R 1"]
    slot: Int[Tensor, "R 1"]
    pixel: Int[Tensor, "R 2"]
    """Column and row in the whole picture."""
    slot_frames: Int[Tensor, "S"]


def draw_rays(
    slots: UInt8[Tensor, "S bytes"],
    share: int,
    in_boxes: int,
    in_ring: int,
    anywhere: int,
    square: int,
    radius: int,
    face_weight: float,
    seed: int,
) -> DrawnRays:
    """`share` rays of each slot, of which the first `in_boxes` look into boxes, then `in_ring` at the ring and `anywhere`
    anywhere in the crop, and the others at the subject. Behind them, row by row, those of a `square` of so many pixels a
    side, round a random place in the last slot's boxes, else on its subject; its crop must not be smaller.

    `slots` are the bytes of `SLOT`s. The crops that they point to must be there until this returns. `weight` is
    `face_weight` in boxes and 1 elsewhere. `seed` is below 2^31; what is drawn is the same on every device.
    """
    initialise()
    device, rays = slots.device, len(slots) * share + square * square
    side = 2 * radius + 1

    def empty(columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rays, columns, dtype=dtype, device=device)

    out = [empty(3), empty(3), empty(6), empty(side * side, torch.int32), empty(1), empty(1, torch.int64),
           empty(1, torch.int32), empty(2, torch.int32)]  # fmt: skip
    origins, directions, across, patch, weight, frame, slot, pixel = out
    if rays:
        table = wp.array(ptr=slots.data_ptr(), dtype=Slot, shape=len(slots), device=device_name(device))
        launch(
            _draw_rays,
            rays,
            [table, share, in_boxes, in_ring, anywhere, square, radius, face_weight, seed],
            [
                view(origins, wp.vec3), view(directions, wp.vec3), view(across), view(patch, wp.uint32), view(weight.view(-1)),
                view(frame.view(-1)), view(slot.view(-1)), view(pixel, wp.vec2i),
            ],
            device,
        )  # fmt: skip
    slot_frames = slots.view(torch.int64)[:, SLOT.fields["frame"][1] // 8]
    return DrawnRays(origins, directions, across, patch.view(torch.uint8), weight, frame, slot, pixel, slot_frames)
