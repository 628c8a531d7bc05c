"""What the native core is given of a geometry: each tap as a sparse matrix.

It goes from source rows to output rows. For each tap the plan also says whether its rows are
blended before they are convolved or after, whichever convolves fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._torch import making_constants
from ...taps import FrequencyTaps
from ..plans import byte_bounded_cache
from . import library

__all__ = ["Matrices", "Sparse", "matrices"]


class Sparse(NamedTuple):
    """Matrices of all taps in compressed rows, see ``struct Rows``."""

    pointer: Tensor
    column: Tensor
    value: Tensor
    n_rows: int

    def rows(self) -> library.Rows:
        """Return them as the core takes them."""
        return library.Rows(
            self.pointer.data_ptr(), self.column.data_ptr(), self.value.data_ptr(), self.n_rows
        )


class Matrices(NamedTuple):
    """The matrices P_j (output rows × source rows), transposed too, and the order for each tap."""

    matrix: Sparse
    transposed: Sparse
    blend_first: Tensor
    blend_first_transposed: Tensor

    def adjoint(self) -> Matrices:
        """Return the plan of the adjoint."""
        return Matrices(self.transposed, self.matrix, self.blend_first_transposed, self.blend_first)


Entries = list[list[tuple[int, float]]]


@byte_bounded_cache
def matrices(taps: FrequencyTaps, n_bins: int, stride: int) -> Matrices:
    """Return the plan of a geometry."""
    n_rows = -(-n_bins // stride)
    read: list[Entries] = []
    for rows in taps.rows(n_bins, stride):
        entries: Entries = [[] for _ in range(n_rows)]
        for row, lower, upper in zip(
            range(rows.start, rows.stop), rows.lower, rows.weight, strict=True
        ):
            entries[row].append((lower, 1 - upper))
            if upper:
                entries[row].append((lower + 1, upper))
        read.append(entries)
    given = [_transpose(entries, n_bins) for entries in read]
    # As many rows are convolved as the side of the blending on which the convolution is has.
    counts = [(_count(a), _count(b)) for a, b in zip(read, given, strict=True)]
    with making_constants():
        return Matrices(
            _compress(read, n_rows),
            _compress(given, n_bins),
            torch.tensor([int(live <= used) for live, used in counts]),
            torch.tensor([int(used <= live) for live, used in counts]),
        )


def _transpose(entries: Entries, n_columns: int) -> Entries:
    result: Entries = [[] for _ in range(n_columns)]
    for row, columns in enumerate(entries):
        for column, value in columns:
            result[column].append((row, value))
    return result


def _count(entries: Entries) -> int:
    return sum(bool(columns) for columns in entries)


def _compress(taps: list[Entries], n_rows: int) -> Sparse:
    flat: list[tuple[int, float]] = []
    pointers: list[int] = []
    for entries in taps:
        start = [len(flat)]
        for columns in entries:
            flat += columns
            start.append(len(flat))
        pointers += start
    return Sparse(
        torch.tensor(pointers),
        torch.tensor([column for column, _ in flat], dtype=torch.int64),
        torch.tensor([value for _, value in flat], dtype=torch.float64),
        n_rows,
    )
