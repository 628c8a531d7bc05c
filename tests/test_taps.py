"""The geometry: exact positions, live rows, dead and equal taps."""

import copy
import math
import os
import pickle
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonic_lowering import FrequencyTaps, origin_after_pooling
from harmonic_lowering.taps import _rows

ratios = st.fractions(min_value=Fraction(1, 9), max_value=9, max_denominator=12)
linear_taps = st.builds(
    FrequencyTaps.from_ratios,
    st.lists(ratios, min_size=1, max_size=4),
    st.fractions(min_value=-1, max_value=2, max_denominator=8),
    st.sampled_from(["linear", "nearest"]),
)
shifted_taps = st.builds(
    FrequencyTaps.from_shifts,
    st.lists(st.floats(-30, 30), min_size=1, max_size=4),
    st.sampled_from(["linear", "nearest"]),
)
any_taps = st.one_of(linear_taps, shifted_taps)


@given(taps=any_taps, n_bins=st.integers(1, 40))
def test_live_range_is_where_the_position_lies_inside(taps, n_bins):
    for tap, positions in enumerate(taps.positions(n_bins)):
        live = [f for f in range(n_bins) if 0 <= positions[f] <= n_bins - 1]
        assert list(taps.live_range(tap, n_bins)) == live


@given(taps=any_taps, n_bins=st.integers(1, 40), stride=st.integers(1, 5))
def test_rows_are_the_positions_of_live_bins(taps, n_bins, stride):
    for tap, rows in enumerate(taps.rows(n_bins, stride)):
        bins = [f for f in taps.live_range(tap, n_bins) if f % stride == 0]
        assert [row * stride for row in range(rows.start, rows.stop)] == bins
        positions = [taps.position(tap, f) for f in bins]
        assert list(rows.lower) == [math.floor(p) for p in positions]
        assert list(rows.weight) == [float(p - math.floor(p)) for p in positions]
        assert all(
            low + bool(weight) <= n_bins - 1
            for low, weight in zip(rows.lower, rows.weight, strict=True)
        )


def test_positions_are_exact_where_float32_is_not():
    taps = FrequencyTaps.harmonic(3, anchor=7)
    assert taps.position(2, 7 * 285) == 3 * 285
    assert taps.position(2, 2000) == Fraction(6000, 7)


def test_the_last_bin_counts():
    """3·(7/3) is 7 exactly; as a rounded product it may fall outside of 8 bins."""
    assert FrequencyTaps.from_ratios([7 / 3]).live_range(0, n_bins=8) == range(0, 4)
    assert FrequencyTaps.harmonic(1).live_range(0, n_bins=8) == range(0, 8)


@pytest.mark.parametrize(
    ("typed", "meant"), [(1 / 3, Fraction(1, 3)), (0.1, Fraction(1, 10)), (2, Fraction(2))]
)
def test_simple_floats_are_read_as_the_fraction_meant(typed, meant):
    assert FrequencyTaps.from_ratios([typed]).slopes == (meant,)


def test_other_floats_are_kept_exactly():
    fifth = 2 ** (7 / 12)
    assert FrequencyTaps.from_ratios([fifth]).slopes == (Fraction(fifth),)


def test_bin_j_stands_for_frequency_j_plus_origin():
    """A spectrogram without DC reads the same frequencies as the one with it."""
    with_dc = FrequencyTaps.harmonic(4, anchor=3)
    without = FrequencyTaps.harmonic(4, anchor=3, origin=1)
    for tap in range(4):
        for f in range(20):
            assert without.position(tap, f) + 1 == with_dc.position(tap, f + 1)


@pytest.mark.parametrize("pooling", ["average", "stride"])
def test_pooled_bins_read_the_same_frequencies(pooling):
    factor, origin = 3, Fraction(1, 2)
    pooled = origin_after_pooling(origin, factor, pooling)
    taps = FrequencyTaps.harmonic(2, origin=pooled)
    centre = Fraction(factor - 1, 2) if pooling == "average" else 0
    for f in range(10):  # centre of pooled bin j on the axis before pooling, as a frequency
        frequency = factor * f + centre + origin
        read = factor * taps.position(1, f) + centre + origin
        assert read == 2 * frequency


def test_octaves_are_whole_shifts():
    taps = FrequencyTaps.log_harmonic(16, bins_per_octave=12)
    assert [taps.offsets[k - 1] for k in (1, 2, 4, 8, 16)] == [0, 12, 24, 36, 48]


@given(any_taps)
def test_taps_survive_as_text(taps):
    assert FrequencyTaps.from_text(taps.text) == taps


def test_ties_round_upwards():
    taps = FrequencyTaps.from_ratios([1 / 2], interpolation="nearest")
    assert [taps.position(0, f) for f in range(5)] == [0, 1, 1, 2, 2]


def test_seven_anchors_of_seven_rows_hold_35_distinct_taps():
    taps = FrequencyTaps.harmonic(7, anchor=tuple(range(1, 8)))
    distinct, place = taps.merged()
    assert (len(taps), len(distinct)) == (49, 35)
    assert [distinct.slopes[i] for i in place] == list(taps.slopes)


def test_dead_taps_and_live_share():
    taps = FrequencyTaps.log_harmonic(3, bins_per_octave=12)
    assert taps.dead(n_bins=13) == (2,)
    assert taps.dead(n_bins=100) == ()
    assert FrequencyTaps.harmonic(7).live_share(n_bins=256) == pytest.approx(0.37, abs=0.01)


@pytest.mark.slow
def test_a_pickle_of_taps_is_the_same_key_in_another_process():
    taps = FrequencyTaps.harmonic(3, anchor=(1, 2), interpolation="nearest")
    hash(taps)
    assert copy.deepcopy(taps) == taps
    code = (
        "import pickle, sys; from harmonic_lowering import FrequencyTaps as T;"
        f"t = pickle.loads({pickle.dumps(taps)!r});"
        "assert {t: 1}[T.harmonic(3, (1, 2), interpolation='nearest')] == 1"
    )
    # its own search path: the package need not be installed for its tests to run
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_taps_are_fractions_however_they_are_given():
    taps = FrequencyTaps([1 / 3, 2], [0, 0.1])
    assert taps == FrequencyTaps((Fraction(1, 3), Fraction(2)), (Fraction(0), Fraction(1, 10)))
    assert hash(taps) == hash(copy.deepcopy(taps))
    assert taps.positions(2) == ((0, Fraction(1, 3)), (Fraction(1, 10), Fraction(21, 10)))


def test_descriptions_are_short():
    taps = FrequencyTaps.from_shifts([10**30, Fraction(1, 3), -(2**0.5), 10**30 + 0.5])
    words = [taps.describe(tap) for tap in range(4)]
    assert words == ["f + 1e+30", "f + 1/3", "f - 1.41421", "f + 1e+30"]


def test_rows_take_sixteen_bytes_each_and_few_are_kept():
    for n_bins in range(1, 200):
        rows = FrequencyTaps.harmonic(2).rows(n_bins)
    assert _rows.cache_info().currsize <= 64
    n_bytes = sum(memoryview(a).nbytes for tap in rows for a in (tap.lower, tap.weight))
    assert n_bytes == 16 * sum(len(tap.lower) for tap in rows)
