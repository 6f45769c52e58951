"""Captions of images as people have them on disk: COCO's files, Karpathy's split, tables, LLaVA's json."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lav2.data.conversations import read_llava
from lav2.data.examples import Example, Fault
from lav2.data.files import is_unicode, read_json, read_text, text_fault, unknown_fields
from lav2.data.images import image_path, is_web_address, one_key_for_each_image
from lav2.data.problems import Problems
from lav2.errors import UserError

CAPTION_PROMPT = "Generate caption of this image"


@dataclass(frozen=True)
class CaptionSource:
    """A file of captions, the folder its image names start from, and what the model is asked.

    ``format`` is one of

    * ``coco``: an annotation file of COCO 2014 or 2017, ``{"images": […], "annotations": […]}``;
    * ``karpathy``: ``dataset_coco.json``, of which ``splits`` are read; default: train and, where there is one,
      restval, which the papers train on;
    * ``tsv``: a table with tabs between its columns and a header; ``url`` or ``path`` names the image, ``caption``
      is its caption. A web address is a bad sample: nothing is downloaded;
    * ``llava``: LLaVA's json, in which each conversation brings its own question; ``prompt`` takes its place where
      there is nothing but ``<image>``.
    """

    annotations: str | Path
    images: str | Path
    prompt: str = CAPTION_PROMPT
    format: str = "coco"
    splits: Sequence[str] | None = None


def read_captions(sources: Iterable[CaptionSource], problems: Problems) -> list[Example]:
    """All captions of one or several files, without looking into the images.

    Bad entries go to ``problems``; an image with none of its own (say, a wrong id) shows in its captions.

    Raises:
        UserError: a file or folder is missing or is not in the format; too many captions are bad.
    """
    rows: list[Example | Fault] = []
    for source in sources:
        path = Path(source.annotations)
        if not Path(source.images).is_dir():
            raise UserError(f"no image folder {source.images} (given with {path})")
        if source.format == "llava":
            rows += read_llava(path, source.images, problems, image_needed=True, prompt=source.prompt)
        else:
            read = {"coco": read_coco, "karpathy": read_karpathy, "tsv": read_tsv}[source.format]
            rows += read(source, path, problems)
    return one_key_for_each_image(problems.sift(rows))


def caption(source: CaptionSource, where: str, image: Any, text: Any) -> Example | Fault:
    """One caption of the image that its file calls ``image``."""
    if fault := text_fault("caption", text):
        return Fault(fault, where)
    if not isinstance(image, str) or not image.strip():
        return Fault("caption of an unknown image", where)
    if is_web_address(image):
        return Fault("image at a web address, which is not downloaded", where)
    return Example(source.prompt, "", text.strip(), image, where, image_path(source.images, image))


def read_coco(source: CaptionSource, path: Path, problems: Problems) -> Iterator[Example | Fault]:
    content = read_json(path)
    lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        raise UserError(f'{path} is no COCO annotation file: expected {{"images": […], "annotations": […]}}')
    images, annotations = lists
    problems.warnings += unknown_fields(path, annotations, ("id", "image_id", "caption"))
    names = {
        image["id"]: image.get("file_name")
        for image in images
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    for position, annotation in enumerate(annotations):
        where, image, text = f"{path.name} entry {position}", None, None
        if isinstance(annotation, dict):
            where = f"{path.name} annotation {annotation.get('id', position)}"
            text = annotation.get("caption")
            if isinstance(annotation.get("image_id"), int | str):
                image = names.get(annotation["image_id"])
        yield caption(source, where, image, text)


def read_karpathy(source: CaptionSource, path: Path, problems: Problems) -> Iterator[Example | Fault]:
    """``{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}, …]}, …]}``; Flickr's has no filepath."""
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f'{path} is no Karpathy split: expected {{"images": […]}}')
    found = list(dict.fromkeys(str(image.get("split")) for image in images if isinstance(image, dict)))
    splits = source.splits or [split for split in ("train", "restval") if split in found]
    if absent := [split for split in splits if split not in found]:
        raise UserError(f"{path} has no split {absent[0]!r}; it has {', '.join(found)}")
    known = ("filepath", "filename", "imgid", "cocoid", "sentids", "split", "sentences")
    problems.warnings += unknown_fields(path, images, known)
    for position, image in enumerate(images):
        where = f"{path.name} entry {position}"
        if not isinstance(image, dict):
            yield Fault("entry that is no object", where)
        elif image.get("split") in splits:
            where = f"{path.name} image {image.get('cocoid', image.get('imgid', position))}"
            folder, name, sentences = image.get("filepath", ""), image.get("filename"), image.get("sentences")
            if isinstance(name, str) and isinstance(folder, str) and folder:
                name = f"{folder}/{name}"
            if not isinstance(sentences, list) or not sentences:
                yield Fault("image without captions", where)
                continue
            for number, sentence in enumerate(sentences):
                text = sentence.get("raw") if isinstance(sentence, dict) else None
                yield caption(source, f"{where} sentence {number}", name, text)


def read_tsv(source: CaptionSource, path: Path, problems: Problems) -> Iterator[Example | Fault]:
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    columns = [name.strip().lower() for name in lines[0].split("\t")]
    images = [columns.index(name) for name in ("url", "path") if name in columns]
    if len(images) != 1 or "caption" not in columns:
        raise UserError(f"{path} has the header {lines[0][:80]!r}: expected url or path, a tab, caption")
    if unread := [name for name in columns if name not in ("url", "path", "caption")]:
        problems.warnings.append(f"{path.name} has columns that are not read: {', '.join(map(repr, unread))}")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = [unquoted(field) for field in line.split("\t")]
        where = f"{path.name} line {number}"
        if len(fields) != len(columns) or None in fields or not is_unicode(line):
            yield Fault("malformed line", where)
        else:
            yield caption(source, where, fields[images[0]], fields[columns.index("caption")])


def unquoted(field: str) -> str | None:
    """A field without the quotation marks that table writers put around some; None where they are not closed."""
    if field.startswith('"'):
        if field.count('"') % 2:
            return None
        inner = field[1:-1].replace('""', "")
        if field.endswith('"') and '"' not in inner:
            return field[1:-1].replace('""', '"')
    return field
