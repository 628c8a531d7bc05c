"""The kernels. Importing this needs Triton.

With ``TRITON_INTERPRET=1`` in the environment when Triton is imported, which this package and
torch may do, they run on the CPU, slowly.
"""

# Triton reads the source of its functions, which are not Python's: no types, and nothing imported.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-redef"

import triton
import triton.language as tl

__all__ = ["apply", "weight_grad"]

# Sizes for which Triton is not to compile again, although they are 1 or multiples of 16.
_SIZES = ["target_rows", "batch", "n_tiles", "depth_tiles", "out_tiles", "padding"]


@triton.jit(do_not_specialize=_SIZES)
def apply(
    source, weight, bias, target,
    pointer, tap, row, share,  # plan.Pairs
    target_rows, target_frames, source_frames, out_channels, n_tiles, out_tiles,
    source_batch, source_channel, source_row, source_frame,  # strides from here …
    target_batch, target_channel, target_row, target_frame,
    weight_group, weight_out, weight_in, weight_tap, weight_frame,  # … to here
    stride, spread, dilation, padding,
    CHANNELS: tl.constexpr, KERNEL_FRAMES: tl.constexpr, FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLENDS: tl.constexpr, PRECISION: tl.constexpr,
    FRAMES: tl.constexpr, OUT: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one target row of one batch item: some frames, some output channels of a group.

    Y[t, o] = bias[o] + Σ_pairs Σ_τ Σ_c blend[c, t·stride + τ·dilation − padding]·W[o, c, tap, τ]

    A `spread` above 1 puts that many frames − 1 of zeros between the frames of the source, which
    is how the gradient of a strided convolution is one again; FLIP reverses the kernel's columns.

    The sums over pairs, τ and c are one sum, of DEPTH terms a step. They are channels of one pair
    and kernel column, unless there are too few channels for that.
    """
    # ---- which part of the target this program owns
    part = tl.program_id(0)
    f = part // n_tiles % target_rows
    item = (part // n_tiles // target_rows).to(tl.int64)
    group = (tl.program_id(1) // out_tiles).to(tl.int64)
    t = part % n_tiles * FRAMES + tl.arange(0, FRAMES)
    o = tl.program_id(1) % out_tiles * OUT + tl.arange(0, OUT)
    source += item * source_batch + group * CHANNELS * source_channel
    weight += group * weight_group

    # ---- the sum
    MIXED: tl.constexpr = CHANNELS < DEPTH
    CHUNKS: tl.constexpr = (CHANNELS + DEPTH - 1) // DEPTH
    begin = tl.load(pointer + f)
    n_pairs = tl.load(pointer + f + 1) - begin
    if MIXED:
        n_steps = (n_pairs * KERNEL_FRAMES * CHANNELS + DEPTH - 1) // DEPTH
    else:
        n_steps = n_pairs * KERNEL_FRAMES * CHUNKS
    acc = tl.full((FRAMES, OUT), 0.0, tl.float32)
    for step in range(n_steps):
        if MIXED:
            q = step * DEPTH + tl.arange(0, DEPTH)
            number = q // (KERNEL_FRAMES * CHANNELS)
            tau = q // CHANNELS % KERNEL_FRAMES
            c = q % CHANNELS
            real = number < n_pairs
            pair = tl.where(real, begin + number, begin)
            frame = t[:, None] * stride + (tau * dilation - padding)[None, :]
        else:
            pair = begin + step // (KERNEL_FRAMES * CHUNKS)
            tau = step // CHUNKS % KERNEL_FRAMES
            c = step % CHUNKS * DEPTH + tl.arange(0, DEPTH)
            real = c < CHANNELS
            frame = (t * stride + (tau * dilation - padding))[:, None]
        inside = (frame >= 0) & (frame < source_frames * spread) & (frame % spread == 0)
        place = source + (frame // spread) * source_frame + (c * source_channel)[None, :]
        # Adding c * 0 makes a vector of what is one number where a step has one pair.
        first = tl.load(row + 2 * pair) + c * 0
        terms = tl.load(
            place + (first * source_row)[None, :], mask=inside & real[None, :], other=0.0
        )
        if BLENDS:
            second = tl.load(row + 2 * pair + 1) + c * 0
            above = tl.load(
                place + (second * source_row)[None, :],
                mask=inside & (real & (second >= 0))[None, :],
                other=0.0,
            )
            # In float32: the 8 bits of a half type would round the shares.
            blend = terms.to(tl.float32) * (tl.load(share + 2 * pair) + c * 0.0)[None, :]
            blend += above.to(tl.float32) * (tl.load(share + 2 * pair + 1) + c * 0.0)[None, :]
            terms = blend.to(source.dtype.element_ty)
        k = KERNEL_FRAMES - 1 - tau if FLIP else tau
        place = c * weight_in + (tl.load(tap + pair) * weight_tap + k * weight_frame)
        kernel = tl.load(
            weight + place[:, None] + (o * weight_out)[None, :],
            mask=real[:, None] & (o < out_channels)[None, :],
            other=0.0,
        )
        acc = tl.dot(terms, kernel, acc, input_precision=PRECISION)

    # ---- the target
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
    pointer, target, row, share,  # plan.Pairs, by tap
    batch, grad_frames, source_frames, out_channels, n_tiles, depth_tiles, out_tiles,
    source_batch, source_channel, source_row, source_frame,  # strides
    grad_batch, grad_channel, grad_row, grad_frame,
    stride, dilation, padding,
    CHANNELS: tl.constexpr, KERNEL_FRAMES: tl.constexpr, BLENDS: tl.constexpr,
    PRECISION: tl.constexpr, DEPTH: tl.constexpr, OUT: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """Sum a tap's share of the weight's gradient over some of its rows and batch items.

    partial[split, group, tap, τ·C + c, o] =
        Σ_pairs Σ_t blend[c, t·stride + τ·dilation − padding]·G[o, target row, t]

    The splits are summed afterwards, in their order: no atomics, so every run gives the same.
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

    begin = tl.load(pointer + j)
    n_pairs = tl.load(pointer + j + 1) - begin
    items = batch * n_pairs
    each = (items + n_splits - 1) // n_splits
    stop = tl.minimum((split + 1) * each, items)
    acc = tl.full((DEPTH, OUT), 0.0, tl.float32)
    for step in range(split * each * n_tiles, stop * n_tiles):
        number = step // n_tiles
        item = (number // n_pairs).to(tl.int64)
        pair = begin + number % n_pairs
        t = step % n_tiles * FRAMES + tl.arange(0, FRAMES)
        first = tl.load(row + 2 * pair)
        frame = t[None, :] * stride + (tau * dilation - padding)[:, None]
        inside = (frame >= 0) & (t < grad_frames)[None, :]
        inside = inside & (q < CHANNELS * KERNEL_FRAMES)[:, None]
        place = source + item * source_batch + c[:, None] * source_channel + frame * source_frame
        terms = tl.load(
            place + first * source_row, mask=inside & (frame < source_frames), other=0.0
        )
        if BLENDS:
            second = tl.load(row + 2 * pair + 1)
            # a frame below none, where there is no second row
            limit = tl.where(second >= 0, source_frames, 0)
            above = tl.load(place + second * source_row, mask=inside & (frame < limit), other=0.0)
            blend = terms.to(tl.float32) * tl.load(share + 2 * pair)
            blend += above.to(tl.float32) * tl.load(share + 2 * pair + 1)
            terms = blend.to(source.dtype.element_ty)
        place = grad + item * grad_batch + tl.load(target + pair) * grad_row
        given = tl.load(
            place + t[:, None] * grad_frame + o[None, :] * grad_channel,
            mask=(t < grad_frames)[:, None] & (o < out_channels)[None, :],
            other=0.0,
        )
        acc = tl.dot(terms, given, acc, input_precision=PRECISION)

    n_taps = tl.num_programs(1) // depth_tiles
    n_groups = tl.num_programs(2) // out_tiles
    place = (split * n_groups + group) * n_taps + j
    partial += place * CHANNELS * KERNEL_FRAMES * out_channels
    tl.store(
        partial + q[:, None] * out_channels + o[None, :],
        acc,
        mask=(q < CHANNELS * KERNEL_FRAMES)[:, None] & (o < out_channels)[None, :],
    )
