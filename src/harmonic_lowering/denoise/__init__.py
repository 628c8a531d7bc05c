"""Remove noise from one recording with a network fitted to that recording alone."""

from .denoiser import Denoised, Denoiser, Progress
from .network import SpectrogramUNet

__all__ = ["Denoised", "Denoiser", "Progress", "SpectrogramUNet"]
