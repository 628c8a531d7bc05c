"""Files: nothing is lost on the way in and out, nothing is half-written."""

import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonic_lowering.audio import (
    FILE_TYPES,
    AudioError,
    AudioFormat,
    AudioReader,
    AudioWriter,
    LengthChanged,
    replacing,
)
from harmonic_lowering.audio.chunks import Chunk, append, walk
from harmonic_lowering.audio.ffmpeg import count_samples, probe

soundfile = pytest.importorskip("soundfile")
mutagen = pytest.importorskip("mutagen")

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
ffmpeg = pytest.mark.ffmpeg


def copy(source, target, **options):
    with AudioReader(source) as reader, AudioWriter(
        target, reader.sample_rate, reader.channels, reader.format,
        metadata=reader.metadata, **options,
    ) as out:  # fmt: skip
        half = reader.length // 2
        out.write(reader.read(0, half))
        out.write(reader.read(half))


def run(*arguments, source=None):
    told = subprocess.run(
        ["ffmpeg", "-nostdin", "-y", "-v", "error", *map(str, arguments)],
        stdin=source, capture_output=True, check=True,
    )  # fmt: skip
    return told.stdout


def decoded(path, channels):
    """What ffmpeg itself decodes, as float32."""
    told = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", f"file:{path}", "-map", "0:a:0", "-f", "f32le", "pipe:1"],
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    return torch.frombuffer(bytearray(told.stdout), dtype=torch.float32).reshape(-1, channels).T


def noise(seconds, rate=16000, channels=2):
    return np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), channels))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files of every kind, from real encoders, made once each: `made("a.m4a", "-c:a", "aac")`."""
    folder = tmp_path_factory.mktemp("made")
    soundfile.write(folder / "source.wav", noise(1.7, 44100), 44100)

    def make(name, *options, source="source.wav"):
        path = folder / name
        if not path.exists():
            run("-i", folder / source, *options, path)
        return path

    return make


@pytest.fixture
def said():
    """The warnings of a block, as texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if w.category is UserWarning]


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")]
    + [("flac", "PCM_16"), ("flac", "PCM_24"), ("aiff", "PCM_16"), ("w64", "PCM_24")],
)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_copy_keeps_every_sample_and_the_format(tmp_path, suffix, subtype, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (501, channels))
    samples[:2] = [[1.0], [-1.0]]
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    soundfile.write(source, samples, 22050, subtype=subtype)
    copy(source, target)
    before, after = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(after, name) == getattr(before, name)
    exact = [soundfile.read(path, dtype="float64", always_2d=True)[0] for path in (source, target)]
    assert np.array_equal(*exact)


# Reading


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aac.m4a", ["-c:a", "aac"]),
        ("alac.m4a", ["-c:a", "alac"]),
        ("alac24.m4a", ["-c:a", "alac", "-sample_fmt", "s32p"]),
        ("alac.caf", ["-c:a", "alac"]),
        ("opus.webm", ["-c:a", "libopus"]),
        ("vorbis.mka", ["-c:a", "libvorbis"]),
        ("pcm24.mka", ["-c:a", "pcm_s24le"]),
        ("pcm.mov", ["-c:a", "pcm_f64le"]),
        ("two.wma", ["-c:a", "wmav2"]),
        ("raw.aac", ["-c:a", "aac"]),
        ("three.ac3", ["-c:a", "ac3"]),
        ("a.wv", ["-c:a", "wavpack"]),
        ("a.tta", ["-c:a", "tta"]),
        ("a.avi", ["-c:a", "mp3"]),
        ("a.ts", ["-c:a", "aac"]),
        ("g726.wav", ["-ac", "1", "-ar", "8000", "-c:a", "g726"]),
    ],
)
def test_what_ffmpeg_opens_is_read_exactly(made, name, options):
    path = made(name, *options)
    with AudioReader(path) as reader:
        expected = decoded(path, reader.channels)
        found = reader.read()
        assert torch.equal(found.float(), expected)
        # The same in pieces, and a place that was passed already.
        assert torch.equal(reader.read(1000, 3000), found[:, 1000:3000])
        assert torch.equal(reader.read(10, 20), found[:, 10:20])


@ffmpeg
def test_the_sound_of_a_video_is_read(tmp_path):
    path = tmp_path / "v.mp4"
    run(
        "-f",
        "lavfi",
        "-i",
        "testsrc=d=1:s=64x64",
        "-f",
        "lavfi",
        "-i",
        "sine=d=1",
        "-c:a",
        "aac",
        path,
    )
    with AudioReader(path) as reader:
        assert torch.equal(reader.read(), decoded(path, 1))


