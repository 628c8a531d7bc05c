"""How soon `harmonic-lowering web` is usable, in a headless Chromium: python -m benchmarks.web"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from harmonic_lowering.audio import AudioReader, AudioWriter

SPEECH = Path(__file__).parent.parent / "examples" / "amiable.wav"
SECONDS = 5.0


def main() -> None:
    """Print the times of a first visit."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        recording = Path(folder, "talk.wav")
        _write(recording)
        began = time.perf_counter()
        page = subprocess.Popen(
            [sys.executable, "-m", "harmonic_lowering", "web", "--port", "0", "--no-browser"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            url = page.stdout.readline().split()[-1]
            print(f"command to address      {time.perf_counter() - began:5.1f} s")
            browser = driver.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
            )
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(url)
            fast = tab.get_by_role("radio", name="Fast")
            fast.check()
            print(f"address to interactive  {time.perf_counter() - began:5.1f} s")
            began = time.perf_counter()
            tab.set_input_files("#upload input[type=file]", str(recording))
            tab.get_by_role("button", name="Remove the noise").click()
            tab.get_by_role("radio", name="After").check()
            tab.get_by_role("button", name="Play", exact=True).click()
            tab.wait_for_function("document.querySelector('sound-compare').sound.currentTime > 0")
            print(f"upload to first sound   {time.perf_counter() - began:5.1f} s")
            browser.close()
        finally:
            page.terminate()
            page.wait()


def _write(path: Path) -> None:
    """Write speech in white noise."""
    with AudioReader(SPEECH) as reader:
        rate = reader.sample_rate
        speech = reader.read().repeat(1, 3)[:, : round(SECONDS * rate)]
        noise = 0.03 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
        with AudioWriter(path, rate, 1, reader.format) as writer:
            writer.write(speech + noise)


if __name__ == "__main__":
    main()
