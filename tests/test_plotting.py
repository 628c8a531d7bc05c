"""Pictures: what is drawn is where it should be."""

import sys

import pytest
import torch

from harmonic_lowering import FrequencyTaps, HarmonicConv2d, plot_taps
from harmonic_lowering.plotting import plot_spectrograms


def boxes(axes):
    return sorted((p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches)


def test_a_box_lies_over_each_row_that_reads():
    taps = FrequencyTaps.harmonic(4, anchor=2)
    axes = plot_taps(taps, torch.rand(41, 30), output_bin=10, output_frame=20, kernel_frames=5)
    assert boxes(axes) == [(17.5, y, 5, 1) for y in (4.5, 9.5, 14.5, 19.5)]
    assert axes.get_title() == "all 4 rows read"
    axes = plot_taps(taps, torch.rand(41, 30), output_bin=30)
    assert len(axes.patches) == 2
    assert axes.get_title() == "2 of 4 rows read outside and see zeros"


def test_the_loudest_place_is_the_default():
    spectrogram = torch.full((20, 9), 0.01)
    spectrogram[7, 4] = 1
    axes = plot_taps(FrequencyTaps.harmonic(1), spectrogram.to(torch.complex64))
    assert boxes(axes) == [(2.5, 6.5, 3, 1)]


def test_it_draws_on_given_axes_and_can_be_saved(tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    axes = figure_module.Figure().subplots()
    assert plot_taps(FrequencyTaps.harmonic(3), torch.zeros(9, 9), ax=axes) is axes
    axes.figure.savefig(tmp_path / "taps.png")
    assert (tmp_path / "taps.png").stat().st_size > 1000


def test_a_layer_will_do():
    axes = plot_taps(HarmonicConv2d(1, 1, 4, anchor=2), torch.rand(41, 30), output_bin=10)
    assert [y for _, y, _, _ in boxes(axes)] == [4.5, 9.5, 14.5, 19.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_bin": 9}, r"output_bin must be in 0 … 8, got 9"),
        ({"output_bin": -1}, r"output_bin must be in 0 … 8, got -1"),
        ({"output_frame": 7}, r"output_frame must be in 0 … 6, got 7"),
        ({"kernel_frames": 0}, r"kernel_frames must be an int >= 1, got 0"),
        ({"range_db": 0}, r"range_db must be > 0, got 0"),
    ],
)
def test_places_outside_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_taps(FrequencyTaps.harmonic(3), torch.zeros(9, 7), **arguments)


def test_what_has_no_taps_is_refused():
    with pytest.raises(TypeError, match="must be FrequencyTaps or a harmonic layer, got Conv2d"):
        plot_taps(torch.nn.Conv2d(1, 1, 3), torch.zeros(9, 7))


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"shape \(freq, time\).* got \(1, 1, 9, 9\)"):
        plot_taps(FrequencyTaps.harmonic(3), torch.zeros(1, 1, 9, 9))


def test_without_matplotlib_the_call_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a picture needs .*'harmonic-lowering\[plot\]'"):
        plot_taps(FrequencyTaps.harmonic(3), torch.zeros(9, 9))


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images]


def test_the_level_of_a_full_sine_is_0_dbfs():
    pytest.importorskip("matplotlib")
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    figure = plot_spectrograms({"before": sine, "after": 0.1 * sine}, 16000, title="$name$ 音.wav")
    before, after = images(figure)
    assert float(before.get_array()[:, 20].max()) == pytest.approx(0, abs=0.1)
    assert float(after.get_array()[:, 20].max()) == pytest.approx(-20, abs=0.1)
    assert before.get_clim() == after.get_clim() == pytest.approx((-80, 0), abs=0.1)
    assert figure.axes[-1].get_ylabel() == "level (dBFS)"
    assert figure.get_suptitle() == "$name$ 音.wav"


def test_silence_is_dark():
    pytest.importorskip("matplotlib")
    figure = plot_spectrograms({"before": torch.zeros(2, 4000)}, 8000)
    (image,) = images(figure)
    assert float(image.norm(image.get_array()).max()) <= 0