@pytest.mark.parametrize(("subtype", "added"), [("MS_ADPCM", True), ("PCM_16", False)])
def test_what_fills_up_a_last_block_is_told(tmp_path, subtype, added):
    path = tmp_path / "made.wav"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with AudioWriter(path, 8000, 1, AudioFormat("WAV", subtype)) as writer:
            writer.write(torch.zeros(1, 1001))
    length = soundfile.info(path).frames
    assert (length > 1001) == added
    notes = [str(warning.message) for warning in caught]
    assert notes == (
        [f"{path}: {subtype} comes in whole blocks, so {length - 1001} samples follow the sound"]
        if added
        else []
    )


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("gsm.wav", ["-ac", "1", "-ar", "8000", "-c:a", "gsm_ms"], 0),
        ("ms.wav", ["-c:a", "adpcm_ms"], 0),
        ("noxing.mp3", ["-b:a", "128k", "-write_xing", "0"], 2e-6),
        ("vbr.mp3", ["-q:a", "4"], 2e-6),
        ("vbr-noxing.mp3", ["-q:a", "4", "-write_xing", "0"], 2e-6),
        ("cbr.mp3", ["-b:a", "192k"], 2e-6),
        ("a.ogg", ["-c:a", "libvorbis"], 2e-6),
        ("a.opus", ["-c:a", "libopus"], 2e-6),
        ("mp3.wav", ["-c:a", "libmp3lame"], 2e-6),
        ("surround.ogg", ["-c:a", "libvorbis", "-ac", "6"], 2e-6),
        ("surround.opus", ["-c:a", "libopus", "-ac", "6"], 2e-6),
        ("surround.flac", ["-c:a", "flac", "-ac", "6"], 0),
    ],
)
def test_libsndfile_reads_to_the_true_end(made, name, options, tolerance, said):
    path = made(name, *options)
    with AudioReader(path) as reader:
        expected = decoded(path, reader.channels)
        # In pieces, as they are denoised, which upset MP3 of variable rate.
        found = torch.cat(
            [reader.read(i, min(i + 5000, reader.length)) for i in range(0, reader.length, 5000)], 1
        )
    length = min(found.shape[1], expected.shape[1])
    assert length > 0.9 * found.shape[1]
    assert abs(found.shape[1] - expected.shape[1]) <= 320  # a block of GSM
    assert (found[:, :length] - expected[:, :length]).abs().max() <= tolerance
    assert said() == []


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", ["-b:a", "128k"]),
        ("b.ogg", ["-c:a", "libvorbis"]),
        ("b.opus", ["-c:a", "libopus"]),
    ],
)
def test_joined_files_are_read_to_the_last_one(made, tmp_path, name, options, said):
    part = made(name, *options)
    joined = tmp_path / name
    joined.write_bytes(part.read_bytes() * 3)
    with AudioReader(part) as one, AudioReader(joined) as three:
        assert 3 * one.length <= three.length <= 3 * one.length + 6000
        assert torch.equal(three.read(), decoded(joined, 2))
    assert said() == []


@ffmpeg
@pytest.mark.parametrize("kind", ["wav", "w64", "aiff", "au", "flac", "ogg", "mp3"])
def test_what_comes_through_a_pipe_is_whole(made, tmp_path, kind, said):
    whole = made("whole.wav", "-c:a", "pcm_s16le")
    path = tmp_path / f"piped.{kind}"
    with path.open("wb") as file:
        file.write(run("-i", whole, "-f", kind, "pipe:1"))
    with AudioReader(path) as reader, AudioReader(whole) as expected:
        longest = 1e9 if kind == "mp3" else expected.length
        assert expected.length <= reader.length <= longest
        if kind not in ("ogg", "mp3"):
            assert torch.equal(reader.read(), expected.read())
    assert said() == []


