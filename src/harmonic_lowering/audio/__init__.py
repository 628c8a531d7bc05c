"""Reading and writing recordings without losing anything about them.

Samples are read exactly and to their true end. Sample rate, channels, length, container and
sample format survive the way in and out, and so do tags, pictures, chunks and dates. A file appears
under its name only when it is complete.
"""

from .formats import FILE_TYPES, AudioError, AudioFormat
from .metadata import Metadata
from .output import replacing
from .reader import AudioReader, LengthChanged
from .writer import AudioWriter

__all__ = [
    "FILE_TYPES",
    "AudioError",
    "AudioFormat",
    "AudioReader",
    "AudioWriter",
    "LengthChanged",
    "Metadata",
    "replacing",
]
