"""Run `harmonic-lowering bench` with the given arguments: `make bench ARGS=...`.

Without --output the table goes to docs/benchmarks.csv, and docs/benchmarks.md is made from it. So
with arguments that choose less than everything, give --output too: the stored table stays whole.
"""

from __future__ import annotations

import sys

from harmonic_lowering.benchmark import read_csv
from harmonic_lowering.cli import main

from .page import DOCS, write_page

if __name__ == "__main__":
    arguments, table = sys.argv[1:], DOCS / "benchmarks.csv"
    stored = not {"-o", "--output", "-h", "--help"} & {a.partition("=")[0] for a in arguments}
    if stored:
        arguments += ["--output", str(table), "--force"]
    status = main(["bench", *arguments])
    if stored and status in (0, 1):
        write_page(read_csv(table), table.with_suffix(".md"))
        print(table.with_suffix(".md"))
    sys.exit(status)
