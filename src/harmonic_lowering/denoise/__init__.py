"""Remove noise from one recording with a network fitted to that recording alone."""

from .denoiser import Block, Denoised, Denoiser, Progress, Stream, Summary
from .network import SpectrogramUNet

__all__ = ["Block", "Denoised", "Denoiser", "Progress", "SpectrogramUNet", "Stream", "Summary"]
