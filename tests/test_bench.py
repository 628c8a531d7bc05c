"""The benchmark at toy sizes: every kind of row, the page, and what happens when something fails.

No test asserts a time.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.common.tables import read_rows, write_rows
from benchmarks.layers import __main__ as command
from benchmarks.layers import columns, run
from benchmarks.layers.measure import Trial, error, interleaved, peak_memory
from benchmarks.layers.peer import Peer, offsets
from benchmarks.layers.rows import LayerRow, read_csv, regressions
from benchmarks.layers.run import PARTS, Options, cells, measure_all
from benchmarks.layers.settings import SETTINGS, toy
from harmonic_lowering import HarmonicConv2d

TINY = Options(
    parts=("settings",),
    settings=("9",),
    columns=("auto", "conv2d", "stacking"),
    dtypes=("float32",),
    formats=("contiguous",),
    seconds=1e-3,
    repetitions=2,
    memory=False,
    toy=True,
)
ARGUMENTS = [
    "--toy",
    "--quick",
    "--seconds",
    "1e-3",
    "--parts",
    "settings",
    "--settings",
    "9",
    "--quiet",
]
ARGUMENTS += ["--dtypes", "float32", "--formats", "contiguous", "--columns", "auto,conv2d"]
# Compiling takes seconds for each column, so that these have a test of their own.
COMPILED = ("compiled", "compiled_conv2d")
EAGER = tuple(column for column in columns.COLUMNS if column not in COMPILED)


def bench(*arguments):
    try:
        return command.main([*ARGUMENTS, *map(str, arguments)])
    except SystemExit as stop:  # argparse
        return stop.code


@pytest.fixture(scope="module")
def rows():
    """Every part and column, the peer included, wherever it is or is not installed."""
    options = replace(
        TINY,
        parts=Options.parts,
        settings=("3", "5", "9", "1x1x8x8", "anchors 1 to 7", "bins=32", "bins=64", "kernel=3"),
        columns=EAGER,
        dtypes=Options.dtypes,
        formats=Options.formats,
    )
    return list(measure_all(options))


def test_every_cell_has_a_row_for_every_column(rows):
    assert {row.part for row in rows} == set(PARTS)
    assert {row.column for row in rows} == set(EAGER)
    assert len({row.key for row in rows}) == len(rows)
    # two dtypes, two memory formats and two passes; the slow columns in the first of them only
    quick = [column for column in EAGER if column not in (*run.SLOW, "separate")]
    slow = [column for column in EAGER if column in run.SLOW]
    settings = [row for row in rows if row.part == "settings"]
    assert len(settings) == 3 * 2 * (4 * len(quick) + len(slow))
    for row in rows:
        if row.median_ms is None:
            assert row.note, row
        else:
            assert row.median_ms > 0
            assert row.q1_ms <= row.median_ms <= row.q3_ms
            assert row.repetitions >= 2


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["settings", "columns", "dtypes", "formats", "directions"])
def test_a_choice_holds_in_every_part(part, name):
    for value in {
        "settings": [setting.name for setting in PARTS[part].settings],
        "columns": PARTS[part].columns,
    }.get(name, getattr(Options, name)):
        found = cells(replace(Options(), **{name: (value,)}))
        assert part in {cell.part for cell in found}
        attribute = {"settings": "setting", "columns": "columns"}.get(name, name[:-1])
        attribute = {"format": "memory_format"}.get(attribute, attribute)
        for cell in found:
            chosen = getattr(cell, attribute)
            assert getattr(chosen, "name", chosen) in (value, (value,))


def test_beside_a_busy_process_each_column_has_its_own_slowdown(rows):
    busy = [row for row in rows if row.part == "busy"]
    assert {row.setting for row in busy} == {"3", "9"}
    assert all(row.slowdown > 0 for row in busy if row.median_ms is not None)
    assert all(row.slowdown is None for row in rows if row.part != "busy")


@pytest.mark.slow
def test_compiled_columns_have_ratios_to_their_own_baselines():
    found = list(measure_all(replace(TINY, columns=("compiled", "compiled_conv2d", "conv2d"))))
    row = {(row.column, row.direction): row for row in found}
    for direction in Options.directions:
        conv, layer = row["compiled_conv2d", direction], row["compiled", direction]
        assert layer.ratio == pytest.approx(layer.median_ms / conv.median_ms), layer.note
        assert conv.ratio == pytest.approx(conv.median_ms / row["conv2d", direction].median_ms)
        assert 0 < layer.error < 1e-5
        assert 0 < conv.error < 1e-5


def test_the_columns_compute_what_they_say(rows):
    checked = [row for row in rows if row.error is not None]
    assert {row.column for row in checked} >= set(EAGER) - {"native", "deform_conv2d"}
    for row in checked:
        assert 0 < row.error < (1e-5 if row.dtype == "float32" else 3e-2), row


def test_the_baseline_is_conv2d_in_the_same_rounds(rows):
    base = {row.key[:2] + row.key[3:]: row for row in rows if row.column == "conv2d"}
    for row in rows:
        if row.column == "conv2d":
            assert row.ratio == 1
        elif row.ratio and row.part == "settings" and row.column != "deform_conv2d":
            conv = base[row.key[:2] + row.key[3:]]
            assert row.ratio == pytest.approx(row.median_ms / conv.median_ms)


def test_the_same_sizes_are_measured_once(rows):
    paper = [r for r in rows if r.part == "settings"]
    three, five = ([r for r in paper if r.setting == name] for name in "35")
    assert [replace(r, setting="3") for r in five] == three


def test_work_and_limit():
    setting = SETTINGS["1"]
    conv = setting.multiplications("conv2d", backward=False)
    assert conv == 16 * 32 * 7 * 7 * 256 * 256 * 16
    # the rows that are alive: 37 % in Setting 1, 67 % of the rows in 3a (see docs/engines.md)
    assert setting.multiplications("auto", backward=False) / conv == pytest.approx(0.37, abs=0.01)
    assert SETTINGS["3a"].multiplications("auto", backward=True) / SETTINGS["3a"].multiplications(
        "conv2d", backward=True
    ) == pytest.approx(0.67, abs=0.01)
    assert setting.bytes(4, backward=False) == 4 * (16 * 65536 * 48 + 16 * 32 * 49)


def test_memory_is_what_a_pass_needs_above_its_inputs_and_results():
    setting = replace(SETTINGS["3"], batch=8)
    lean, lavish = (peak_memory(Trial(c, setting)) for c in ("conv2d", "stacking"))
    one_input = 4 * 8 * 16 * 256 * 256
    assert lavish - lean > 2 * one_input  # the lowered tensor is three of them
    with pytest.raises(RuntimeError, match="nonsense"):
        peak_memory(Trial("nonsense", toy(setting)))


def test_the_error_of_a_wrong_result_is_seen(monkeypatch):
    trial = Trial("stacking", toy(SETTINGS["3"]), backward=True)
    assert error(trial) < 1e-6
    forward = columns.Stacking.forward
    monkeypatch.setattr(columns.Stacking, "forward", lambda self, x: 1.01 * forward(self, x))
    assert error(trial) == pytest.approx(0.01, rel=0.1)


def test_rounds_go_on_after_a_failure():
    calls = []

    def fails():
        calls.append("fails")
        if calls.count("fails") > 1:
            raise RuntimeError("out of luck")

    found = interleaved({"a": lambda: calls.append("a"), "b": fails}, 1e-3, 4)
    assert calls[:4] == ["a", "fails", "fails", "a"]  # each round begins with another one
    assert set(calls[4:]) == {"a"}
    assert len(found["a"]) == calls.count("a") - 1  # the first run is not measured
    assert str(found["b"]) == "out of luck"


@pytest.mark.parametrize("when", ["built", "run"])
def test_a_failing_peer_has_its_error_in_its_row(monkeypatch, when):
    class Broken(torch.nn.Module):
        def __init__(self, setting):
            super().__init__()
            if when == "built":
                raise RuntimeError("no such thing\nand more")

        def forward(self, input):
            raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(columns, "Stacking", Broken)
    found = {row.column: row for row in measure_all(replace(TINY, directions=("forward",)))}
    assert found["stacking"].note == "RuntimeError: no such thing"
    assert found["stacking"].median_ms is None
    assert found["auto"].ratio > 0


def test_a_layer_that_fails_is_an_exit_status(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no luck today")

    monkeypatch.setattr(HarmonicConv2d, "forward", fails)
    assert bench("--directions", "forward") == 1
    assert "setting 9, auto: RuntimeError: no luck today" in capsys.readouterr().err


# -------------------------------------------------------------------- the other process


def test_offsets_read_where_the_taps_read():
    setting = replace(SETTINGS["3a"], bins=9, frames=4)
    moved = offsets(setting).view(3, 3, 2, 9, 4)
    for row, positions in enumerate(setting.taps().positions(9)):
        for f, position in enumerate(positions):
            read = f - 1 + row + moved[row, :, 0, f]
            if position <= 8:
                torch.testing.assert_close(read, torch.full_like(read, float(position)))
            else:
                assert (read < -1).all()
    assert not moved[:, :, 1].any()


@pytest.mark.peer
def test_deform_conv2d_computes_the_same():
    from benchmarks.layers.peer import deform
    from harmonic_lowering import harmonic_conv2d

    trial = Trial("conv2d", toy(SETTINGS["3a"]), "float64")
    module, (input, _) = deform(trial), trial.tensors()
    conv = module.conv
    expected = harmonic_conv2d(input, conv.weight, conv.bias, padding=1, anchor=3)
    torch.testing.assert_close(module(input), expected)


def test_a_python_that_is_not_there_or_dies():
    trial = Trial("deform_conv2d", toy(SETTINGS["9"]))
    for python, match in (("no-such-python", "no-such-python"), ("false", "false")):
        peer = Peer(python)
        assert match in peer.ask(trial)["error"]
        peer.close()


# -------------------------------------------------------------------- files


def test_command_table_and_regression(tmp_path, capsys):
    table = tmp_path / "table.csv"
    assert bench("-o", table) == 0
    assert os.listdir(tmp_path) == ["table.csv"]
    out = capsys.readouterr().out
    assert " ms " in out
    assert out.strip().endswith("table.csv")
    assert bench("-o", table) == 2
    assert "--force" in capsys.readouterr().err

    stored = read_csv(table)
    assert [row.column for row in stored] == ["auto", "conv2d"] * 2
    assert stored[0].machine
    assert stored[0].torch == torch.__version__

    # the same table with ratios that no run can reach, and with ones that every run does
    for factor, status in ((1e-6, 1), (1e6, 0)):
        text = list(csv.DictReader(table.read_text().splitlines()))
        for record in text:
            record["ratio"] = float(record["ratio"]) * factor
        with (tmp_path / "reference.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, text[0])
            writer.writeheader()
            writer.writerows(text)
        assert bench("--reference-csv", tmp_path / "reference.csv") == status
        assert f"{4 if status else 0} rows are worse" in capsys.readouterr().out


def test_rows_survive_a_file_and_older_tables_are_read(rows, tmp_path):
    write_rows(tmp_path / "table.csv", rows, LayerRow)
    back = read_rows(tmp_path / "table.csv", LayerRow)
    write_rows(tmp_path / "again.csv", back, LayerRow)
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "again.csv").read_text()
    assert [row.key for row in back] == [row.key for row in rows]
    stored = read_csv(command.TABLE)  # made before there was a column "slowdown"
    assert {row.part for row in stored} <= set(PARTS)
    assert {row.setting for row in stored} <= set(run.SETTING_NAMES)


def test_ratios_are_compared_and_times_are_not(rows):
    rows = [row for row in rows if row.ratio is not None]
    slow_machine = [replace(row, median_ms=100 * row.median_ms) for row in rows]
    assert not list(regressions(slow_machine, rows, 0.1))
    first = replace(rows[0], ratio=1.2 * rows[0].ratio)
    assert list(regressions([first], rows, 0.1)) == [(first, rows[0].ratio)]
    assert not list(regressions([first], rows, 0.3))
    failed = replace(rows[0], ratio=None, note="RuntimeError")
    assert list(regressions([failed], rows, 0.1)) == [(failed, rows[0].ratio)]
    with pytest.raises(ValueError, match="no row in common"):
        list(regressions(rows, [replace(row, bins=7) for row in rows], 0.1))


def test_known_rows_are_not_measured_again():
    first = list(measure_all(TINY))
    assert list(measure_all(TINY, known=first)) == first
    elsewhere = [replace(row, machine="another") for row in first]
    assert list(measure_all(TINY, known=elsewhere)) != elsewhere
    half = list(measure_all(TINY, known=first[:4]))  # the second cell lacks two of its rows
    assert half[:3] == first[:3]
    assert half[3] != first[3]


def test_an_interrupted_run_is_kept_and_resumed(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.csv"
    part = tmp_path / "table.csv.part"

    def interrupted_after(number):
        def some(*arguments):
            yield from islice(measure_all(*arguments), number)
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "measure_all", some)

    interrupted_after(3)
    assert bench("-o", table) == 130
    assert "3 rows are in" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [part.name]
    kept = read_csv(part)
    monkeypatch.undo()
    assert bench("-o", table, "--resume") == 0
    assert os.listdir(tmp_path) == [table.name]
    assert len(read_csv(table)) == 4
    assert read_csv(table)[:2] == kept[:2]

    interrupted_after(0)
    assert bench("-o", table, "--force") == 130
    assert os.listdir(tmp_path) == [table.name]  # what was there before still is


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--settings", "10"], "'10' is not one of 1, 2"),
        (["--columns", "deform"], "'deform' is not one of"),
        (["--parts", "series", "--columns", "log"], "nothing to measure"),
        (["--parts", "anchors"], "nothing to measure"),
        (["--page", "no/such/folder/page.md"], "there is no folder no/such/folder"),
        (["--batch", "0"], "must be an int >= 1, got '0'"),
        (["--seconds", "nan"], "must be a number > 0"),
        (["--device", "nowhere"], "nowhere"),
        (["--resume"], "--resume needs the --output"),
        (["-o", "no/such/folder/table.csv"], "there is no folder no/such/folder"),
        (["--reference-csv", "no-such.csv"], "no-such.csv"),
        (["--reference-csv", __file__], "not a table of this benchmark"),
        (["--reference-csv", os.devnull], "holds no row"),
    ],
)
def test_bad_arguments(arguments, match, capsys):
    assert bench(*arguments) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert match in sentence
    assert "Traceback" not in sentence


# -------------------------------------------------------------------- the page


def test_the_page_has_every_part_and_the_charts(rows, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.layers.page import write_page

    write_page(rows, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    charts = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert charts == ["bench-harmonic.png", "bench-log.png", "bench-series.png"]
    for name in charts:
        assert f"(images/{name})" in text
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")
    for dtype in Options.dtypes:
        for form in ("contiguous", "channels last"):
            assert f"## {dtype}, {form}: time" in text
    assert "Not measured" not in text
    assert "{" not in text  # no placeholder stayed


def test_the_page_lists_every_row_that_loses(rows, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.layers.page import write_page

    parts = ("settings", "calls", "series")
    timed = [r for r in rows if r.column in ("auto", "log") and r.part in parts and r.ratio]
    for ratio, losing in ((0.5, 0), (1234.5, len(timed))):
        changed = [replace(r, ratio=ratio) if r in timed else r for r in rows]
        write_page(changed, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text()
        assert f"In {losing} of {len(timed)} rows a layer takes longer" in text
        section = text.partition("## Where the layers lose")[2].partition("\n## ")[0]
        assert section.count("| 1234.50 |") == losing
        assert text.count("| **1234.50 ±") == (losing and sum(r.part == "settings" for r in timed))
