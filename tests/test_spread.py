"""The segments of a recording in several processes: the same bits, in bounded memory."""

import os
import signal
from itertools import count
from pathlib import Path

import pytest
import torch

from harmonic_lowering.cli.spread import in_processes
from harmonic_lowering.denoise import Denoiser

pytestmark = pytest.mark.slow  # each process imports torch

RATE = 8000
DENOISER = Denoiser(steps=2, segment_s=0.5, overlap_s=0.1)
SOUND = 0.1 * torch.randn(2, 5 * RATE, generator=torch.Generator().manual_seed(0))


def never():
    return False


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(each, progress=None, read=lambda start, stop: SOUND[:, start:stop]):
    return DENOISER.stream(read, SOUND.shape[1], RATE, progress, each=each)


def test_same_bits_in_bounded_memory(one_thread):
    steps, expected_steps, reads, most = [], [], count(), []

    def read(start, stop):
        next(reads)
        return SOUND[:, start:stop]

    spread = stream(in_processes(2, never), lambda p: steps.append((p.segment, p.step)), read)
    blocks = []
    for block in spread:
        blocks.append(block)
        most.append(int(repr(reads)[6:-1]) - len(blocks))
    alone = DENOISER(SOUND, RATE, lambda p: expected_steps.append((p.segment, p.step)))
    assert torch.equal(torch.cat([clean for clean, _ in blocks], 1), alone.waveform)
    assert steps == expected_steps
    assert spread.summary == alone.summary
    assert len(blocks) > 8
    listening = int(repr(reads)[6:-1]) - len(blocks)  # to the whole recording, beforehand
    assert max(most) - listening <= 4  # two for each process


def test_a_stop_leaves_the_rest_as_it_is():
    steps = []
    spread = stream(in_processes(2, lambda: len(steps) > 5), steps.append)
    finished = list(spread)
    assert sum(clean.shape[1] for clean, _ in finished) == SOUND.shape[1]
    assert 0 < spread.untouched < len(finished)
    assert torch.equal(finished[-1].clean[:, -RATE // 4 :], SOUND[:, -RATE // 4 :])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds its children in /proc")
def test_a_process_that_dies_is_named():
    def kill_children(start, stop):
        if start > 2 * RATE:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            for child in children.split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        return SOUND[:, start:stop]

    with pytest.raises(ChildProcessError, match=r"on segment \d+ of \d+ ended \(signal SIGKILL"):
        list(stream(in_processes(2, never), read=kill_children))


def test_what_fails_there_is_raised_here():
    def not_finite(start, stop):
        return SOUND[:, start:stop] * (torch.nan if start > 2 * RATE else 1)

    with pytest.raises(ValueError, match="not a finite number"):
        list(stream(in_processes(2, never), read=not_finite))
