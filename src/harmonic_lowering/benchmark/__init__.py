"""The benchmark of the layers: what is measured, how, and how the results are shown.

`settings` has the shapes, `columns` what is compared, `measure` how one figure comes about,
`records` what is kept of it, and `run` the order of the whole. `make bench` makes a page of it.
"""

from .records import Row, read_csv, worse
from .run import PARTS, Plan, measure_all
from .settings import SETTINGS, Setting

__all__ = ["PARTS", "SETTINGS", "Plan", "Row", "Setting", "measure_all", "read_csv", "worse"]
