"""Experts at inference: text about an image, as context of the instruction (V2 paper, sec 4.4)."""

from lav2.experts.caption import CaptionExpert
from lav2.experts.context import Consultation, Expert, Experts
from lav2.experts.images import image_key

__all__ = ["CaptionExpert", "Consultation", "Expert", "Experts", "image_key"]
