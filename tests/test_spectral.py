"""The transform and its inverse: exact length, exact samples, errors."""

import pytest
import torch

from harmonic_lowering.spectral import Stft

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (512, 256), (512, 100), (64, 7), (2, 1)])
def test_inverse_is_exact_at_every_length(n_fft, hop, dtype):
    transform = Stft(n_fft, hop)
    for length in range(transform.shortest, transform.shortest + 2 * hop + 2, max(1, hop // 9)):
        sound = torch.rand(2, 3, length, dtype=dtype) * 2 - 1
        spectrum = transform(sound)
        assert spectrum.shape == (2, 3, transform.bins, transform.frames(length))
        back = transform.inverse(spectrum, length)
        assert back.dtype == dtype
        assert back.shape == sound.shape
        assert (back - sound).abs().max() <= 20 * TOLERANCE[dtype]


def test_definition():
    transform = Stft(16, 4)
    sound = torch.randn(64, dtype=torch.float64)
    window = torch.hann_window(16, dtype=torch.float64)
    frame = 5
    expected = torch.fft.rfft(window * sound[frame * 4 - 8 : frame * 4 + 8])
    assert torch.allclose(transform(sound)[:, frame], expected, atol=1e-12)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 192000])
def test_window_lasts_as_long_at_every_rate(rate):
    transform = Stft.for_rate(rate)
    assert transform.n_fft / rate == pytest.approx(0.064, rel=0.01)
    assert transform.n_fft == 4 * transform.hop_length


@pytest.mark.parametrize(("n_fft", "hop"), [(7, 2), (0, 1), (8, 0), (8, 5)])
def test_refuses_windows_and_hops_that_lose_samples(n_fft, hop):
    with pytest.raises(ValueError, match=r"must (be even|lie in)"):
        Stft(n_fft, hop)


def test_refuses_wrong_input():
    transform = Stft(16, 4)
    with pytest.raises(ValueError, match="at least 9 samples for n_fft 16, got 8"):
        transform(torch.zeros(8))
    with pytest.raises(TypeError, match="float32 or float64"):
        transform(torch.zeros(64, dtype=torch.float16))
    with pytest.raises(ValueError, match="has a spectrum of 9 bins and 17 frames"):
        transform.inverse(torch.zeros(9, 16, dtype=torch.complex64), 64)