@pytest.mark.parametrize("whole_file_too", [False, True])
def test_a_recorder_that_crashed_left_a_size_of_zero(tmp_path, whole_file_too, said):
    path = tmp_path / "in.wav"
    soundfile.write(path, noise(0.5), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    if whole_file_too:
        data[4:8] = bytes(4)
    expected = soundfile.read(path, dtype="float32")[0].T
    path.write_bytes(data)
    with AudioReader(path) as reader:
        assert np.array_equal(reader.read().numpy(), expected)
    assert said() == []


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cut.wav", ["-c:a", "pcm_s24le"]),
        ("cut.w64", []),
        ("cut.aiff", []),
        ("cut.caf", []),
        ("cut.au", []),
        ("cut.flac", []),
        ("cut.mp3", ["-b:a", "192k"]),
        ("cut.ogg", ["-c:a", "libvorbis", "-q:a", "9", "-page_duration", "100000"]),
        ("cut.m4a", ["-c:a", "aac", "-b:a", "192k", "-movflags", "+faststart"]),
        ("cut-ms.wav", ["-c:a", "adpcm_ms"]),
        ("cut.mka", ["-c:a", "flac"]),
    ],
)
def test_a_cut_file_is_used_as_far_as_it_decodes_with_one_note(made, tmp_path, name, options, said):
    whole = made(name, *options)
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 5])
    with AudioReader(path) as reader, AudioReader(whole) as complete:
        assert 0.3 * complete.length < reader.length < 0.7 * complete.length
        found = reader.read()
        near = complete.read(0, found.shape[1])
    assert (found - near)[:, :-4096].abs().max() < 1e-5
    notes = said()
    assert len(notes) == 1
    assert "was cut off or is damaged" in notes[0]


@ffmpeg
def test_a_damaged_file_is_used_too(made, tmp_path, said):
    whole = made("whole.flac")
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "in.flac").write_bytes(data)
    with AudioReader(tmp_path / "in.flac") as reader, AudioReader(whole) as complete:
        assert reader.length > 0.9 * complete.length  # ffmpeg finds the way back
        assert torch.equal(reader.read(0, 10000), complete.read(0, 10000))
    assert len(said()) == 1


@ffmpeg
def test_an_impatient_reader_is_told_of_another_length(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, noise(420, 8000, 1), 8000)
    with AudioReader(path) as reader:
        whole = reader.read()
    path.write_bytes(path.read_bytes()[:-100_000])
    changes = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with AudioReader(path, patience_s=0) as reader:
            for _ in range(3):
                try:
                    parts = [
                        reader.read(i, min(i + 100_000, reader.length))
                        for i in range(0, reader.length, 100_000)
                    ]
                    reader.settle()
                    break
                except LengthChanged:
                    changes += 1
    found = torch.cat(parts, 1)
    assert changes <= 1
    assert 0.9 * whole.shape[1] < found.shape[1] < whole.shape[1]
    assert torch.equal(found, whole[:, : found.shape[1]])


@ffmpeg
@pytest.mark.parametrize("suffix", ["m4a", "mov", "alac.m4a", "mka", "webm"])
def test_an_impatient_reader_counts_packets_where_that_is_exact(tmp_path, suffix):
    codecs = {"mov": "pcm_s24le", "alac.m4a": "alac", "webm": "libopus"}
    path = tmp_path / f"a.{suffix}"
    soundfile.write(tmp_path / "a.wav", noise(150.123, 22050, 1), 22050)
    run("-i", tmp_path / "a.wav", "-c:a", codecs.get(suffix, "aac"), path)
    counted = count_samples(path, probe(path))
    with AudioReader(path, patience_s=0) as reader:
        reader.read(0, reader.length)
        reader.settle()  # would raise LengthChanged
        assert counted == (0 if suffix in ("mka", "webm") else reader.length)


@posix
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_named_pipe_is_read(tmp_path, name):
    soundfile.write(tmp_path / name, noise(0.5), 16000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / name).read_bytes()))
    feeder.start()
    with AudioReader(pipe) as reader, AudioReader(tmp_path / name) as expected:
        assert torch.equal(reader.read(), expected.read())
    feeder.join()


@ffmpeg
@posix
@pytest.mark.parametrize(
    "name",
    [
        b"-take1.m4a",
        b"12:30 talk.m4a",
        b"concat:a.m4a",
        b"\xe9t\xe9.m4a",
        b"%03d \\'$(id)`.m4a",
        "音".encode() * 80 + b".m4a",
    ],
)
def test_names_are_names(made, tmp_path, monkeypatch, name):
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    shutil.copy(made("aac.m4a", "-c:a", "aac"), path)
    monkeypatch.chdir(tmp_path)
    with AudioReader(Path(os.fsdecode(name))) as reader:
        assert reader.read().shape[1] == reader.length
    copy(path, path.with_suffix(".wav"))
    assert path.with_suffix(".wav").exists()


@ffmpeg
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        "[playlist]\nFile1=secret.wav\n",
    ],
)
@pytest.mark.parametrize("suffix", ["m4a", "m3u8", "wav"])
def test_a_file_that_names_others_is_refused(tmp_path, text, suffix):
    soundfile.write(tmp_path / "secret.wav", noise(0.5), 16000)
    (tmp_path / f"in.{suffix}").write_text(text)
    with pytest.raises(AudioError, match="not a sound file that can be read"):
        AudioReader(tmp_path / f"in.{suffix}")


