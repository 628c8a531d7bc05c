"""From recordings to notes: the network, the tracker, MIDI files and the command."""

import io
import itertools
import json
import sys

import mido
import numpy as np
import pytest
import soundfile
import torch

from harmonic_lowering.cli import main
from harmonic_lowering.transcribe import Note, Transcriber, transcriber, write_midi
from harmonic_lowering.transcribe.network import FRAME_S, PITCHES, TranscriptionNetwork
from harmonic_lowering.transcribe.notes import NoteTracker
from harmonic_lowering.weights import WeightsError

RATE = 16000


def tone(pitch, seconds, rate=RATE, loudness=0.2):
    time = np.arange(round(seconds * rate)) / rate
    hz = 440 * 2 ** ((pitch - 69) / 12)
    partials = [k for k in range(1, 9) if k * hz < 0.45 * rate]
    sound = sum(np.sin(2 * np.pi * k * hz * time) / k for k in partials)
    envelope = np.minimum(1, time / 0.01) * np.minimum(1, (time[-1] - time) / 0.02)
    return loudness * sound * envelope * np.exp(-time)


def melody(rate=RATE):
    """Two voices, with what they play."""
    played = [(0.3, 60), (0.9, 64), (1.5, 67), (2.1, 72), (0.3, 48), (1.5, 43)]
    sound = np.zeros(round(3.2 * rate))
    for start_s, pitch in played:
        note = tone(pitch, 0.55, rate)
        start = round(start_s * rate)
        sound[start : start + len(note)] += note
    return sound.astype(np.float32), sorted(played)


@pytest.fixture(scope="module")
def trained():
    return Transcriber.load()


@pytest.fixture(scope="module")
def melody_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("sound") / "melody.wav"
    soundfile.write(file, melody()[0], RATE)
    return file


# -------------------------------------------------------------------- notes


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_melody_is_transcribed_at_any_rate(trained, rate):
    sound, played = melody(rate)
    result = trained(torch.from_numpy(sound), rate)
    assert result.length_s == pytest.approx(3.2)
    found = [(note.start_s, note.pitch) for note in result.notes]
    assert sorted(pitch for _, pitch in found) == sorted(pitch for _, pitch in played)
    for (start, _), (start_s, _) in zip(found, played, strict=True):
        assert start == pytest.approx(start_s, abs=0.05)


def test_channels_gain_and_offset_do_not_matter(trained):
    sound = torch.from_numpy(melody()[0])
    expected = [note.pitch for note in trained(sound, RATE).notes]
    for other in (sound * 1e-3, torch.stack([sound, sound]), (sound * 1e3).double(), sound + 3):
        assert [note.pitch for note in trained(other, RATE).notes] == expected


@pytest.mark.parametrize("block", [7, 50])
def test_blocks_give_what_the_whole_gives(trained, monkeypatch, block):
    sound = torch.from_numpy(melody()[0])
    whole = trained(sound, RATE).notes
    monkeypatch.setattr(transcriber, "_BLOCK", block)
    monkeypatch.setattr(transcriber, "_READ_S", 0.1)
    blocks = trained(sound, RATE).notes
    assert [note.pitch for note in blocks] == [note.pitch for note in whole]
    for one, other in zip(blocks, whole, strict=True):
        assert one.start_s == pytest.approx(other.start_s, abs=1e-3)
        assert one.end_s == pytest.approx(other.end_s, abs=1e-3)


def test_little_is_read_at_a_time(trained):
    sound, longest = torch.from_numpy(np.tile(melody()[0], 20)), 0

    def read(start, stop):
        nonlocal longest
        longest = max(longest, stop - start)
        return sound[None, start:stop]

    told = []
    notes = list(trained.stream(read, len(sound), RATE, told.append))
    assert len(notes) >= 100
    assert longest <= 10 * RATE
    assert told == sorted(told)
    assert told[-1] == pytest.approx(len(sound) / RATE)


@pytest.mark.parametrize(
    "sound",
    [
        torch.zeros(RATE),
        torch.zeros(2, 5),
        0.1 * torch.randn(30 * RATE, generator=torch.Generator().manual_seed(1)),
        torch.ones(1),
    ],
)
def test_what_has_no_pitch_has_no_notes(trained, sound):
    assert trained(sound, RATE).notes == ()


