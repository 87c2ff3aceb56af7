"""Rays in and out of the bank: one kernel maps marched rays straight into a ring of rays, two make a training batch of it.

Random numbers are made in the kernel, from a seed and the number of the ray in the batch: the same seed gives the same batch on
every device.

Samples of a batch are packed ray after ray, so their places are a running sum of the rays' counts; the host waits for
its last entry, the number of samples. One thread takes a ray on a CPU; on CUDA each of a ray's slots has a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import warp as wp
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from threevp_nerfstudio.kernels.look import MarchedSamples
from threevp_nerfstudio.kernels.runtime import launch, view

mat32 = wp.types.matrix(shape=(3, 2), dtype=wp.float32)
mat32h = wp.types.matrix(shape=(3, 2), dtype=wp.float16)

BACKGROUNDS = wp.constant(1 << 24)
"""Where the random numbers of backgrounds begin; more than a batch has rays."""
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class FreshRays:
    """R marched rays, and what belongs to each of them."""

    samples: MarchedSamples
    direction: Float[Tensor, "R 3"]
    across: Float[Tensor, "R 6"]
    """What a step of one pixel to the right, and one down, adds to the direction: (3, 2), row by row."""
    room: Float[Tensor, "F 3 3"]
    """Rotation of the room in the avatar's world, of each pose."""
    slot: Int[Tensor, "R"]
    """Pose of each ray, int32."""
    frame: Int[Tensor, "R"]
    patch: UInt8[Tensor, "R P4"]
    """RGB with straight alpha of the pixels round each ray's own, row by row; P is an odd number squared."""
    weight: Float[Tensor, "R"]
    """Of the ray in the photometric loss."""

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class MappedRays:
    """R rays with room for S samples each, in coarse canonical space; what lies behind a ray's `count` means nothing.

    Directions and small steps are kept in half precision.
    """

    frame: Int[Tensor, "R"]
    patch: UInt8[Tensor, "R P 4"]
    """RGB with straight alpha of the pixels round each ray's own, row by row; P is an odd number squared."""
    weight: Float[Tensor, "R"]
    """Of the ray in the photometric loss."""
    t: Float[Tensor, "R S"]
    width: Float[Tensor, "R S"]
    position: Float[Tensor, "R S 3"]
    across: Float[Tensor, "R S 3 2"]
    """What a step of one pixel to the right, and one down, adds to the position."""
    along: Float[Tensor, "R S 3"]
    """What a metre along the ray adds to the position: the view direction in the local canonical frame."""
    light: Float[Tensor, "R S 3 2"]
    """The room's x and y axes in the local canonical frame, unit columns."""
    count: Int[Tensor, "R"]

    @staticmethod
    def room_for(rays: int, samples: int, pixels: int, device: torch.device) -> MappedRays:
        """Nothing yet."""

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(rays, *shape, dtype=dtype, device=device)

        half = torch.float16
        return MappedRays(
            frame=empty(dtype=torch.int64),
            patch=empty(pixels, 4, dtype=torch.uint8),
            weight=empty(),
            t=empty(samples),
            width=empty(samples),
            position=empty(samples, 3),
            across=empty(samples, 3, 2, dtype=half),
            along=empty(samples, 3, dtype=half),
            light=empty(samples, 3, 2, dtype=half),
            count=empty(dtype=torch.int32),
        )

    @property
    def mask(self) -> Bool[Tensor, "R S"]:
        return torch.arange(self.t.shape[1], device=self.t.device) < self.count[:, None]

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class Choice:
    """B rays of a ring, and how each of them is changed before it is trained on."""

    row: Int[Tensor, "B"]
    move: Float[Tensor, "B 3"]
    """Pixels to the right and down, metres along the ray."""
    turn: Float[Tensor, "B"]
    """Of the light, radians."""
    count: Int[Tensor, "B"]
    frame: Int[Tensor, "B"]
    target: Float[Tensor, "B 4"]
    background: Float[Tensor, "B 3"]
    weight: Float[Tensor, "B"]
    beside: Bool[Tensor, "B"]


