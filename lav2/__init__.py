"""lav2: LLaMA-Adapter V2 (arXiv 2304.15010), faithful and tested."""


def load(*args, **settings):
    """A trained adapter on its base model; see :func:`lav2.inference.load`."""
    from lav2.inference import load  # here, so that `import lav2` stays light

    return load(*args, **settings)
