"""Scores of what a model said, and reports about them."""

from lav2.evaluation.coco import coco_image_scores, coco_scores

__all__ = ["coco_image_scores", "coco_scores"]