def test_reader_refuses_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg

    def refused(name, match):
        with pytest.raises(AudioError, match=match) as caught:
            AudioReader(tmp_path / name).read()
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)

    refused("none.wav", "no such file")
    refused("", "is a folder, expected a sound file")
    (tmp_path / "text.wav").write_text("not sound at all")
    refused("text.wav", "not a sound file that can be read .* ffmpeg -i text.wav")
    (tmp_path / "empty.wav").touch()
    refused("empty.wav", r"the file is empty \(0 bytes\)")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    refused("nothing.wav", "holds no samples")


@posix
def test_a_device_is_no_recording():
    with pytest.raises(AudioError, match="is a device, expected a sound file"):
        AudioReader("/dev/zero")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
def test_reader_names_the_sample_that_is_no_number(tmp_path, value):
    samples = np.zeros(16000, dtype=np.float32)
    samples[8000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with (
        AudioReader(tmp_path / "a.wav") as reader,
        pytest.raises(AudioError, match=r"sample 8000 \(at 0\.500 s\) is not a finite"),
    ):
        reader.read(0, 100)  # before the place is reached, so that no hours are lost


def test_a_constant_offset_is_measured_and_an_accident_is_not(tmp_path):
    samples = noise(1.0)
    samples -= samples.mean(0)
    soundfile.write(tmp_path / "a.wav", samples + np.array([0.2, 0.0]), 16000, subtype="FLOAT")
    with AudioReader(tmp_path / "a.wav") as reader:
        assert reader.offset.flatten().tolist() == pytest.approx([0.2, 0.0], abs=1e-6)


# Writing


def write(path, samples, subtype, **options):
    with AudioWriter(path, 16000, 1, AudioFormat("WAV", subtype), **options) as out:
        out.write(torch.tensor([samples]))


def every_format():
    wanted = {
        "WAV": ("wav", "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM "
                "GSM610 G721_32 NMS_ADPCM_32"),
        "AIFF": ("aiff", "PCM_S8 PCM_16 PCM_24 FLOAT ULAW IMA_ADPCM DWVW_24"),
        "AU": ("au", "PCM_S8 PCM_16 FLOAT ALAW G723_24"), "CAF": ("caf", "PCM_24 ALAC_16 ALAC_32"),
        "FLAC": ("flac", "PCM_S8 PCM_16 PCM_24"), "OGG": ("ogg", "VORBIS OPUS"),
        "MP3": ("mp3", "MPEG_LAYER_III"), "W64": ("w64", "PCM_16 MS_ADPCM"),
        "RF64": ("rf64", "PCM_32"),
    }  # fmt: skip
    for container, (suffix, subtypes) in wanted.items():
        for subtype in subtypes.split():
            if soundfile.check_format(container, subtype):
                yield container, suffix, subtype


@pytest.mark.parametrize(("container", "suffix", "subtype"), list(every_format()))
@pytest.mark.slow
def test_every_format_goes_into_every_file_type(tmp_path, container, suffix, subtype):
    """The sample format is kept where the type has it, else the best that it has is taken."""
    source = tmp_path / f"in.{suffix}"
    rate = 16000 if container == "MP3" else 8000
    soundfile.write(source, noise(0.4, rate, 1), rate, subtype=subtype, format=container)
    with AudioReader(source) as reader:
        before, kind = reader.read(), reader.format
    for other in FILE_TYPES:
        if other in ("m4a", "m4b", "wv") and not shutil.which("ffmpeg"):
            continue
        target = tmp_path / f"out.{other}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy(source, target)
            with AudioReader(target) as reader:
                after = reader.read()
                now = reader.format
        assert after.shape[1] >= before.shape[1]
        holds = other not in ("ogg", "oga", "opus", "mp3", "m4a", "m4b") and now.depth != 8
        if kind.lossy and holds:  # a codec's name in another container says nothing
            assert now.depth in (24, None)
        elif holds and not now.lossy and now.subtype == kind.subtype and now.plain:
            assert torch.equal(after.to(before), before)
        elif holds and not now.lossy and (kind.depth or 32) <= (now.depth or 32) and now.plain:
            assert (after.to(before) - before).abs().max() <= 2**-23


def test_another_container_keeps_the_samples_it_can(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, np.zeros((100, 1)), 16000, subtype="PCM_24")
    for name, subtype in (("a.flac", "PCM_24"), ("a.aiff", "PCM_24"), ("a.ogg", "VORBIS")):
        copy(source, tmp_path / name)
        assert soundfile.info(tmp_path / name).subtype == subtype
    with pytest.raises(AudioError, match=r"cannot write the file type '\.xyz'; name it one of"):
        copy(source, tmp_path / "a.xyz")


def test_too_loud_samples_are_never_clipped_silently(tmp_path):
    loud = [0.5, 1.5, -2.0]
    with pytest.warns(UserWarning, match="2 samples were louder than PCM_16 holds"):
        write(tmp_path / "a.wav", loud, "PCM_16")
    assert soundfile.read(tmp_path / "a.wav")[0].tolist() == [0.5, 32767 / 32768, -1.0]
    with pytest.raises(AudioError, match="2 samples are louder than PCM_16 holds"):
        write(tmp_path / "b.wav", loud, "PCM_16", clip="error")
    assert not (tmp_path / "b.wav").exists()
    write(tmp_path / "c.wav", loud, "FLOAT")
    assert soundfile.read(tmp_path / "c.wav")[0].tolist() == loud
    with pytest.raises(ValueError, match="clip must be"):
        write(tmp_path / "d.wav", loud, "PCM_16", clip="wrap")
    with pytest.raises(AudioError, match="the result is not finite"):
        write(tmp_path / "e.wav", [0.0, np.nan], "FLOAT")


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_what_crashes_an_encoder_does_not_reach_it(tmp_path, name, said):
    """LAME aborts on sounds far beyond full scale, Vorbis on rates above 200 kHz."""
    loud = torch.from_numpy(1e10 * noise(0.5, channels=1).T).float()
    for rate in (16000, 384000):
        with AudioWriter(tmp_path / name, rate, 1, AudioFormat("WAV", "FLOAT")) as out:
            out.write(loud)
        assert any("were louder than" in note for note in said())
        assert soundfile.info(tmp_path / name).samplerate <= 192000


def test_writer_refuses_what_the_container_cannot_hold(tmp_path):
    with pytest.raises(AudioError, match="FLAC with PCM_16 cannot hold 9 channels at 16000 Hz"):
        AudioWriter(tmp_path / "a.flac", 16000, 9, AudioFormat("FLAC", "PCM_16"))
    with pytest.raises(AudioError, match=r"there is no folder .*; make it first"):
        write(tmp_path / "none" / "a.wav", [0.0], "PCM_16")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("suffix", "rate"), [("opus", 48000), ("mp3", 48000), ("m4a", 48000)])
