"""Places in a token sequence that an image fills: for models that read images as tokens (LaVIN).

They are negative numbers, which no vocabulary has; :class:`lav2.adapter.AdaptedLlama` puts embeddings in their place.
"""

MODALITY = -1  # becomes the modality token: whether the row has an image; routing reads it, no other token sees it
IMAGE = -2  # becomes an image token, one after another


def image_prefix(tokenizer, slots: int, has_image: bool) -> list[int]:
    """What stands before the text of a sample: ``[modality] BOS "Image: " [image] …``, or ``… "Image: N/A"``."""
    text = tokenizer.encode("Image: " if has_image else "Image: N/A", bos=True)
    return [MODALITY, *text, *[IMAGE] * (slots if has_image else 0)]
