"""Run the benchmark and write docs/benchmarks.md from it: `make bench`; ARGS are handed on.

With arguments that choose less than everything, give --output too: the stored table stays whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harmonic_lowering.cli import main

if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    arguments = ["bench", *sys.argv[1:]]
    if not {"-o", "--output", "--from-csv", "-h", "--help"} & set(arguments):
        arguments += ["--output", str(docs / "benchmarks.csv"), "--force"]
        arguments += ["--page", str(docs / "benchmarks.md")]
    sys.exit(main(arguments))