def test_the_rate_is_converted_where_the_codec_needs_it(tmp_path, suffix, rate):
    pytest.importorskip("soxr")
    if suffix == "m4a" and not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg here")
    time = np.arange(45000) / 45000
    sine = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "in.ogg", sine, 45000)  # lossy, so that M4A is AAC
    soundfile.write(tmp_path / "in.wav", sine, 45000, subtype="DOUBLE")
    source = "in.ogg" if suffix == "m4a" else "in.wav"
    with pytest.warns(UserWarning, match=f"was converted from 45000 to {rate} Hz"):
        copy(tmp_path / source, tmp_path / f"out.{suffix}")
    with AudioReader(tmp_path / f"out.{suffix}") as reader:
        assert reader.sample_rate == rate
        found = reader.read()[0, 4800:38400].numpy()
    assert len(found) / rate == pytest.approx(0.7)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert spectrum.argmax() * rate / len(found) == pytest.approx(440, abs=2)
    assert np.abs(found).max() == pytest.approx(0.5, abs=0.05)


def test_wav_beyond_four_gigabytes_is_rf64():
    assert (
        AudioFormat("WAV", "PCM_16").for_path(Path("a.wav"), 44100, 2, 2**29)[0].container == "WAV"
    )
    for length, container in ((2**30, "RF64"), (2**31, "RF64")):
        chosen, _ = AudioFormat("WAV", "PCM_16").for_path(Path("a.wav"), 44100, 2, length)
        assert chosen.container == container


# Keeping


BEXT = struct.pack(
    "<256s32s32s10s8sQH64s190s", b"a description", b"originator", b"reference", b"2020-01-02",
    b"03:04:05", 158760000, 1, b"umid", b"",
) + b"A=PCM,F=48000\r\n"  # fmt: skip
IXML = b"<?xml version='1.0'?><BWFXML><SCENE>12</SCENE></BWFXML>"
CUE = struct.pack("<I", 1) + struct.pack("<II4sIII", 1, 4000, b"data", 0, 0, 4000)
ADTL = b"adtl" + b"labl" + struct.pack("<II", 12, 1) + b"chapter\0"
INFO = b"INFO" + b"INAM" + struct.pack("<I", 6) + b"title\0" + b"IART" + struct.pack("<I", 7) + (
    b"artist\0\0"
)  # fmt: skip
CHUNKS = [
    Chunk(b"bext", BEXT), Chunk(b"iXML", IXML), Chunk(b"cue ", CUE), Chunk(b"LIST", ADTL),
    Chunk(b"LIST", INFO), Chunk(b"odd ", b"xyz"),
]  # fmt: skip


