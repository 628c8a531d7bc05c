"""Rows of a spectrogram for the prior: single bins where pitch is, means of several above.

At 44.1 kHz two thirds of the bins lie above 8 kHz, where little tells one bin from the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rows"]

_MERGED = 16  # bins of a row above the single ones


@dataclass(frozen=True)
class Rows:
    """Of `bins` bins the first `single` are rows of their own, the others are merged by 16.

    Examples
    --------
    >>> rows = Rows(bins=1413, single=513)
    >>> spectrogram = torch.rand(1413, 10)
    >>> merged = rows.merge(spectrogram)
    >>> merged.shape, rows.split(merged).shape
    (torch.Size([570, 10]), torch.Size([1413, 10]))
    """

    bins: int
    single: int

    def parts(self, values: Tensor) -> list[Tensor]:
        """Return the bins (rows, T, bins of a row) of the single and of the merged rows, if any.

        The last merged row repeats its last bin.
        """
        single, high = values[: self.single], values[self.single :]
        if not len(high):
            return [single[..., None]]
        filled = torch.cat([high, high[-1:].expand(-len(high) % _MERGED, -1)])
        return [
            single[..., None],
            filled.view(-1, _MERGED, filled.shape[1]).transpose(1, 2).contiguous(),
        ]

    def merge(self, values: Tensor) -> Tensor:
        """Turn bins (F, T) into rows (rows, T)."""
        return torch.cat([part.mean(2) for part in self.parts(values)])

    def split(self, rows: Tensor) -> Tensor:
        """Give each bin (F, ...) what its row (rows, ...) has."""
        high = rows[self.single :].repeat_interleave(_MERGED, 0)
        return torch.cat([rows[: self.single], high])[: self.bins]