@dataclass(frozen=True)
class RayBatch:
    """B rays of a training step; their N samples are packed in ray order."""

    frame: Int[Tensor, "B"]
    target: Float[Tensor, "B 4"]
    """RGB with straight alpha of each ray's pixel, 0 to 1."""
    background: Float[Tensor, "B 3"]
    """A random colour."""
    weight: Float[Tensor, "B"]
    """Of the ray in the photometric loss."""
    beside: Bool[Tensor, "B"]
    """Whether the subject is in none of the pixels round the ray that was mapped."""
    ends: Int[Tensor, "B"]
    """Where each ray's samples end; the next one's begin there."""
    ray: Int[Tensor, "N"]
    t: Float[Tensor, "N"]
    width: Float[Tensor, "N"]
    position: Float[Tensor, "N 3"]
    direction: Float[Tensor, "N 3"]
    """View direction in the local canonical frame, unit."""
    light: Float[Tensor, "N 3 2"]
    """The room's x and y axes in the local canonical frame, unit columns."""
    sample_frame: Int[Tensor, "N"]

    def __len__(self) -> int:
        return len(self.frame)

    def only(self, index: Int[Tensor, "M"]) -> RayBatch:
        """The same rays with some of their samples."""
        packed = ("ray", "t", "width", "position", "direction", "light", "sample_frame")
        parts = {name: getattr(self, name)[index] for name in packed}
        counts = torch.zeros_like(self.ends).index_add_(0, parts["ray"], torch.ones_like(index, dtype=torch.int32))
        return replace(self, ends=counts.cumsum(0, dtype=torch.int32), **parts)


@wp.func
def unit(v: wp.vec3) -> wp.vec3:
    return v / wp.sqrt(wp.max(wp.dot(v, v), 1.0e-12))


@wp.func
def halves(a: wp.vec3, b: wp.vec3) -> mat32h:
    """Two columns in half precision."""
    return mat32h(
        wp.float16(a[0]), wp.float16(b[0]), wp.float16(a[1]), wp.float16(b[1]), wp.float16(a[2]), wp.float16(b[2])
    )


@wp.func
def column(m: mat32h, i: int) -> wp.vec3:
    return wp.vec3(wp.float32(m[0, i]), wp.float32(m[1, i]), wp.float32(m[2, i]))


@wp.kernel(enable_backward=False)
def _store(
    t: wp.array2d(dtype=float),
    width: wp.array2d(dtype=float),
    position: wp.array2d(dtype=wp.vec3),
    M: wp.array2d(dtype=wp.mat33),
    count: wp.array(dtype=wp.int32),
    direction: wp.array(dtype=wp.vec3),
    across: wp.array(dtype=mat32),
    room: wp.array(dtype=wp.mat33),
    slot: wp.array(dtype=wp.int32),
    frame: wp.array(dtype=wp.int64),
    patch: wp.array2d(dtype=wp.vec4ub),
    weight: wp.array(dtype=float),
    skip: int,
    first: int,
    lanes: int,
    out_frame: wp.array(dtype=wp.int64),
    out_patch: wp.array2d(dtype=wp.vec4ub),
    out_weight: wp.array(dtype=float),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_position: wp.array2d(dtype=wp.vec3),
    out_across: wp.array2d(dtype=mat32h),
    out_along: wp.array2d(dtype=wp.vec3h),
    out_light: wp.array2d(dtype=mat32h),
    out_count: wp.array(dtype=wp.int32),
):
    i, lane = wp.tid()
    r = i + skip
    row = (first + i) % out_frame.shape[0]
    n = count[r]
    if lane == 0:
        out_frame[row] = frame[r]
        out_weight[row] = weight[r]
        out_count[row] = n
    for k in range(lane, patch.shape[1], lanes):
        out_patch[row, k] = patch[r, k]
    turn = room[slot[r]]
    x = wp.vec3(turn[0, 0], turn[1, 0], turn[2, 0])
    y = wp.vec3(turn[0, 1], turn[1, 1], turn[2, 1])
    d = direction[r]
    a = across[r]
    right = wp.vec3(a[0, 0], a[1, 0], a[2, 0])
    down = wp.vec3(a[0, 1], a[1, 1], a[2, 1])
    for s in range(lane, n, lanes):
        m = M[r, s]
        far = t[r, s]
        out_t[row, s] = far
        out_width[row, s] = width[r, s]
        out_position[row, s] = position[r, s]
        out_along[row, s] = wp.vec3h(m * d)
        out_across[row, s] = halves((m * right) * far, (m * down) * far)
        out_light[row, s] = halves(unit(m * x), unit(m * y))


