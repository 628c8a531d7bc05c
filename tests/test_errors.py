"""Bad input: each gets one sentence that says what was expected, what came, how to mend it."""

import math

import pytest
import torch

from harmonic_lowering import (
    FrequencyTaps,
    HarmonicConv2d,
    HarmonicLowering,
    LogHarmonicConv2d,
    harmonic_conv2d,
    log_harmonic_conv2d,
    origin_after_pooling,
)

H, L = HarmonicConv2d, LogHarmonicConv2d
CONSTRUCTION = [
    (lambda: H(1, 1, 0), r"kernel_size must be >= 1, got 0"),
    (lambda: H(1, 1, (3, -1)), r"kernel_size must be >= 1, got \(3, -1\)"),
    (lambda: H(1, 1, 3.0), r"kernel_size must be an int or a pair \(freq, time\) of ints, got 3.0"),
    (lambda: H(1, 1, (1, 2, 3)), r"kernel_size must be an int or a pair"),
    (lambda: H(1, 1, 3, anchor=0), r"anchor must be an int >= 1, got 0"),
    (lambda: H(1, 1, 3, anchor=-2), r"anchor must be an int >= 1, got -2"),
    (lambda: H(1, 1, 3, anchor=1.5), r"anchor must be an int >= 1, got 1.5"),
    (lambda: H(1, 1, 3, anchor=True), r"anchor must be an int >= 1, got True"),
    (lambda: H(1, 1, 3, anchor=()), r"several of them, got an empty sequence"),
    (lambda: H(1, 1, 3, anchor=(1, 2.0)), r"anchor must be an int >= 1, got 2.0"),
    (lambda: H(1, 1, 3, anchor="12"), r"anchor must be an int >= 1, got '12'"),
    (lambda: H(1, 1, 3, padding=(1, 1)), r"padding along frequency must be 0.*Give padding=1"),
    (lambda: H(1, 1, 3, padding=-1), r"padding must be >= 0, got -1"),
    (lambda: H(1, 1, 3, padding=(0, -1)), r"padding must be >= 0, got \(0, -1\)"),
    (lambda: H(1, 1, 3, padding="full"), r"'same' or 'valid', got 'full'"),
    (lambda: H(1, 1, 3, stride=2, padding="same"), r"padding='same' needs stride 1"),
    (lambda: H(1, 1, 3, stride=0), r"stride must be >= 1, got 0"),
    (lambda: H(1, 1, 3, dilation=(2, 2)), r"dilation along frequency must be 1.*dilation=2"),
    (lambda: H(1, 1, 3, dilation=0), r"dilation must be >= 1, got 0"),
    (lambda: H(1, 1, 3, padding_mode="reflect"), r"padding_mode must be 'zeros', got 'reflect'"),
    (lambda: H(3, 4, 3, groups=2), r"groups must divide in_channels and out_channels"),
    (lambda: H(0, 4, 3), r"in_channels must be an int >= 1, got 0"),
    (lambda: H(1, 1, 3, engine="fast"), r"engine must be 'auto' or one of \[.*\], got 'fast'"),
    (lambda: H(1, 1, 3, harmonics=(1, 2)), r"one entry for each kernel row, got 2 entries for 3"),
    (lambda: H(1, 1, (2, 3), harmonics=(0, 2)), r"a harmonic ratio must be > 0, got 0"),
    (lambda: H(1, 1, (2, 3), harmonics=(1, math.nan)), r"ratio must be a finite number, got nan"),
    (lambda: H(1, 1, (2, 3), harmonics=(1, math.inf)), r"ratio must be a finite number, got inf"),
    (lambda: H(1, 1, (2, 3), harmonics=(1, "2")), r"ratio must be a finite number, got '2'"),
    (lambda: H(1, 1, (1, 3), harmonics=2), r"harmonics must be a sequence"),
    (lambda: H(1, 1, (2, 3), harmonics=(1, 2), anchor=2), r"give anchor or harmonics, not both"),
    (lambda: H(1, 1, 3, origin=math.nan), r"origin must be a finite number, got nan"),
    (lambda: H(1, 1, 3, origin=torch.tensor(1.0)), r"origin must be a.*tensor\(1.\).*\.item\(\)"),
    (lambda: H(1, 1, 3, origin=[1]), r"origin must be a finite number, got \(1,\)"),
    (lambda: H(1, 1, 3, origin=10**400), r"origin must be a finite number, got 1000"),
    (lambda: H(1, 1, (1, 3), harmonics=torch.ones(1)), r"ratio must be.*tensor.*\.item\(\)"),
    (lambda: H(1, 1, 3, interpolation="cubic"), r"must be 'linear' or 'nearest', got 'cubic'"),
    (lambda: L(1, 1, 3), r"needs its resolution: give bins_per_octave="),
    (lambda: L(1, 1, 3, bins_per_octave=0), r"bins_per_octave must be > 0, got 0"),
    (lambda: L(1, 1, 3, shifts=(1, 2)), r"shifts must have one entry for each kernel row"),
    (lambda: L(1, 1, 3, shifts=(1, 2, math.inf)), r"a shift must be a finite number, got inf"),
    (lambda: L(1, 1, 3, shifts=(1, 2, 3), bins_per_octave=9), r"give it without anchor"),
    (lambda: HarmonicLowering(), r"give n_harmonics, or harmonics="),
    (lambda: HarmonicLowering(0), r"the number of harmonics .* must be an int >= 1, got 0"),
    (
        lambda: FrequencyTaps((1, math.inf), (0, 0)),
        r"one of slopes must be a finite number, got inf",
    ),
    (lambda: FrequencyTaps((1, -1), (0, 0)), r"slopes must be > 0, got \['1', '-1'\]"),
    (
        lambda: FrequencyTaps((1,), "0"),
        r"offsets must be a sequence of at least one number, got .0.",
    ),
    (lambda: FrequencyTaps.harmonic(2).rows(9, 0), r"stride must be an int >= 1, got 0"),
    (lambda: FrequencyTaps.harmonic(2).rows(-1), r"n_bins must be an int >= 0, got -1"),
    (lambda: FrequencyTaps((), ()), r"as many offsets as slopes, and at least one"),
    (lambda: origin_after_pooling(0, 0), r"factor must be an int >= 1, got 0"),
    (lambda: origin_after_pooling(0, 2, "max"), r"pooling must be 'average' or 'stride'"),
]


