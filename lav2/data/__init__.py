"""Captions, instructions, conversations → tokens and labels; loaders that resume anywhere."""

from lav2.data.captions import CAPTION_PROMPT, CaptionSource, read_captions
from lav2.data.examples import Example, Turn
from lav2.data.images import check_images, image_fault, load_image
from lav2.data.instructions import read_instructions
from lav2.data.loader import ResumableLoader
from lav2.data.mixing import TaskCycle
from lav2.data.problems import Problems
from lav2.data.scienceqa import ScienceQASource, read_scienceqa
from lav2.data.split import validation_keys
from lav2.data.templates import Segment, Template, choose_template
from lav2.data.tokens import IGNORE, Sample, Samples, collate, encode, encode_prompt

__all__ = [
    "CAPTION_PROMPT",
    "IGNORE",
    "CaptionSource",
    "Example",
    "Problems",
    "ResumableLoader",
    "Sample",
    "Samples",
    "ScienceQASource",
    "Segment",
    "TaskCycle",
    "Template",
    "Turn",
    "check_images",
    "choose_template",
    "collate",
    "encode",
    "encode_prompt",
    "image_fault",
    "load_image",
    "read_captions",
    "read_instructions",
    "read_scienceqa",
    "validation_keys",
]