@wp.kernel(enable_backward=False)
def _choose(
    frame: wp.array(dtype=wp.int64),
    patch: wp.array2d(dtype=wp.vec4ub),
    weight: wp.array(dtype=float),
    width: wp.array2d(dtype=float),
    count: wp.array(dtype=wp.int32),
    filled: int,
    next: int,
    seed: int,
    in_order: int,
    moved: int,
    newest: int,
    turned: float,
    out_row: wp.array(dtype=wp.int32),
    out_move: wp.array(dtype=wp.vec3),
    out_turn: wp.array(dtype=float),
    out_count: wp.array(dtype=wp.int32),
    out_frame: wp.array(dtype=wp.int64),
    out_target: wp.array(dtype=wp.vec4),
    out_background: wp.array(dtype=wp.vec3),
    out_weight: wp.array(dtype=float),
    out_beside: wp.array(dtype=wp.bool),
):
    i = wp.tid()
    capacity = frame.shape[0]
    pixels = patch.shape[1]
    drawn = out_row.shape[0] - newest
    random = wp.rand_init(seed, i)
    row = wp.randi(random, 0, filled)
    pixel = wp.randi(random, 0, pixels)
    slide = wp.randf(random) - 0.5
    chance = wp.randf(random)
    angle = (0.5 + wp.randf(random)) * wp.pi
    if in_order != 0:
        row = (next - filled + i + capacity) % capacity
    paint = i
    as_mapped = moved == 0
    if i >= drawn:
        row = (next - newest + (i - drawn) + capacity) % capacity
        as_mapped = True
        paint = drawn  # a picture has one background
    n = count[row]
    side = int(wp.round(wp.sqrt(float(pixels))))
    if as_mapped:
        pixel = pixels / 2
        slide = float(0.0)
    elif n > 0:
        # all samples slide by the same part of the first interval, so that they stay in order
        slide = slide * width[row, 0]
    else:
        slide = float(0.0)
    out_row[i] = row
    out_move[i] = wp.vec3(float(pixel % side - side / 2), float(pixel / side - side / 2), slide)
    out_turn[i] = wp.where(chance < turned, angle, 0.0)
    out_count[i] = n
    out_frame[i] = frame[row]
    out_target[i] = wp.vec4(patch[row, pixel]) / 255.0
    painting = wp.rand_init(seed, BACKGROUNDS + paint)
    red = wp.randf(painting)
    green = wp.randf(painting)
    out_background[i] = wp.vec3(red, green, wp.randf(painting))
    out_weight[i] = weight[row]
    alpha = int(0)
    for k in range(pixels):
        alpha = wp.max(alpha, int(patch[row, k][3]))
    out_beside[i] = alpha == 0


@wp.kernel(enable_backward=False)
def _pack(
    t: wp.array2d(dtype=float),
    width: wp.array2d(dtype=float),
    position: wp.array2d(dtype=wp.vec3),
    across: wp.array2d(dtype=mat32h),
    along: wp.array2d(dtype=wp.vec3h),
    light: wp.array2d(dtype=mat32h),
    row: wp.array(dtype=wp.int32),
    move: wp.array(dtype=wp.vec3),
    turn: wp.array(dtype=float),
    frame: wp.array(dtype=wp.int64),
    ends: wp.array(dtype=wp.int32),
    lanes: int,
    out_ray: wp.array(dtype=wp.int64),
    out_t: wp.array(dtype=float),
    out_width: wp.array(dtype=float),
    out_position: wp.array(dtype=wp.vec3),
    out_direction: wp.array(dtype=wp.vec3),
    out_light: wp.array(dtype=mat32),
    out_frame: wp.array(dtype=wp.int64),
):
    i, lane = wp.tid()
    begin = int(0)
    if i > 0:
        begin = ends[i - 1]
    r = row[i]
    step = move[i]
    c = wp.cos(turn[i])
    s = wp.sin(turn[i])
    for k in range(lane, ends[i] - begin, lanes):
        j = begin + k
        forward = wp.vec3(along[r, k])
        pixel = across[r, k]
        room = light[r, k]
        x = column(room, 0)
        y = column(room, 1)
        u = unit(c * x - s * y)
        v = unit(s * x + c * y)
        out_ray[j] = wp.int64(i)
        out_t[j] = t[r, k] + step[2]
        out_width[j] = width[r, k]
        out_position[j] = position[r, k] + (column(pixel, 0) * step[0] + column(pixel, 1) * step[1] + forward * step[2])
        out_direction[j] = unit(forward)
        out_light[j] = mat32(u[0], v[0], u[1], v[1], u[2], v[2])
        out_frame[j] = frame[i]


def lanes(slots: int, device: torch.device) -> int:
    """Threads that share a ray of so many slots."""
    return slots if device.type == "cuda" else 1


