"""What the benchmark of denoisers gives to its methods, and how it scores what they return.

The recordings lie in Debian packages; here, files of noise with a few tones stand in for them.
"""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

import soundfile

from benchmarks.denoise import classical, faults, peers
from benchmarks.denoise.measure import DenoiserRow, RowKey, combinations, score
from benchmarks.denoise.methods import METHODS
from benchmarks.denoise.mixtures import (
    FAULTS,
    KEPT,
    PARTS,
    Mixture,
    add_noise,
    fetch_for,
    is_for_slow,
    make,
    mixtures,
    reference,
)
from benchmarks.denoise.recordings import NOISES, SHA256, SOUNDS, load, periodicity, swell_db

RATE = 16000


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    used = {"librivox-a", "announcer", "guitar", "tabla", "drums", "wind", "applause"}
    for recording in (*SOUNDS, *NOISES):
        for path in recording.paths if recording.name in used else ():
            file = folder / path
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, _wave(len(path)), 44100)
    return folder


def _wave(seed, seconds=4.5, rate=44100):
    """Two channels, sounding four times a second, of tones over a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time) for f in random.uniform(200, 3000, 5)) / 5
    envelope = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1) ** 2
    wave = 0.3 * envelope * tones + 0.003 * random.standard_normal(len(time))
    return np.stack([wave, 0.7 * wave], 1)


def _made(cache, part, recording, noise, level_db):
    kind = next((one.kind for one in SOUNDS if one.name == recording), "music")
    return make(Mixture(part, recording, kind, noise, level_db), cache)


def _db(wave):
    return 10 * np.log10(np.mean(wave**2))


def test_choices_and_reports_share_no_recording():
    everything = [*SOUNDS, *NOISES]
    chosen = {path for one in everything if one.use == "choose" for path in one.paths}
    reported = {path for one in everything if one.use == "report" for path in one.paths}
    assert chosen
    assert reported
    assert not chosen & reported
    assert chosen | reported == SHA256.keys()
    assert len({one.name for one in everything}) == len(everything)


def test_parts_hold_what_they_are_named_after():
    use = {one.name: one.use for one in (*SOUNDS, *NOISES)}
    for part in PARTS:
        found = mixtures(part)
        assert len(set(found)) == len(found)
        for name in {name for one in found for name in (one.recording, one.noise)} & use.keys():
            assert use[name] == ("choose" if part == "choose" else "report")
    assert {one.level_db for one in mixtures("real")} == {5, 10}
    assert len({one.noise for one in mixtures("real")}) >= 4
    kinds = mixtures("kinds")
    assert {*FAULTS, *KEPT, "clicks"} <= {one.noise for one in kinds}
    assert all(reference(one) in kinds for one in kinds if one.noise in FAULTS)
    own = mixtures("steady", ["mine"])
    assert {one.kind for one in own if one.recording == "mine"} == {"speech"}
    assert sum(one.recording == "mine" for one in mixtures("real", ["mine"])) == 0
    # Methods that take long run on two mixtures of a part.
    assert {sum(map(is_for_slow, mixtures(part))) for part in ("steady", "real")} == {2}


@pytest.mark.parametrize(
    ("part", "recording", "noise", "level_db"),
    [
        ("steady", "guitar", "white", 0.0),
        ("steady", "librivox-a", "pink", 5.0),
        ("steady", "guitar", "hum", 10.0),
        ("real", "librivox-a", "wind", 5.0),
        ("real", "guitar", "applause", 10.0),
        ("kinds", "guitar", "clicks", 10.0),
        ("kinds", "drums", "drums", 20.0),
        ("kinds", "saw", "bass", 20.0),
        ("kinds", "librivox-a", "bass under speech", 15.0),
        ("stereo", "announcer", "wind", 10.0),
        ("stereo", "guitar", "white", 10.0),
    ],
)
def test_a_mixture_is_the_same_twice_and_as_loud_as_it_says(
    cache, part, recording, noise, level_db
):
    made = _made(cache, part, recording, noise, level_db)
    again = _made(cache, part, recording, noise, level_db)
    assert made.noisy.tobytes() == again.noisy.tobytes()
    assert _db(made.clean) - _db(made.noise) == pytest.approx(level_db, abs=1e-6)
    assert np.abs(made.clean).max() == pytest.approx(0.3)
    assert made.sample_rate == (44100 if part == "stereo" else RATE)
    if part == "stereo":
        assert len(made.noise) == 2
        assert abs(np.corrcoef(made.noise)[0, 1]) < 0.5


def test_noise_depends_on_the_recording_and_clean_is_clean(cache):
    clean = load(next(one for one in SOUNDS if one.name == "guitar"), cache)
    first, second = (add_noise(clean, name, "white", 0, cache) for name in ("a", "b"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert not _made(cache, "clean", "guitar", "none", np.inf).noise.any()
    with pytest.raises(ValueError, match="there is no 'gong'; choose from white"):
        _made(cache, "kinds", "guitar", "gong", 0)


def test_faults_are_what_they_say(cache):
    plain = _made(cache, "steady", "librivox-a", "white", 10.0)
    half = RATE // 2
    step_of_16_bits = 2**-15

    leader = _made(cache, "kinds", "librivox-a", "leader", 10.0)
    start = leader.noisy[:half]
    assert 0 < np.abs(start).max() <= step_of_16_bits
    assert np.abs(leader.noisy[half:] - plain.noisy).max() <= step_of_16_bits

    gate = _made(cache, "kinds", "librivox-a", "gate", 10.0)
    shut = gate.gain == 0
    assert 0.1 < shut.mean() < 0.3
    assert np.abs(gate.noisy[shut]).max() <= step_of_16_bits
    assert np.abs((gate.noisy - plain.noisy)[gate.gain == 1]).max() <= step_of_16_bits
    assert _db(plain.clean[shut]) < _db(plain.clean) - 6

    fade = _made(cache, "kinds", "librivox-a", "fade", 10.0)
    assert _db(plain.noisy[-160:]) - _db(fade.noisy[-160:]) > 50
    assert np.abs((fade.noisy - plain.noisy)[: -round(1.5 * RATE)]).max() <= step_of_16_bits

    step = _made(cache, "kinds", "librivox-a", "step", 10.0)
    middle = len(plain.clean) // 2
    assert np.abs((step.noisy - plain.noisy)[: middle - 200]).max() <= step_of_16_bits
    after = slice(middle + 200, None)
    assert _db(plain.noisy[after]) - _db(step.noisy[after]) == pytest.approx(12, abs=0.1)


def test_clicks_are_short_and_twenty_a_second():
    sound = faults.clicks(4 * RATE, RATE, np.random.default_rng(0))
    places = np.flatnonzero(sound)
    starts = 1 + np.count_nonzero(np.diff(places) > RATE // 1000)
    assert 60 <= starts <= 80  # some overlap
    assert len(places) < 80 * 0.0025 * RATE


def test_the_saw_has_partials_of_the_lowest_e_and_no_aliases():
    power = np.abs(np.fft.rfft(faults.saw(10 * RATE, RATE) * np.hanning(10 * RATE))) ** 2
    hertz = np.fft.rfftfreq(10 * RATE, 1 / RATE)
    off = np.abs((hertz + 20.6) % 41.2 - 20.6) > 2
    assert power[off].sum() < 1e-6 * power.sum()
    assert hertz[power.argmax()] == pytest.approx(41.2)


@pytest.mark.ffmpeg
@pytest.mark.parametrize("codec", ["mp3", "opus", "vorbis"])
def test_codecs_change_the_sound_and_do_not_delay_it(cache, codec):
    made = _made(cache, "kinds", "guitar", codec, 10.0)
    plain = _made(cache, "steady", "guitar", "white", 10.0)
    assert made.noisy.shape == plain.noisy.shape
    assert _lag(plain.clean, made.noisy) == 0
    assert _db(made.noisy - plain.noisy) > _db(plain.noisy) - 40


def _lag(first, second, reach=2000):
    size = 2 * len(first)
    product = np.conj(np.fft.rfft(first, size)) * np.fft.rfft(second, size)
    offsets = np.arange(-reach, reach + 1)
    return offsets[np.fft.irfft(product)[offsets].argmax()]


def test_what_a_fault_leaves_is_scored_as_without_it(cache):
    for fault in ("leader", "gate", "fade", "step"):
        made = _made(cache, "kinds", "librivox-a", fault, 10.0)
        plain = reference(Mixture("kinds", "librivox-a", "speech", fault, 10.0))
        undamaged = make(plain, cache)
        scores = score(made, made.noisy, is_speech=False)
        expected = score(undamaged, undamaged.noisy, is_speech=False)
        assert scores["si_sdr"] == pytest.approx(expected["si_sdr"], abs=0.05), fault
        # What a method does to the audible part counts, what it does to the rest does not.
        quieter = score(made, np.where(made.gain > 0.2, 0.5, 7.0) * made.noisy, is_speech=False)
        assert quieter["level_change_db"] - scores["level_change_db"] == pytest.approx(
            -6.02, abs=0.01
        )


def test_channels_are_scored_as_one_sound(cache):
    made = _made(cache, "stereo", "guitar", "white", 10.0)
    assert score(made, made.noisy, is_speech=False)["si_sdr"] == pytest.approx(10, abs=0.1)
    swapped = score(made, made.noisy * [[1.0], [0.2]], is_speech=False)
    assert swapped["si_sdr"] < 9


def test_speech_is_scored_by_pesq_and_stoi_where_it_is_whole(cache):
    pytest.importorskip("pystoi")
    made = _made(cache, "steady", "librivox-a", "white", 10.0)
    assert {"pesq", "stoi"} <= score(made, made.noisy, is_speech=True).keys()
    made = _made(cache, "kinds", "librivox-a", "gate", 10.0)
    assert "stoi" not in score(made, made.noisy, is_speech=True)


# Methods ---------------------------------------------------------------------------------------


def test_block_thresholding_removes_noise_and_keeps_sound(cache):
    made = _made(cache, "steady", "guitar", "white", 5.0)
    result = classical.block_threshold(made.noisy, made.noise, RATE)
    assert score(made, result, is_speech=False)["si_sdr"] > 12
    noise = np.random.default_rng(0).standard_normal(2 * RATE)
    assert _db(classical.block_threshold(noise, noise, RATE)) < -20


@pytest.mark.ffmpeg
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_filters_of_ffmpeg_are_not_late(rate):
    clean = _wave(0, 2.0, rate)[:, 0]
    noisy = clean + 0.02 * np.random.default_rng(1).standard_normal(len(clean))
    for method in (peers.afftdn, peers.adeclick):
        result = method(noisy, noisy, rate)
        assert _lag(clean, result) == 0
        assert len(result) == len(clean)


def test_a_method_for_one_channel_at_its_own_rate_takes_any_sound():
    seen = []

    def halve(noisy, noise, sample_rate):
        seen.append((noisy.shape, sample_rate))
        return noisy[:-100] / 2

    method = dataclasses.replace(METHODS["gtcrn"], run=halve)
    sound = _wave(3, 1.0).T
    result = method(sound, sound, 44100)
    assert seen == [((16000,), 16000)] * 2
    assert result.shape == sound.shape
    assert _lag(sound[0], result[0]) == 0


def test_methods_run_where_they_apply():
    click, white = (Mixture("kinds", "tabla", "music", noise, 10) for noise in ("clicks", "mp3"))
    assert METHODS["adeclick"].runs_on(click)
    assert not METHODS["adeclick"].runs_on(white)
    assert not METHODS["threshold-white"].runs_on(click)
    few = combinations(mixtures("real"), ["best", "noisy"])
    assert [key.method for key in few].count("best") == 2
    assert [key.method for key in few].count("noisy") == len(mixtures("real"))
    everywhere = combinations(mixtures("real"), ["best"], slow_everywhere=True)
    assert len(everywhere) == len(mixtures("real"))


def test_a_missing_peer_is_named_with_what_installs_it():
    gone = dataclasses.replace(METHODS["deepfilternet3"], needs="no-such-peer", module="no_such")
    assert gone.missing() == "No module named 'no_such': pip install no-such-peer"


def test_versions_follow_from_the_code_and_rows_from_their_key():
    versions = {name: METHODS[name].version() for name in ("default", "prior", "wiener", "dap")}
    assert len(set(versions.values())) == 4
    assert "start='random'" in versions["prior"]
    key = RowKey("real", "guitar", "music", "wind", 5.0, "noisy", "")
    row = DenoiserRow(**dataclasses.asdict(key), sound_s=4.0, si_sdr=5.0)
    assert row.key == key
    assert row.mixture == key.mixture == Mixture("real", "guitar", "music", "wind", 5.0)


def test_fetching_asks_for_a_file_that_is_not_the_expected_one(cache, tmp_path):
    wanted = [Mixture("real", "guitar", "music", "wind", 5.0)]
    with pytest.raises(FileNotFoundError, match=r"no sonic-pi-samples_\*\.deb"):
        fetch_for(wanted, cache, tmp_path)


# Recordings ------------------------------------------------------------------------------------


def test_periodicity_tells_a_tone_from_noise():
    random = np.random.default_rng(0)
    tone = np.sign(np.sin(2 * np.pi * 200 * np.arange(16000) / 16000))
    assert periodicity(random.standard_normal(16000)) < 0.25
    assert periodicity(tone) > 0.9


def test_swell_is_the_distance_of_loud_and_quiet():
    sound = np.random.default_rng(0).standard_normal(64000)
    sound[32000:] *= 10
    assert swell_db(sound) == pytest.approx(20, abs=1)
