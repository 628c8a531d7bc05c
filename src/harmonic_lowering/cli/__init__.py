"""Command line: thin faces over the API, one module for each subcommand."""

from .main import main

__all__ = ["main"]
