"""Optional dependencies: asked for at the call that needs them, never at import."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_optional"]


def import_optional(module: str, purpose: str, install: str) -> Any:
    """Import a module, or raise an ImportError that says what for and how to install it.

    Any failure counts: a package that is there but broken raises other errors when imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ImportError(f"{purpose} needs {module}: pip install '{install}'") from error
