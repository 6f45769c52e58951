"""The tokenizer inside a GGUF file, rebuilt from its list of tokens."""

from pathlib import Path
from typing import Any

from lav2.errors import UserError
from lav2.llama.gguf import read_gguf
from lav2.llama.vocabulary import ControlIds, HuggingFaceVocabulary, SentencePieceVocabulary, require_tokenizers

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens; SentencePiece numbers them alike

# Ways to split a text into words, within which a byte-level vocabulary merges pieces; LLaMA 3's by an expression
SPLITS = ("gpt-2", "smollm", "llama-bpe")
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def read_gguf_tokenizer(path: Path) -> tuple[SentencePieceVocabulary | HuggingFaceVocabulary, ControlIds]:
    """The tokenizer in the GGUF file ``path``.

    Raises:
        UserError: the file is damaged, or its tokenizer is of a kind that cannot be rebuilt exactly.
    """
    stored = read_gguf(path).settings
    settings = {
        key.removeprefix("tokenizer.ggml."): value for key, value in stored.items() if key.startswith("tokenizer.ggml.")
    }
    kind = settings.get("model")
    if kind not in ("llama", "gpt2"):
        raise UserError(f"{path} has a tokenizer of the kind {kind!r}; only 'llama' and 'gpt2' are read")
    needed = {"tokens", "eos_token_id", "scores" if kind == "llama" else "merges"}
    if lacks := sorted(needed - settings.keys()):
        raise UserError(f"{path} lacks tokenizer.ggml.{lacks[0]}; set llama.tokenizer to its model's own tokenizer")
    settings.setdefault("token_type", [NORMAL] * len(settings["tokens"]))
    for key in {"scores", "token_type"} & settings.keys():
        if len(settings[key]) != len(settings["tokens"]):
            raise UserError(f"{path}: tokenizer.ggml.{key} and tokenizer.ggml.tokens differ in length")
    eos = settings["eos_token_id"]
    expects_bos = kind == "llama" or settings.get("pre") == "llama-bpe"  # unless the file says
    control = ControlIds(
        bos=settings.get("bos_token_id", eos),
        eos=eos,
        pad=settings.get("padding_token_id"),
        stop=tuple(settings[key] for key in ("eot_token_id", "eom_token_id") if key in settings),
        add_bos="bos_token_id" in settings and settings.get("add_bos_token", expects_bos),
    )
    if kind == "llama":
        return SentencePieceVocabulary(sentencepiece_model(settings), path), control
    return HuggingFaceVocabulary(byte_level_tokenizer(settings, path)), control


def sentencepiece_model(settings: dict[str, Any]) -> bytes:
    """The SentencePiece model, as the content of its file, that the settings of a ``llama`` tokenizer came from."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    model = schema.ModelProto()
    for piece, score, kind in zip(settings["tokens"], settings["scores"], settings["token_type"], strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(settings["tokens"])
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = settings.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = settings.get("remove_extra_whitespaces", False)
    return model.SerializeToString()


def byte_level_tokenizer(settings: dict[str, Any], path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of the settings of a ``gpt2`` tokenizer: byte pairs merged within words."""
    package = require_tokenizers(path)
    known = package.pre_tokenizers
    split = settings.get("pre")
    if split == "gpt-2":
        words = known.ByteLevel(add_prefix_space=False)
    elif split == "smollm":
        words = known.Sequence([known.Digits(individual_digits=True), known.ByteLevel(add_prefix_space=False)])
    elif split == "llama-bpe":
        expression = known.Split(package.Regex(LLAMA_3_WORDS), "isolated")
        words = known.Sequence([expression, known.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        raise UserError(f"{path} has a tokenizer that splits words as {split!r}; only {', '.join(SPLITS)} are read")
    tokens, kinds = settings["tokens"], settings["token_type"]
    try:
        model = package.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in settings["merges"]],
            ignore_merges=split == "llama-bpe",
        )
    except Exception as error:  # the package raises nothing more specific
        raise UserError(f"{path}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    tokenizer = package.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = words, package.decoders.ByteLevel()
    for kind, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        add([package.AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind])
    return tokenizer
