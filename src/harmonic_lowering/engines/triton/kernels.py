"""The kernels. Importing this needs Triton.

With ``TRITON_INTERPRET=1`` in the environment when Triton is imported, which this package and
torch may do, they run on the CPU, slowly.
"""

# Triton reads the source of its functions, which are not Python's: no types, and nothing imported.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-redef"

import triton
import triton.language as tl

__all__ = ["apply", "copy", "total", "weight_grad"]

# Sizes for which Triton is not to compile again, although they are 1 or multiples of 16.
_SIZES = ["target_rows", "batch", "n_tiles", "depth_tiles", "out_tiles", "padding"]


@triton.jit(do_not_specialize=_SIZES)
def apply(
    source, weight, bias, target,
    pointer, tap, row, share,  # plan.Reads
    target_rows, target_frames, source_frames, out_channels, n_tiles, out_tiles,
    source_batch, source_channel, source_row, source_frame,  # strides from here …
    target_batch, target_channel, target_row, target_frame,
    weight_group, weight_out, weight_in, weight_tap, weight_frame,  # … to here
    stride, spread, dilation, padding,
    CHANNELS: tl.constexpr, KERNEL_FRAMES: tl.constexpr, FLIP: tl.constexpr,
    SPREADS: tl.constexpr, HAS_BIAS: tl.constexpr, BLENDS: tl.constexpr, PRECISION: tl.constexpr,
    FRAMES: tl.constexpr, PHASES: tl.constexpr, OUT: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute one target row of one batch item: some frames, some output channels of a group.

    Y[t, o] = bias[o] + Σ_reads Σ_τ Σ_c X[c, row, t·stride + τ·dilation − padding]
                                        · share·W[o, c, tap, τ]

    A `spread` above 1 puts that many frames − 1 of zeros between the frames of the source, which
    is how the gradient of a strided convolution is one again; FLIP reverses the kernel's columns.

    The sums over reads, τ and c are one sum, of DEPTH terms a step: WIDTH channels of some columns
    of the kernel. Rows of the product are frames, and its columns output channels. With two PHASES
    a row is two frames, and columns are the outputs of the first and of the second, whose kernels
    are the same one, a column apart: fewer numbers are read for more multiplications, of which one
    in K_t + 1 is by zero. So a NaN spreads to one frame more than with one phase.
    """
    # ---- which part of the target this program owns
    part = tl.program_id(0)
    f = part // n_tiles % target_rows
    item = (part // n_tiles // target_rows).to(tl.int64)
    group = (tl.program_id(1) // out_tiles).to(tl.int64)
    first = part % n_tiles * FRAMES * PHASES
    first_out = tl.program_id(1) % out_tiles * OUT
    source += item * source_batch + group * CHANNELS * source_channel
    weight += group * weight_group

    # ---- the sum
    COLUMNS: tl.constexpr = DEPTH // WIDTH  # of the kernel, in a step
    SPAN: tl.constexpr = KERNEL_FRAMES + PHASES - 1  # columns that are read
    TURNS: tl.constexpr = (SPAN + COLUMNS - 1) // COLUMNS
    STEPS: tl.constexpr = TURNS * ((CHANNELS + WIDTH - 1) // WIDTH)  # of a read
    # Steps differ in numbers, to which these tensors are added.
    lane = tl.arange(0, DEPTH)
    column, channel = lane // WIDTH, lane % WIDTH
    t = first + PHASES * tl.arange(0, FRAMES)
    frames = (t * stride - padding)[:, None] + (column * dilation)[None, :]
    offsets = frames * source_frame + (channel * source_channel)[None, :]
    n = tl.arange(0, PHASES * OUT)
    o = first_out + n % OUT
    columns = column[:, None] - (n // OUT)[None, :]  # of the kernel, for each phase
    kernel_offsets = (-columns if FLIP else columns) * weight_frame
    kernel_offsets += (channel * weight_in)[:, None] + (o * weight_out)[None, :]

    begin = tl.load(pointer + f)
    n_reads = tl.load(pointer + f + 1) - begin
    acc = tl.full((FRAMES, PHASES * OUT), 0.0, tl.float32)
    for step in range(n_reads * STEPS):
        read = begin + step // STEPS
        tau = step % TURNS * COLUMNS
        c = step // TURNS % (STEPS // TURNS) * WIDTH
        frame = frames + tau * dilation
        inside = frame.to(tl.uint32) < source_frames * spread  # nor is it below 0
        real = column < SPAN - tau
        if CHANNELS % WIDTH != 0:
            real = real & (channel < CHANNELS - c)
        place = source + tl.load(row + read) * source_row + c * source_channel
        if SPREADS:
            place += (frame // spread) * source_frame + (channel * source_channel)[None, :]
            inside = inside & (frame % spread == 0)
        else:
            place = place + tau * dilation * source_frame + offsets
        terms = tl.load(place, mask=inside & real[None, :], other=0.0)
        k = KERNEL_FRAMES - 1 - tau if FLIP else tau
        place = weight + tl.load(tap + read) * weight_tap + c * weight_in + k * weight_frame
        real = real[:, None] & (o < out_channels)[None, :]
        if PHASES != 1:
            real = real & (columns >= -tau) & (columns < KERNEL_FRAMES - tau)
        kernel = tl.load(place + kernel_offsets, mask=real, other=0.0)
        if BLENDS:
            kernel = kernel.to(tl.float32) * tl.load(share + read)
            kernel = kernel.to(source.dtype.element_ty)
        acc = tl.dot(terms, kernel, acc, input_precision=PRECISION)

    # ---- the target
    acc = tl.reshape(acc, (FRAMES * PHASES, OUT))
    t = first + tl.arange(0, FRAMES * PHASES)
    o = first_out + tl.arange(0, OUT)
    if HAS_BIAS:
        place = bias + group * out_channels + o
        acc += tl.load(place, mask=o < out_channels, other=0.0).to(tl.float32)[None, :]
    target += item * target_batch + group * out_channels * target_channel
    target += f.to(tl.int64) * target_row
    tl.store(
        target + t[:, None] * target_frame + (o * target_channel)[None, :],
        acc.to(target.dtype.element_ty),
        mask=(t < target_frames)[:, None] & (o < out_channels)[None, :],
    )


@triton.jit(do_not_specialize=_SIZES)
def weight_grad(
    source, grad, partial,
    pointer, target, row, share,  # plan.Reads, by tap
    batch, grad_frames, source_frames, out_channels, n_tiles, depth_tiles, out_tiles,
    source_batch, source_channel, source_row, source_frame,  # strides
    grad_batch, grad_channel, grad_row, grad_frame,
    stride, dilation, padding,
    CHANNELS: tl.constexpr, KERNEL_FRAMES: tl.constexpr, BLENDS: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, OUT: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """Sum a tap's share of the weight's gradient over some of its rows and batch items.

    partial[split, group, tap, τ·C + c, o] =
        Σ_reads Σ_t share·X[c, row, t·stride + τ·dilation − padding]·G[o, target row, t]

    `total` adds the splits, in their order: no atomics, so every run gives the same.
    """
    split, n_splits = tl.program_id(0), tl.num_programs(0)
    j = tl.program_id(1) // depth_tiles
    q = tl.program_id(1) % depth_tiles * DEPTH + tl.arange(0, DEPTH)
    group = (tl.program_id(2) // out_tiles).to(tl.int64)
    o = tl.program_id(2) % out_tiles * OUT + tl.arange(0, OUT)
    c = q % CHANNELS
    tau = q // CHANNELS
    source += group * CHANNELS * source_channel
    grad += group * out_channels * grad_channel

    t = tl.arange(0, FRAMES)
    frames = (t * stride)[None, :] + (tau * dilation - padding)[:, None]
    offsets = frames * source_frame + (c * source_channel)[:, None]
    grad_offsets = t[:, None] * grad_frame + o[None, :] * grad_channel

    begin = tl.load(pointer + j)
    n_reads = tl.load(pointer + j + 1) - begin
    each = (batch * n_reads + n_splits - 1) // n_splits
    stop = tl.minimum((split + 1) * each, batch * n_reads)
    item = (split * each // tl.maximum(n_reads, 1)).to(tl.int64)
    read = begin + split * each % tl.maximum(n_reads, 1)
    first = split * 0  # frame of a tile
    acc = tl.full((DEPTH, OUT), 0.0, tl.float32)
    for _ in range(split * each * n_tiles, stop * n_tiles):
        inside = (frames + first * stride).to(tl.uint32) < source_frames  # nor below 0
        inside = inside & (q < CHANNELS * KERNEL_FRAMES)[:, None]
        real = o[None, :] < out_channels
        if not EVEN:
            inside = inside & (t < grad_frames - first)[None, :]
            real = real & (t < grad_frames - first)[:, None]
        place = source + item * source_batch + tl.load(row + read) * source_row
        place += first * stride * source_frame
        terms = tl.load(place + offsets, mask=inside, other=0.0)
        place = grad + item * grad_batch + tl.load(target + read) * grad_row + first * grad_frame
        given = tl.load(place + grad_offsets, mask=real, other=0.0)
        if BLENDS:
            acc += tl.load(share + read) * tl.dot(terms, given, input_precision=PRECISION)
        else:
            acc = tl.dot(terms, given, acc, input_precision=PRECISION)
        # the next tile of frames, else the next read, else the next batch item
        first += FRAMES
        read += tl.where(first >= grad_frames, 1, 0)
        first = tl.where(first >= grad_frames, 0, first)
        item += tl.where(read == begin + n_reads, 1, 0)
        read = tl.where(read == begin + n_reads, begin, read)

    n_taps = tl.num_programs(1) // depth_tiles
    n_groups = tl.num_programs(2) // out_tiles
    place = (split * n_groups + group) * n_taps + j
    partial += place * CHANNELS * KERNEL_FRAMES * out_channels
    tl.store(
        partial + q[:, None] * out_channels + o[None, :],
        acc,
        mask=(q < CHANNELS * KERNEL_FRAMES)[:, None] & (o < out_channels)[None, :],
    )


@triton.jit(do_not_specialize=["n_parts", "batch_rows", "rows", "frames"])
def total(
    partial, grad, weight, bias,
    n_parts, n_numbers, out_channels, n_taps, batch_rows, rows, frames,
    weight_group, weight_out, weight_in, weight_tap, weight_frame,  # strides
    grad_batch, grad_channel, grad_row, grad_frame,
    CHANNELS: tl.constexpr, KERNEL_FRAMES: tl.constexpr, HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr, NUMBERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add the parts of some numbers of the weight's gradient, or sum the bias's of one channel."""
    n_tiles = (n_numbers + NUMBERS - 1) // NUMBERS
    program = tl.program_id(0)
    n = tl.arange(0, NUMBERS)
    if program < n_tiles:
        i = program * NUMBERS + n
        part = tl.arange(0, PARTS)
        acc = tl.full((PARTS, NUMBERS), 0.0, tl.float32)
        for first in range(0, n_parts, PARTS):
            place = partial + (first + part).to(tl.int64)[:, None] * n_numbers + i[None, :]
            real = (first + part < n_parts)[:, None] & (i < n_numbers)[None, :]
            acc += tl.load(place, mask=real, other=0.0)
        o = i % out_channels
        c = i // out_channels % CHANNELS
        column = i // out_channels // CHANNELS
        tap = column // KERNEL_FRAMES
        place = weight + (tap // n_taps).to(tl.int64) * weight_group
        place += o * weight_out + c * weight_in
        place += tap % n_taps * weight_tap + column % KERNEL_FRAMES * weight_frame
        tl.store(place, tl.sum(acc, 0).to(weight.dtype.element_ty), mask=i < n_numbers)
    elif HAS_BIAS:
        channel = (program - n_tiles).to(tl.int64)
        grad += channel * grad_channel
        r = tl.arange(0, ROWS)
        sums = tl.full((ROWS, NUMBERS), 0.0, tl.float32)
        tiles_of_a_row = (frames + NUMBERS - 1) // NUMBERS
        for step in range(0, (batch_rows + ROWS - 1) // ROWS * tiles_of_a_row):
            row = step // tiles_of_a_row * ROWS + r
            t = step % tiles_of_a_row * NUMBERS + n
            place = grad + (row // rows).to(tl.int64) * grad_batch + row % rows * grad_row
            real = (row < batch_rows)[:, None] & (t < frames)[None, :]
            numbers = tl.load(place[:, None] + t[None, :] * grad_frame, mask=real, other=0.0)
            sums += numbers.to(tl.float32)
        tl.store(bias + channel, tl.sum(tl.sum(sums, 1), 0).to(bias.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "n_tiles"])
def copy(
    source, target,
    rows, frames, channels, n_tiles,
    source_batch, source_channel, source_row, source_frame,  # strides
    target_batch, target_channel, target_row, target_frame,
    FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Copy some frames of a row into another layout."""
    part = tl.program_id(0)
    row = part // n_tiles % rows
    item = (part // n_tiles // rows).to(tl.int64)
    t = (part % n_tiles * FRAMES + tl.arange(0, FRAMES))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    real = (t < frames) & (c < channels)
    source += item * source_batch + row * source_row
    target += item * target_batch + row * target_row
    numbers = tl.load(source + t * source_frame + c * source_channel, mask=real)
    tl.store(target + t * target_frame + c * target_channel, numbers, mask=real)