def with_chunks(path, chunks, mask=None):
    with path.open("r+b") as file:
        append(file, chunks, mask)


def chunks_of(path):
    with path.open("rb") as file:
        return walk(file)


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
@pytest.mark.parametrize("other", ["wav", "rf64", "w64"])
def test_chunks_of_wav_go_over_byte_for_byte(tmp_path, container, other, said):
    source, target = tmp_path / "in.wav", tmp_path / f"out.{other}"
    samples = noise(0.3)
    soundfile.write(source, samples, 16000, format=container, subtype="PCM_16")
    with_chunks(source, CHUNKS)
    copy(source, target)
    assert chunks_of(target).carried == CHUNKS
    assert not chunks_of(target).cut
    with AudioReader(target) as reader, AudioReader(source) as expected:
        assert torch.equal(reader.read(), expected.read())
        assert reader.length == len(samples)
    assert said() == []


@ffmpeg
def test_the_time_reference_of_bext_survives(made, tmp_path):
    source = made("bwf.wav", "-write_bext", "1", "-metadata", "time_reference=158760000",
                  "-metadata", "description=scene", "-metadata", "originator=someone")  # fmt: skip
    copy(source, tmp_path / "out.wav")
    told = [
        subprocess.run(
            ["ffprobe", "-v", "error", "-show_entries", "format_tags", path],
            capture_output=True, text=True, check=True,
        ).stdout
        for path in (source, tmp_path / "out.wav")
    ]  # fmt: skip
    assert "TAG:time_reference=158760000" in told[1]
    assert told[0] == told[1]


def test_chunks_of_aiff_and_caf_go_over(tmp_path, said):
    marks = struct.pack(">HHI", 1, 1, 4000) + b"\x07chapter"
    for suffix, chunks in (
        ("aiff", [Chunk(b"MARK", marks), Chunk(b"NAME", b"title")]),
        (
            "caf",
            [Chunk(b"info", struct.pack(">I", 1) + b"title\0song\0"), Chunk(b"uuid", bytes(20))],
        ),
    ):
        source = tmp_path / f"in.{suffix}"
        soundfile.write(source, noise(0.3), 16000, subtype="PCM_24")
        before = len(chunks_of(source).carried)
        with_chunks(source, chunks)
        copy(source, tmp_path / f"out.{suffix}")
        assert chunks_of(tmp_path / f"out.{suffix}").carried[before:] == chunks
        with AudioReader(tmp_path / f"out.{suffix}") as reader:
            assert reader.length == 4800
    assert said() == []


def test_what_a_file_type_cannot_hold_is_said_in_one_note(tmp_path, said):
    soundfile.write(tmp_path / "in.wav", noise(0.3), 16000)
    with_chunks(tmp_path / "in.wav", CHUNKS)
    copy(tmp_path / "in.wav", tmp_path / "out.flac")
    assert said() == [
        f"{tmp_path / 'out.flac'}: this file type cannot hold bext, iXML, cue, LIST adtl, odd of "
        "the input; they were left out"
    ]
    tags = mutagen.File(tmp_path / "out.flac")
    assert (tags["title"], tags["artist"]) == (["title"], ["artist"])


@pytest.mark.parametrize("mask", [0x107, 0x33, 0x603])
def test_speakers_are_kept(tmp_path, mask):
    source = tmp_path / "in.wav"
    soundfile.write(source, noise(0.3, channels=4), 16000, format="WAVEX", subtype="PCM_24")
    with_chunks(source, [], mask)
    copy(source, tmp_path / "a.wav")
    assert chunks_of(tmp_path / "a.wav").channel_mask == mask
    copy(source, tmp_path / "b.flac")
    with AudioReader(tmp_path / "b.flac") as reader:
        assert reader.metadata.channel_mask == mask


@ffmpeg
@pytest.mark.parametrize("layout", ["4.0", "5.1", "5.1(side)"])
def test_speakers_go_through_ffmpeg(tmp_path, layout, said):
    run("-f", "lavfi", "-i", "anoisesrc=d=0.5:r=44100", "-af", f"aformat=channel_layouts={layout}",
        "-c:a", "pcm_s16le", tmp_path / "in.wav")  # fmt: skip
    copy(tmp_path / "in.wav", tmp_path / "out.m4a")
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "stream=channel_layout", tmp_path / "out.m4a"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if layout == "5.1(side)":  # ALAC has one layout for six channels
        assert said() == [
            f"{tmp_path / 'out.m4a'}: this file type cannot hold which speaker a channel is for of "
            "the input; they were left out"
        ]
    else:
        assert f"channel_layout={layout}\n" in told
        assert said() == []


