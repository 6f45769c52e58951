"""Captions, instructions → tokens and labels; loaders that resume anywhere."""

from lav2.data.loader import ResumableLoader
from lav2.data.problems import Problems
from lav2.data.scienceqa import ScienceQASource, read_scienceqa
from lav2.data.sources import CaptionSource, Example, read_captions, read_instructions
from lav2.data.templates import Template
from lav2.data.tokens import IGNORE, Sample, Samples, collate, encode

__all__ = [
    "IGNORE",
    "CaptionSource",
    "Example",
    "Problems",
    "ResumableLoader",
    "Sample",
    "Samples",
    "ScienceQASource",
    "Template",
    "collate",
    "encode",
    "read_captions",
    "read_instructions",
    "read_scienceqa",
]
