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
_SIZES = [
    "target_rows", "out_channels", "batch", "n_tiles", "depth_tiles", "out_tiles", "padding",
]  # fmt: skip


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
    COLUMNS: tl.constexpr, FRAMES: tl.constexpr, STEP: tl.constexpr, LEAD: tl.constexpr,
    OUT: tl.constexpr, DEPTH: tl.constexpr, N_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute one target row of one batch item: some frames, some output channels of a group.

    Y[t, o] = bias[o] + Σ_pairs Σ_τ Σ_c blend[c, t·stride + τ·dilation − padding]·W[o, c, tap, τ]

    A `spread` above 1 puts that many frames − 1 of zeros between the frames of the source, which
    is how the gradient of a strided convolution is one again; FLIP reverses the kernel's columns.

    The sums over pairs, τ and c are one sum, of DEPTH terms a step. COLUMNS takes τ out of it:
    each source frame is multiplied by all kernel columns at once, and the columns' results are
    shifted in time and added at the end, because a shift commutes with the other sums. So a row is
    read and blended once, not K_t times. A tile then reads FRAMES frames, LEAD of them before its
    own STEP.
    """
    # ---- which part of the target this program owns
    part = tl.program_id(0)
    tile = part % n_tiles
    f = part // n_tiles % target_rows
    item = (part // n_tiles // target_rows).to(tl.int64)
    group = (tl.program_id(1) // out_tiles).to(tl.int64)
    o = tl.program_id(1) % out_tiles * OUT + tl.arange(0, OUT)
    i = tl.arange(0, FRAMES)
    t = tile * STEP + i
    if COLUMNS:
        n = tl.arange(0, N_COLUMNS * OUT)
        column = n // OUT
        out = tl.program_id(1) % out_tiles * OUT + n % OUT
        acc = tl.full((FRAMES, N_COLUMNS * OUT), 0.0, tl.float32)
        period: tl.constexpr = CHANNELS
    else:
        out = o
        acc = tl.full((FRAMES, OUT), 0.0, tl.float32)
        period: tl.constexpr = CHANNELS * KERNEL_FRAMES
    # Whether all terms of a step have the pair and the kernel column in common.
    ALIKE: tl.constexpr = CHANNELS % DEPTH == 0
    source += item * source_batch + group * CHANNELS * source_channel
    weight += group * weight_group

    # ---- the sum
    begin = tl.load(pointer + f)
    total = (tl.load(pointer + f + 1) - begin) * period
    for start in range(0, total, DEPTH):
        if ALIKE:
            pair = begin + start // period
            tau = start % period // CHANNELS
            c = start % CHANNELS + tl.arange(0, DEPTH)
            first = tl.load(row + 2 * pair)
            j = tl.load(tap + pair)
            readable = (c >= 0)[None, :]
        else:
            q = start + tl.arange(0, DEPTH)
            pair = begin + q // period
            tau = q % period // CHANNELS
            c = q % CHANNELS
            first = tl.load(row + 2 * pair, mask=q < total, other=-1)
            j = tl.load(tap + pair, mask=q < total, other=0)
            readable = (first >= 0)[None, :]
        if COLUMNS:
            frame = t[:, None] - LEAD
            k = tl.where(FLIP, KERNEL_FRAMES - 1 - column, column)[None, :]
            real = readable.trans(1, 0) & (column < KERNEL_FRAMES)[None, :]
            inside = (frame >= 0) & (frame < source_frames)
        else:
            later = tau * dilation - padding
            if not ALIKE:
                later = later[None, :]
            frame = t[:, None] * stride + later
            k = tl.where(FLIP, KERNEL_FRAMES - 1 - tau, tau)
            if not ALIKE:
                k = k[:, None]
            real = readable.trans(1, 0)
            inside = (frame >= 0) & (frame < source_frames * spread)
            inside = inside & (frame % spread == 0)
            frame = frame // spread
        place = source + c[None, :] * source_channel + frame * source_frame
        step = first * source_row
        if not ALIKE:
            step = step[None, :]
        terms = tl.load(place + step, mask=inside & readable, other=0.0)
        if BLENDS:
            # In float32: the 8 bits of a half type would round the shares.
            if ALIKE:
                second = tl.load(row + 2 * pair + 1)
                above = tl.load(place + second * source_row, mask=inside & (second >= 0), other=0.0)
                blend = terms.to(tl.float32) * tl.load(share + 2 * pair)
                blend += above.to(tl.float32) * tl.load(share + 2 * pair + 1)
            else:
                second = tl.load(row + 2 * pair + 1, mask=q < total, other=-1)
                first_share = tl.load(share + 2 * pair, mask=q < total, other=0.0)
                second_share = tl.load(share + 2 * pair + 1, mask=q < total, other=0.0)
                above = tl.load(
                    place + (second * source_row)[None, :],
                    mask=inside & (second >= 0)[None, :], other=0.0,
                )  # fmt: skip
                blend = terms.to(tl.float32) * first_share[None, :]
                blend += above.to(tl.float32) * second_share[None, :]
            terms = blend.to(source.dtype.element_ty)
        place = c * weight_in + j * weight_tap
        kernel = tl.load(
            weight + place[:, None] + k * weight_frame + out[None, :] * weight_out,
            mask=real & (out < out_channels)[None, :],
            other=0.0,
        )
        acc = tl.dot(terms, kernel, acc, input_precision=PRECISION)

    # ---- the target
    if COLUMNS:
        later = i[:, None] + (column * dilation - padding + LEAD)[None, :]
        found = (later >= 0) & (later < FRAMES) & (column < KERNEL_FRAMES)[None, :]
        acc = tl.gather(acc, tl.minimum(tl.maximum(later, 0), FRAMES - 1), 0)
        acc = tl.where(found, acc, 0.0)
        acc = tl.sum(tl.reshape(acc, (FRAMES, N_COLUMNS, OUT)), 1)
    if HAS_BIAS:
        place = bias + group * out_channels + o
        acc += tl.load(place, mask=o < out_channels, other=0.0).to(tl.float32)[None, :]
    target += item * target_batch + group * out_channels * target_channel
    target += f.to(tl.int64) * target_row
    written = (t < target_frames) & (i < STEP)
    tl.store(
        target + t[:, None] * target_frame + o[None, :] * target_channel,
        acc.to(target.dtype.element_ty),
        mask=written[:, None] & (o < out_channels)[None, :],
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
