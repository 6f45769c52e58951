"""The frozen image encoder, the visual projector, and features computed once (V2 paper, sec 4.3)."""

from lav2.vision.encoder import VisionEncoder, feature_width
from lav2.vision.projector import LinearProjector, QueryProjector

__all__ = ["LinearProjector", "QueryProjector", "VisionEncoder", "feature_width"]