def png():
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(4))) + (
        chunk(b"IEND", b"")
    )  # fmt: skip


COVER = png()
TEXTS = {
    "title": "a title", "artist": "ärtist", "album": "album", "tracknumber": "3/9",
    "date": "2019", "genre": "Speech", "comment": "a comment", "composer": "composer",
    "my own": "field",
}  # fmt: skip


def tag(path):
    """Give a file the tags above, as a tagger would."""
    from harmonic_lowering.audio import tags

    picture = mutagen.flac.Picture()
    picture.data, picture.mime, picture.type = COVER, "image/png", 3
    with path.open("r+b") as file:
        assert tags.write(file, tags.Tags({k: [v] for k, v in TEXTS.items()}, [picture])) == []


TAGGED = ["mp3", "flac", "ogg", "opus"] + (["m4a", "wv"] if shutil.which("ffmpeg") else [])


@pytest.mark.parametrize("source", TAGGED)
@pytest.mark.parametrize("target", [*TAGGED, "wav", "aiff", "w64"])
def test_tags_and_pictures_go_from_every_kind_to_every_other(tmp_path, source, target, said):
    soundfile.write(tmp_path / "plain.wav", noise(0.3, 48000), 48000)
    copy(tmp_path / "plain.wav", tmp_path / f"in.{source}")
    tag(tmp_path / f"in.{source}")
    copy(tmp_path / f"in.{source}", tmp_path / f"out.{target}")
    with AudioReader(tmp_path / f"out.{target}") as reader:
        found = reader.metadata.tags
        assert reader.length >= 14400
    assert {key: "; ".join(found.texts.get(key, [])) for key in TEXTS} == TEXTS
    assert [picture.data for picture in found.pictures] == [COVER]
    assert said() == []


def test_id3_goes_over_as_it_is(tmp_path):
    id3 = pytest.importorskip("mutagen.id3")
    soundfile.write(tmp_path / "in.mp3", noise(1.0), 16000)
    tags = id3.ID3()
    tags.add(id3.TIT2(1, text="title"))
    tags.add(id3.TYER(1, text="1999"))
    tags.add(id3.PRIV(owner="x", data=b"\1\2"))
    tags.add(id3.CHAP(element_id="c1", start_time=0, end_time=500, sub_frames=[]))
    tags.save(tmp_path / "in.mp3", v1=2, v2_version=3)
    copy(tmp_path / "in.mp3", tmp_path / "out.mp3")
    before, after = (id3.ID3(tmp_path / n, translate=False) for n in ("in.mp3", "out.mp3"))
    assert after.version == before.version == (2, 3, 0)
    assert {k: repr(v) for k, v in after.items()} == {k: repr(v) for k, v in before.items()}
    assert (tmp_path / "out.mp3").read_bytes()[-128:-125] == b"TAG"


@ffmpeg
def test_chapters_of_an_audiobook_are_kept(tmp_path):
    (tmp_path / "chapters").write_text(
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=one\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=two\n"
    )
    chapters = ["-f", "ffmetadata", "-i", tmp_path / "chapters", "-map_chapters", "1"]
    sound = ["-f", "lavfi", "-i", "anoisesrc=d=1:r=44100"]
    run(*sound, *chapters, "-c:a", "aac", tmp_path / "in.m4b")
    copy(tmp_path / "in.m4b", tmp_path / "out.m4b")
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_chapters", tmp_path / "out.m4b"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "TAG:title=one" in told
    assert "TAG:title=two" in told


@ffmpeg
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("192.mp3", ["-b:a", "192k"], 0.01),
        ("64.mp3", ["-b:a", "64k"], 0.01),
        ("q6.ogg", ["-c:a", "libvorbis", "-q:a", "6"], 0.05),
        ("q2.ogg", ["-c:a", "libvorbis", "-q:a", "2"], 0.05),
        ("48.opus", ["-c:a", "libopus", "-b:a", "48k"], 0.15),
        ("160.opus", ["-c:a", "libopus", "-b:a", "160k"], 0.15),
        ("96.m4a", ["-c:a", "aac", "-b:a", "96k"], 0.1),
        ("v4.mp3", ["-q:a", "4"], 0.25),
    ],
)
def test_the_bit_rate_is_kept(made, tmp_path, name, options, tolerance):
    source = made(name, *options)
    target = tmp_path / name
    copy(source, target)
    with AudioReader(source) as before, AudioReader(target) as after:
        assert after.format.bitrate == pytest.approx(before.format.bitrate, rel=tolerance)
        assert after.format.variable == before.format.variable


