"""Pictures; matplotlib is asked for only when one is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .checks import as_count
from .optional import import_optional
from .spectral import Stft
from .taps import FrequencyTaps

__all__ = ["plot_notes", "plot_spectrograms", "plot_taps"]

_QUIET_DBFS = -50.0  # what is nowhere louder is drawn dark


def plot_taps(
    taps: FrequencyTaps | Any,
    spectrogram: Tensor,
    *,
    output_bin: int | None = None,
    output_frame: int | None = None,
    kernel_frames: int = 3,
    range_db: float = 70.0,
    ax: Any = None,
) -> Any:
    """Draw where a kernel looks on a spectrogram.

    Each kernel row is a box over the frames and the bin that it reads for one place of the output;
    rows that read outside of the spectrogram are counted in the title.

    Parameters
    ----------
    taps : FrequencyTaps or a layer that has them
        A harmonic layer, or made by hand; ``FrequencyTaps.from_shifts((-1, 0, 1))`` is where an
        ordinary 3-row kernel looks.
    spectrogram : Tensor [shape=(F, T)]
        Magnitudes, or a complex spectrum, to draw the kernel on. It need not be sound: zeros do.
    output_bin, output_frame : int, optional
        The place in the output. The loudest bin of the loudest frame if left out.
    kernel_frames : int >= 1
        Columns of the kernel.
    range_db : float > 0
        Range of the colours below the loudest bin.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; a new figure if left out.

    Returns
    -------
    matplotlib.axes.Axes
        Save the picture with ``axes.figure.savefig(path)``.

    Raises
    ------
    TypeError
        If `taps` has no taps.
    ValueError
        If `spectrogram` is not (F, T), or a place lies outside of it.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> axes = plot_taps(FrequencyTaps.harmonic(5, anchor=2), torch.rand(65, 40), output_bin=16)
    >>> axes.get_title()
    'all 5 rows read'
    """
    taps = getattr(taps, "taps", taps)
    if not isinstance(taps, FrequencyTaps):
        raise TypeError(f"taps must be FrequencyTaps or a harmonic layer, got {taps!r}")
    kernel_frames = as_count("kernel_frames", kernel_frames)
    if not range_db > 0:
        raise ValueError(f"range_db must be > 0, got {range_db!r}")
    if spectrogram.ndim != 2 or 0 in spectrogram.shape:
        raise ValueError(
            "spectrogram must have shape (freq, time): one channel of one recording, "
            f"got {tuple(spectrogram.shape)}"
        )
    level = spectrogram.detach().cpu().abs().to(torch.float32)
    n_bins, n_frames = level.shape
    if output_frame is None:
        output_frame = int(level.square().sum(0).argmax())
    if not 0 <= output_frame < n_frames:
        raise ValueError(f"output_frame must be in 0 … {n_frames - 1}, got {output_frame!r}")
    if output_bin is None:
        output_bin = int(level[:, output_frame].argmax())
    if not 0 <= output_bin < n_bins:
        raise ValueError(f"output_bin must be in 0 … {n_bins - 1}, got {output_bin!r}")

    if ax is None:
        ax = _matplotlib("figure").Figure(figsize=(7, 4.5), layout="constrained").subplots()
    rectangle = _matplotlib("patches").Rectangle
    decibels = 20 * level.clamp_min(1e-10).log10()
    top = float(decibels.max())
    ax.imshow(
        decibels.numpy(), origin="lower", aspect="auto", cmap="Greys", vmin=top - range_db, vmax=top
    )
    left = output_frame - kernel_frames / 2
    positions = [float(taps.position(tap, output_bin)) for tap in range(len(taps))]
    inside = [position for position in positions if 0 <= position <= n_bins - 1]
    for position in inside:
        # An outline one bin high, and a tick beside it that is visible at any size of picture.
        ax.add_patch(rectangle((left, position - 0.5), kernel_frames, 1, fill=False, ec="C3"))
        ax.plot([left - 1, left + kernel_frames + 1], [position] * 2, color="C3", lw=2, alpha=0.75)
    ax.plot(output_frame, output_bin, "o", color="C0", ms=7, label="output")
    outside = len(positions) - len(inside)
    ax.set(
        title=f"{outside} of {len(positions)} rows read outside and see zeros"
        if outside
        else f"all {len(positions)} rows read",
        xlabel="frame",
        ylabel="bin",
        xlim=(-0.5, n_frames - 0.5),
        ylim=(-0.5, n_bins - 0.5),
    )
    ax.legend(loc="upper right")
    return ax


def plot_spectrograms(
    waveforms: Mapping[str, Tensor], sample_rate: int, *, range_db: float = 80.0, title: str = ""
) -> Any:
    """Draw spectrograms under each other, all on one scale of dBFS.

    0 dBFS is a sine of full scale. The colours reach down from the loudest bin of all, or from
    −50 dBFS if that is louder, so that silence is dark.

    Parameters
    ----------
    waveforms : mapping of title to Tensor [shape=(L,) or (C, L)]
        Powers of several channels are averaged.
    sample_rate : int, Hz
    range_db : float > 0
        Range of the colours.
    title : str
        Stands above all, as the name of the recording; drawn as it is, without mathematics.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig(path)``; no window is opened and no global state is touched.
    """
    transform = Stft.for_rate(sample_rate)
    full_scale = transform.n_fft / 4  # |X| of a sine of amplitude 1, in a Hann window
    levels = {}
    for name, waveform in waveforms.items():
        spectrum = transform(waveform if waveform.ndim == 2 else waveform[None]) / full_scale
        levels[name] = 10 * spectrum.abs().square().mean(0).clamp_min(1e-20).log10()
    top = max(_QUIET_DBFS, *(float(level.max()) for level in levels.values()))
    figure = _matplotlib("figure").Figure(figsize=(9, 2.7 * len(levels)), layout="constrained")
    axes = figure.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, waveform) in zip(axes, waveforms.items(), strict=True):
        image = axis.imshow(
            levels[name].cpu().numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, waveform.shape[-1] / sample_rate, 0, sample_rate / 2000),
            vmin=top - range_db,
            vmax=top,
            cmap="magma",
        )
        axis.set(title=name, ylabel="frequency (kHz)")
    axes[-1].set_xlabel("time (s)")
    if title:
        figure.suptitle(title, parse_math=False)
    figure.colorbar(image, ax=list(axes), label="level (dBFS)")
    return figure


def plot_notes(
    level: Tensor,
    notes: Iterable[tuple[float, float, int]],
    frame_s: float,
    *,
    lowest: int = 21,
    bins_per_semitone: int = 3,
    range_db: float = 60.0,
    title: str = "",
) -> Any:
    """Draw notes as a piano roll over a log-frequency spectrogram.

    Parameters
    ----------
    level : Tensor [shape=(bins, T)]
        In dB; the middle bin of the lowest semitone is the pitch `lowest`.
    notes : iterable of (start, end, pitch)
        In seconds, and as MIDI numbers.
    frame_s : float > 0
        Seconds from frame to frame.
    lowest, bins_per_semitone : int
        Of the spectrogram.
    range_db : float > 0
        Range of the colours.
    title : str
        Stands above, drawn as it is.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig(path)``.
    """
    bins, frames = level.shape
    figure = _matplotlib("figure").Figure(figsize=(12, 6), layout="constrained")
    axis = figure.subplots()
    top, left, bottom = float(level.max()), -frame_s / 2, lowest - 0.5
    axis.imshow(
        level.cpu().numpy(), origin="lower", aspect="auto", cmap="Greys",
        vmin=top - range_db, vmax=top,
        extent=(left, left + frames * frame_s, bottom, bottom + bins / bins_per_semitone),
    )  # fmt: skip
    rectangle = _matplotlib("patches").Rectangle
    for start, end, pitch in notes:
        if start < frames * frame_s:
            place = (start, pitch - 0.5)
            axis.add_patch(rectangle(place, end - start, 1, fc="C0", ec="C3", alpha=0.5))
    octaves = [pitch for pitch in range(24, 121, 12) if bottom < pitch < bottom + bins / 3]
    axis.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
    axis.set(xlabel="time (s)", ylabel="pitch", xlim=(0, frames * frame_s), ylim=(bottom, None))
    if title:
        axis.set_title(title, parse_math=False)
    return figure


def _matplotlib(part: str) -> Any:
    # not pyplot: its Figure needs no window and touches no global state
    return import_optional(f"matplotlib.{part}", "a picture", "harmonic-lowering[plot]")
