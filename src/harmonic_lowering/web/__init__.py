"""A page in the browser, served on this machine, that does what `harmonic-lowering denoise` does.

Recordings go through the same plan, reader, denoiser, writer and picture as those of the command.
"""

from .server import Limits, PageError, serve

__all__ = ["Limits", "PageError", "serve"]