@posix
def test_dates_and_permissions_are_kept(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, noise(0.3), 16000)
    os.utime(source, ns=(10**18, 1_234_567_890_123_456_789))
    source.chmod(0o640)
    copy(source, tmp_path / "out.flac")
    status = (tmp_path / "out.flac").stat()
    assert status.st_mtime_ns == source.stat().st_mtime_ns
    assert stat.S_IMODE(status.st_mode) == 0o640


# Whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("name", ["out.wav", "out.mp3", "out.m4a"])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, error, name):
    if name == "out.m4a" and not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg here")
    target = tmp_path / name
    target.write_bytes(b"old")

    def interrupted():
        with AudioWriter(target, 16000, 1, AudioFormat("WAV", "PCM_16")) as out:
            out.write(torch.zeros(1, 50_000))
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "x.txt"
    with replacing(target) as part:
        part.write_text("new")
        assert not target.exists()
        assert part.parent == target.parent
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_what_appears_in_the_meantime_is_kept(tmp_path):
    target = tmp_path / "x.txt"

    def late():
        with replacing(target, overwrite=False) as part:
            part.write_text("new")
            target.write_text("somebody else's")

    with pytest.raises(AudioError, match="exists already; allow replacing it with --force"):
        late()
    assert target.read_text() == "somebody else's"
    assert os.listdir(tmp_path) == ["x.txt"]


@posix
@pytest.mark.parametrize("kind", ["a symbolic link", "a pipe", "a folder"])
def test_only_files_are_replaced(tmp_path, kind):
    target, elsewhere = tmp_path / "x.txt", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    if kind == "a symbolic link":
        target.symlink_to(elsewhere)
    elif kind == "a pipe":
        os.mkfifo(target)
    else:
        target.mkdir()

    def over():
        with replacing(target) as part:
            part.write_text("new")

    with pytest.raises(AudioError, match=f"is {kind}, expected a name for a file"):
        over()
    assert elsewhere.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "x.txt"]


@posix
def test_a_folder_that_is_exchanged_does_not_lead_elsewhere(tmp_path):
    folder, trap = tmp_path / "folder", tmp_path / "trap"
    folder.mkdir()
    trap.mkdir()
    with replacing(folder / "x.txt") as part:
        part.write_text("new")
        folder.rename(tmp_path / "moved")
        folder.symlink_to(trap)
    assert os.listdir(trap) == []
    assert os.listdir(tmp_path / "moved") == ["x.txt"]


@posix
def test_two_writers_of_one_file_do_not_mix(tmp_path):
    target = tmp_path / "x.txt"
    with replacing(target) as part:
        part.write_text("first")
        with pytest.raises(AudioError, match="another run is writing it now"), replacing(target):
            pass
        with replacing(tmp_path / "y.txt") as other:  # another file is no matter
            other.write_text("other")
        assert part.exists()
    assert target.read_text() == "first"


@posix
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    program = (
        "import os, signal, sys; from harmonic_lowering.audio import replacing\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    killed = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.txt"], env=environment, check=False
    )
    assert killed.returncode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".harmonic-lowering-")
    with replacing(tmp_path / "y.txt") as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["y.txt"]


LIMITED = """
import resource, signal, sys, warnings
import torch
from harmonic_lowering.audio import AudioError, AudioFormat, AudioWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
waveform = 0.1 * torch.randn(2, 48000, generator=torch.Generator().manual_seed(0))
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with AudioWriter(sys.argv[1], 48000, 2, AudioFormat("WAV", "PCM_16")) as out:
        out.write(waveform)
except AudioError as error:
    sys.exit(f"refused: {error}")
"""


@posix
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "caf", "m4a"])
@pytest.mark.slow
def test_a_file_that_does_not_fit_is_no_success(tmp_path, suffix):
    if suffix == "m4a" and not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def attempt(limit):
        return subprocess.run(
            [sys.executable, "-c", LIMITED, tmp_path / f"out.{suffix}", str(limit)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert attempt(10**9).returncode == 0
    size = (tmp_path / f"out.{suffix}").stat().st_size
    (tmp_path / f"out.{suffix}").unlink()
    for share in (0.05, 0.5, 0.97):
        told = attempt(round(size * share))
        assert told.returncode == 1
        assert "refused: " in told.stderr
        assert "cannot be written" in told.stderr
        assert os.listdir(tmp_path) == []