def store(rays: FreshRays, ring: MappedRays, first: int) -> None:
    """Map rays into canonical space, into the rows of a ring from `first` on: the last ones, if there are more than it holds."""
    samples, device = rays.samples, ring.t.device
    skip = max(len(rays) - len(ring), 0)
    threads = lanes(ring.t.shape[1], device)
    launch(
        _store,
        (len(rays) - skip, threads),
        [
            view(samples.t),
            view(samples.width),
            view(samples.position, wp.vec3),
            view(samples.M, wp.mat33),
            view(samples.count),
            view(rays.direction.contiguous(), wp.vec3),
            view(rays.across.contiguous().view(-1, 3, 2), mat32),
            view(rays.room.contiguous(), wp.mat33),
            view(rays.slot.contiguous()),
            view(rays.frame.contiguous()),
            view(rays.patch.contiguous().view(len(rays), -1, 4), wp.vec4ub),
            view(rays.weight.contiguous()),
            skip,
            first,
            threads,
        ],
        [
            view(ring.frame),
            view(ring.patch, wp.vec4ub),
            view(ring.weight),
            view(ring.t),
            view(ring.width),
            view(ring.position, wp.vec3),
            view(ring.across, mat32h),
            view(ring.along, wp.vec3h),
            view(ring.light, mat32h),
            view(ring.count),
        ],
        device,
    )


def choose(
    ring: MappedRays,
    count: int,
    *,
    filled: int,
    next: int,
    seed: int,
    in_order: bool = False,
    moved: bool = True,
    newest: int = 0,
    turned: float = 0.0,
) -> Choice:
    """Rays to train on, drawn with replacement, each moved to a random pixel of its patch and along itself by a random part of a
    step.

    Args:
        filled: rows of the ring that hold a ray.
        next: row that the next ray will go into.
        in_order: take the rays from the oldest on.
        moved: False leaves them as they were mapped.
        newest: the last so many of `count` are the newest of the ring instead, as they were mapped, before one background.
        turned: share of rays whose light is turned by 90 to 270 degrees. Lights less far from its own each place has seen
            itself, while it turned in front of the camera.
    """
    device = ring.t.device

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, device=device)

    choice = Choice(
        row=empty(dtype=torch.int32),
        move=empty(3),
        turn=empty(),
        count=empty(dtype=torch.int32),
        frame=empty(dtype=torch.int64),
        target=empty(4),
        background=empty(3),
        weight=empty(),
        beside=empty(dtype=torch.bool),
    )
    launch(
        _choose,
        count,
        [
            view(ring.frame),
            view(ring.patch, wp.vec4ub),
            view(ring.weight),
            view(ring.width),
            view(ring.count),
            filled,
            next,
            seed % LARGEST_SEED,
            int(in_order),
            int(moved),
            newest,
            float(turned),
        ],
        [
            view(choice.row),
            view(choice.move, wp.vec3),
            view(choice.turn),
            view(choice.count),
            view(choice.frame),
            view(choice.target, wp.vec4),
            view(choice.background, wp.vec3),
            view(choice.weight),
            view(choice.beside),
        ],
        device,
    )
    return choice


def pack(ring: MappedRays, choice: Choice) -> RayBatch:
    """The chosen rays with their samples, moved and lit as the choice says."""
    device = ring.t.device
    ends = torch.cumsum(choice.count, 0, dtype=torch.int32)
    total = int(ends[-1])

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(total, *shape, dtype=dtype, device=device)

    batch = RayBatch(
        frame=choice.frame,
        target=choice.target,
        background=choice.background,
        weight=choice.weight,
        beside=choice.beside,
        ends=ends,
        ray=empty(dtype=torch.int64),
        t=empty(),
        width=empty(),
        position=empty(3),
        direction=empty(3),
        light=empty(3, 2),
        sample_frame=empty(dtype=torch.int64),
    )
    threads = lanes(ring.t.shape[1], device)
    launch(
        _pack,
        (len(choice.row), threads),
        [
            view(ring.t),
            view(ring.width),
            view(ring.position, wp.vec3),
            view(ring.across, mat32h),
            view(ring.along, wp.vec3h),
            view(ring.light, mat32h),
            view(choice.row),
            view(choice.move, wp.vec3),
            view(choice.turn),
            view(choice.frame),
            view(ends),
            threads,
        ],
        [
            view(batch.ray),
            view(batch.t),
            view(batch.width),
            view(batch.position, wp.vec3),
            view(batch.direction, wp.vec3),
            view(batch.light, mat32),
            view(batch.sample_frame),
        ],
        device,
    )
    return batch