def test_nonsense_is_refused(trained):
    for wrong, message in (
        (torch.zeros(1, 1, 5), r"waveform must have shape \(L,\) or \(C, L\), got \(1, 1, 5\)"),
        (torch.tensor([0.0, torch.nan]), "not finite"),
        (torch.zeros(0), "no samples"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(wrong, RATE)
    with pytest.raises(ValueError, match="sample_rate must be a positive number of Hz, got 0"):
        trained(torch.zeros(5), 0)
    with pytest.raises(ValueError, match="onset must lie between 0 and 1, got 1"):
        Transcriber(TranscriptionNetwork(2), onset=1)


def track(frames, onsets, cut=None):
    tracker = NoteTracker(0.5, 0.5)
    nothing = np.zeros_like(frames)
    bounds = [0, *(cut or []), frames.shape[1]]
    found = []
    for start, stop in itertools.pairwise(bounds):
        parts = (part[:, start:stop] for part in (frames, onsets, nothing, nothing))
        found += tracker.feed(*parts)
    return [*found, *tracker.finish()]


def test_notes_start_at_onsets_and_end_when_their_pitch_does():
    frames, onsets = np.zeros((2, PITCHES, 40), np.float32)
    frames[39, 5:20] = 0.9
    frames[39, 9] = 0.1  # one frame is no end
    onsets[39, [5, 14]] = 0.8  # the note is struck again
    frames[50, 30:40] = 0.95  # lasts to the end, and nobody heard it begin
    frames[60, 3:8] = 0.6  # not certain enough for that
    onsets[70, 20] = 0.9  # an onset without a pitch
    frames[10, :9] = 0.8
    onsets[10, :2] = 0.9, 0.3  # at the very beginning
    notes = track(frames, onsets)
    found = [(n.pitch, round(n.start_s / FRAME_S), round(n.end_s / FRAME_S)) for n in notes]
    assert found == [(31, 0, 9), (60, 5, 14), (60, 14, 20), (71, 30, 40)]
    for cut in ([7], [14, 15], list(range(1, 40))):
        assert track(frames, onsets, cut) == notes


# -------------------------------------------------------------------- files

NOTES = (
    Note(0.5, 1.0, 60, 0.9, level_db=-20.0, bend=(0.0, 0.5, -0.25, 3.0)),
    Note(0.5, 0.5001, 64, 0.9, level_db=-26.0),
    Note(1.0, 2.0, 60, 0.9, level_db=-90.0),
)


@pytest.mark.parametrize("bends", [False, True])
def test_midi_files_hold_the_notes(tmp_path, bends):
    write_midi(tmp_path / "a.mid", NOTES, bends=bends)
    now, on, found, wheel = 0.0, {}, [], {}
    for message in mido.MidiFile(tmp_path / "a.mid"):  # times in seconds
        now += message.time
        if message.type == "note_on":
            on[message.channel, message.note] = now, message.velocity
        elif message.type == "note_off":
            start, velocity = on.pop((message.channel, message.note))
            found.append((message.note, start, now, velocity))
        elif message.type == "pitchwheel":
            wheel.setdefault(message.channel, []).append(message.pitch)
    assert not on
    expected = [(64, 0.5, 0.501, 94), (60, 0.5, 1.0, 110), (60, 1.0, 2.0, 1)]
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert wheel == ({0: [0, 2048, -1024, 8191], 1: [0], 2: [0]} if bends else {})


def test_weights_that_are_missing_or_others_are_named(tmp_path, trained):
    with pytest.raises(WeightsError, match=r"are not at .*none.safetensors: reinstall"):
        Transcriber.load(tmp_path / "none.safetensors")
    file = tmp_path / "other.safetensors"
    trained.save(file, {})
    assert Transcriber.load(file).network.channels == trained.network.channels
    Transcriber(TranscriptionNetwork(3)).save(file, {})
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"abcd")
    with pytest.raises(WeightsError, match="damaged"):
        Transcriber.load(file)
    assert transcriber.WEIGHTS.stat().st_size < 300_000


# -------------------------------------------------------------------- the command


def pitches(file):
    return [message.note for message in mido.MidiFile(file) if message.type == "note_on"]


def test_files_and_folders(tmp_path, capsys, melody_file):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    out.mkdir()
    (folder / "a.wav").write_bytes(melody_file.read_bytes())
    (folder / "below" / "b.wav").write_bytes(melody_file.read_bytes())
    soundfile.write(folder / "silence.flac", np.zeros(RATE), RATE)
    assert main(["transcribe", str(folder), "-o", str(out), "--plot"]) == 0
    assert sorted(pitches(out / "below" / "b.mid")) == [43, 48, 60, 64, 67, 72]
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")
    assert pitches(out / "silence.mid") == []
    told = capsys.readouterr()
    assert "silence.flac: no pitch was found, so the MIDI file is empty" in told.err
    assert "3 transcribed" in told.err
    assert str(out / "a.mid") in told.out.splitlines()
    assert main(["transcribe", str(folder), "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["transcribe", str(folder), "-o", str(out), "--skip-existing"]) == 0


def test_what_fails_is_reported_and_the_rest_is_done(tmp_path, capsys, melody_file):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound at all")
    (tmp_path / "a.wav").write_bytes(melody_file.read_bytes())
    names = [str(broken), str(tmp_path / "none.wav"), str(tmp_path / "a.wav")]
    assert main(["transcribe", *names, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["failed", "failed", "done"]
    assert lines[2]["notes_found"] == 6
    assert (tmp_path / "a.mid").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "a.wav", "broken.wav"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "out.wav"], "cannot write the file type '.wav'; name it one of mid"),
        (["--onset", "2"], "onset must lie between 0 and 1, got 2"),
        (["-o", "-", "--json"], "--json writes to standard output"),
        (["-o", "nowhere/a.mid"], "there is no folder nowhere"),
    ],
)
def test_wrong_usage(melody_file, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(["transcribe", str(melody_file), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_pipes(monkeypatch, capsysbinary, melody_file):
    class Stdin:
        buffer = io.BytesIO(melody_file.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["transcribe", "-", "-o", "-", "--bends"]) == 0
    file = io.BytesIO(capsysbinary.readouterr().out)
    assert any(message.type == "pitchwheel" for message in mido.MidiFile(file=file))
