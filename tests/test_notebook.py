"""The notebook runs, and is stored with what it gave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "deep_audio_prior.ipynb"
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print([output["text"] for cell in notebook.cells for output in cell.get("outputs", [])
       if output.output_type == "stream"])
"""


@pytest.mark.slow
def test_it_runs():
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "NOTEBOOK_SMALL": "1", "PYTHONPATH": str(ROOT / "src")}
    told = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK],
        cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "dB after" in told.stdout


def test_it_is_stored_executed():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds  # pictures and players
    assert not any(output["output_type"] == "error" for output in outputs)