@pytest.mark.parametrize(("make", "message"), CONSTRUCTION, ids=range(len(CONSTRUCTION)))
def test_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


X, W, W6 = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3), torch.randn(6, 4, 6, 3)
CALLS = [
    (lambda: H(3, 4, 3)(X), ValueError, r"needs an input of 3 channels.*\(2, 4, 9, 8\)"),
    (lambda: H(4, 4, 3)(X[0, 0]), ValueError, r"got 2 dimensions: \(9, 8\)"),
    (lambda: H(4, 4, 3)(X[None]), ValueError, r"got 5 dimensions"),
    (
        lambda: H(4, 4, 3)(X.long()),
        TypeError,
        r"floating-point dtype .*, got torch.int64.*\.float\(\)",
    ),
    (lambda: H(4, 4, 3)(X.cfloat()), TypeError, r"complex64: use torch.view_as_real"),
    (lambda: H(4, 4, 3)(X.double()), TypeError, r"same dtype, got torch.float64 and torch.float32"),
    (lambda: H(4, 4, 3)(X[:, :, :0]), ValueError, r"no frequency bins"),
    (lambda: H(4, 4, (3, 9))(X), ValueError, r"spans 9 frames but the padded input has 8"),
    (lambda: harmonic_conv2d(X, W[0]), ValueError, r"weight must have shape.*got \(4, 3, 3\)"),
    (
        lambda: harmonic_conv2d(X, W[0], harmonics=(1, 2, 3)),
        ValueError,
        r"weight must have shape \(out_channels, in_channels / groups, rows, frames\)",
    ),
    (lambda: harmonic_conv2d(X, W[..., :0]), ValueError, r"at least one frame, got \(6, 4, 3, 0\)"),
    (lambda: harmonic_conv2d(X, W, groups=1.0), ValueError, r"groups must be an int >= 1, got 1.0"),
    (lambda: harmonic_conv2d(X, W, groups=-1), ValueError, r"groups must be an int >= 1, got -1"),
    (
        lambda: harmonic_conv2d(X, W, torch.ones(6).double()),
        TypeError,
        r"input, weight and bias must have the same dtype.*and torch.float64",
    ),
    (lambda: H(1, 1, 3, dtype=torch.int32), TypeError, r"floating-point dtype, got torch.int32"),
    (lambda: L(1, 1, 3, bins_per_octave=2, dtype=torch.cfloat), TypeError, r"as two channels"),
    *(
        (question, IndexError, r"tap must be in 0 … 1, got (-1|2)")
        for question in (
            lambda: FrequencyTaps.harmonic(2).position(-1, 0),
            lambda: FrequencyTaps.harmonic(2).live_range(2, 9),
            lambda: FrequencyTaps.harmonic(2).describe(-1),
        )
    ),
    (lambda: harmonic_conv2d(X, W, groups=2), ValueError, r"groups=2 needs an input of 8 channels"),
    (lambda: harmonic_conv2d(X, W, torch.ones(4)), ValueError, r"bias must have shape \(6,\)"),
    (lambda: harmonic_conv2d(X, W, anchor=(1, 2)), ValueError, r"3 rows does not divide among 2"),
    (
        lambda: harmonic_conv2d(X, W, anchor_weight=torch.ones(2)),
        ValueError,
        r"one entry for each anchor, got shape \(2,\) for 1 anchors",
    ),
    (
        lambda: harmonic_conv2d(X, W6, anchor=(1, 2), anchor_weight=torch.ones(3)),
        ValueError,
        r"one entry for each anchor, got shape \(3,\) for 2 anchors",
    ),
    (
        lambda: log_harmonic_conv2d(X, W6, bins_per_octave=2, anchor_weight=torch.ones(2)),
        ValueError,
        r"one entry for each anchor, got shape \(2,\) for 1 anchors",
    ),
    (lambda: log_harmonic_conv2d(X, W), ValueError, r"needs its resolution"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS, ids=range(len(CALLS)))
def test_call(call, error, message):
    with pytest.raises(error, match=message):
        call()
