"""The LightningDataModule of joint training (V2 paper, sec 4.2): a caption stream and an instruction stream."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import track
from torch.utils.data import DataLoader

from lav2.data import report, sources
from lav2.data.captions import CaptionSource, read_captions
from lav2.data.examples import Example
from lav2.data.images import check_images
from lav2.data.instructions import read_instructions
from lav2.data.loader import ResumableLoader
from lav2.data.mixing import TaskCycle
from lav2.data.problems import Problems
from lav2.data.slots import image_prefix
from lav2.data.split import validation_keys
from lav2.data.templates import KINDS, choose_template
from lav2.data.tokens import NoRoom, Sample, Samples, collate, encode
from lav2.errors import UserError
from lav2.tasks import TASKS
from lav2.vision.features import FEATURE_DTYPES, FeatureStore, Pixels, compute_features

MODES = ("max_size_cycle", "min_size", "alternate", "ratio")
NOUNS = {"caption": "captions", "instruction": "instructions"}


class JointData(LightningDataModule):
    """Captions with image features, and instructions, as one resumable stream of batches for each task.

    A training batch is ``{task: batch}`` with a batch from :func:`lav2.data.tokens.collate` for every task, or, where
    the tasks take turns, for one. Each task's stream depends on (seed, task, its own data) alone: the instructions come
    in the same order with captions beside them and without.

    Args:
        captions: mappings with the fields of :class:`lav2.data.captions.CaptionSource`.
        instructions: paths of Alpaca files, or mappings; see :func:`lav2.data.instructions.read_instructions`.
        tasks: which of ``caption`` and ``instruction`` to train.
        template: a kind of :class:`lav2.data.templates.Template`, or ``family``: the one of the base model's family.
        batch_size: samples a batch and device, for each task.
        max_length: tokens of prompt and response, for each task; longer responses are cut and counted.
        validation: fraction held out, by image for captions and by question for instructions.
        seed: of the order and of the split.
        num_workers: processes that read ahead, for each task.
        mode: each step sees every task, and an epoch is as long as the longer (``max_size_cycle``) or the shorter
            (``min_size``) task; or each step sees one task, by turns (``alternate``) or in a ``ratio``.
        ratio: for ``ratio``, each task's steps in one cycle.
        on_error: ``skip`` (name, count and leave out) or ``raise`` at the first bad sample.
        max_bad: the fraction of bad samples of a task beyond which the run stops.
        cache_dir: folder for image features.
        feature_dtype: of the image features on disk, ``float16`` or ``float32``.

    Raises:
        UserError: names everything that is wrong with the arguments, at once.
    """

    def __init__(
        self,
        captions: Sequence[Mapping] = (),
        instructions: Sequence[str | Mapping] = (),
        tasks: Sequence[str] = TASKS,
        template: str = "alpaca",
        batch_size: Mapping[str, int] = MappingProxyType({"caption": 32, "instruction": 32}),
        max_length: Mapping[str, int] = MappingProxyType({"caption": 96, "instruction": 512}),
        validation: float = 0.05,
        seed: int = 0,
        num_workers: int = 0,
        mode: str = "max_size_cycle",
        ratio: Mapping[str, int] = MappingProxyType({"caption": 1, "instruction": 1}),
        on_error: str = "skip",
        max_bad: float = 0.05,
        cache_dir: str = "cache/features",
        feature_dtype: str = "float16",
        tokenizer=None,
        encoder=None,
    ):
        super().__init__()
        self.captions, self.instructions, self.tasks = captions, instructions, list(tasks)
        self.batch_size, self.max_length = batch_size, max_length
        self.validation, self.seed, self.num_workers, self.mode = validation, seed, num_workers, mode
        self.ratio, self.on_error, self.max_bad = ratio, on_error, max_bad
        self.cache_dir, self.feature_dtype = cache_dir, feature_dtype
        self.kind = template
        if faults := self._faults():
            raise UserError("data: " + "; ".join(faults))
        self.prepare(tokenizer, encoder)
        self.problems: dict[str, Problems] = {}
        self.training: dict[str, Samples] = {}
        self.held_out: dict[str, Samples] = {}

    def _faults(self) -> list[str]:
        faults = []
        if not self.tasks or set(self.tasks) - set(TASKS):
            faults.append(f"tasks is {self.tasks}; choose from {list(TASKS)}")
        for task, given in (("caption", self.captions), ("instruction", self.instructions)):
            if task in self.tasks:
                if not isinstance(given, Sequence) or isinstance(given, str):
                    faults.append(f"{NOUNS[task]} is {given!r}; give a list")
                elif not given:
                    faults.append(f"{NOUNS[task]} is empty; give some or leave {task} out of tasks")
                else:
                    fault_of = sources.caption_fault if task == "caption" else sources.instruction_fault
                    faults += filter(None, map(fault_of, given))
                for name in ("batch_size", "max_length", *(["ratio"] if self.mode == "ratio" else [])):
                    sizes = getattr(self, name)
                    size = sizes.get(task) if isinstance(sizes, Mapping) else None
                    if type(size) is not int or size < 1:  # a bool is no count
                        faults.append(f"{name}.{task} is {size!r}; it must be a whole number, 1 or more")
        if type(self.num_workers) is not int or self.num_workers < 0:
            faults.append(f"num_workers is {self.num_workers!r}; it must be a whole number, 0 or more")
        if type(self.validation) not in (int, float) or not 0 <= self.validation < 1:
            faults.append(f"validation is {self.validation!r}; choose a fraction from 0 to below 1")
        if type(self.max_bad) not in (int, float) or not 0 <= self.max_bad <= 1:
            faults.append(f"max_bad is {self.max_bad!r}; choose a fraction from 0 to 1")
        if self.mode not in MODES:
            faults.append(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        if self.kind not in KINDS:
            faults.append(f"template is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.on_error not in ("skip", "raise"):
            faults.append(f"on_error is {self.on_error!r}; choose skip or raise")
        if self.feature_dtype not in FEATURE_DTYPES:
            faults.append(f"feature_dtype is {self.feature_dtype!r}; choose one of {', '.join(FEATURE_DTYPES)}")
        return faults

    def missing_files(self) -> list[str]:
        """What the tasks need and is not there, one line each; a run checks this before it reads any weight."""
        entries = {"caption": self.captions, "instruction": self.instructions}
        lost = [line for task in self.tasks for line in sources.missing_files(NOUNS[task], entries[task])]
        return list(dict.fromkeys(lost))

    @property
    def has_images(self) -> bool:
        """Whether an encoder is needed: there are captions, or instructions about images."""
        about_images = "instruction" in self.tasks and any(map(sources.has_images, self.instructions))
        return "caption" in self.tasks or about_images

    def prepare(
        self,
        tokenizer,
        encoder=None,
        image_tokens: int | None = None,
        encoder_trains: bool = False,
        sees: bool | None = None,
    ) -> None:
        """Give the tokenizer and the frozen encoder; without an encoder samples carry no features.

        Args:
            encoder: what :func:`lav2.vision.features.compute_features` takes.
            image_tokens: the places for an image among the tokens, for a model that reads images as tokens.
            encoder_trains: samples carry pixels in place of features, which would change from step to step.
            sees: whether the model reads images; default: if there is an encoder.
        """
        self.tokenizer, self.encoder = tokenizer, encoder
        self.sees = encoder is not None if sees is None else sees
        self.image_tokens, self.encoder_trains = image_tokens, encoder_trains

    def setup(self, stage: str | None = None) -> None:
        """Read, check, encode and split the data and compute image features, once; print what was found.

        Every process does so; of the image features each computes a share.

        Raises:
            UserError: a file is missing or unreadable, too many samples are bad, or a task has none.
        """
        if self.training:
            return
        if self.tokenizer is None:
            raise RuntimeError("call prepare(tokenizer, encoder) before setup")
        self.template = choose_template(self.kind, self.tokenizer)
        for task in self.tasks:
            problems = self.problems[task] = Problems(NOUNS[task], self.on_error, self.max_bad)
            if task == "caption":
                examples = read_captions([CaptionSource(**source) for source in self.captions], problems)
            else:
                examples = read_instructions(self.instructions, problems)
            examples, features = self._with_images(examples, problems)
            training, held_out = self._encode(task, examples, features, problems)
            if not len(training):
                raise UserError(f"no {NOUNS[task]} to train on: {problems.summary() or 'the data files hold none'}")
            self.training[task], self.held_out[task] = training, held_out
        rank_zero_only(report.print_summary)(self.summary(), self.problems)

    def _with_images(
        self, examples: list[Example], problems: Problems
    ) -> tuple[list[Example], FeatureStore | Pixels | None]:
        samples = Counter(example.image for example in examples if example.image is not None)
        bad = set()

        def on_bad(path: Path, reason: str) -> None:
            bad.add(path)
            problems.add(reason, str(path), samples=samples[path])

        features = None
        if samples and (self.encoder is None or self.encoder_trains):
            check_images(sorted(samples), on_bad)
            if self.encoder is not None:
                features = Pixels(self.encoder.preprocess, samples.keys() - bad)
        elif samples:
            features = compute_features(
                self.encoder, samples, self.cache_dir, on_bad, self.feature_dtype, num_workers=self.num_workers
            )
        return [example for example in examples if example.image not in bad], features

    def _encode(self, task: str, examples: list[Example], features: FeatureStore | Pixels | None, problems: Problems):
        """The training and the validation samples of one task."""
        kept: list[tuple[Example, Sample]] = []
        for example in track(examples, f"encoding {NOUNS[task]}", disable=rank_zero_only.rank != 0):
            segments = self.template.render(example.turns, example.system)
            has_image = example.image is not None and self.sees
            prefix = () if self.image_tokens is None else image_prefix(self.tokenizer, self.image_tokens, has_image)
            try:
                kept.append((example, encode(self.tokenizer, segments, self.max_length[task], prefix)))
            except NoRoom as error:
                problems.add("prompt without room for a response", f"{example.where}: {error}")
        stop = self.template.stop
        held = sum(stop in turn.response for example, _ in kept for turn in example.turns) if stop else 0
        if held and stop not in self.template.control_tokens:
            problems.warnings.append(f"responses with {stop!r} inside, where generation would end: {held:,}")
        keys = validation_keys((example.key for example, _ in kept), self.validation, self.seed)

        def samples(chosen: list[tuple[Example, Sample]]) -> Samples:
            examples = [example for example, _ in chosen]
            images, places = [example.image for example in examples], [example.where for example in examples]
            return Samples([sample for _, sample in chosen], images, features, places)

        held_out = [pair for pair in kept if pair[0].key in keys]
        held_out = shuffled_batches(held_out, self.batch_size[task], self.seed)
        return samples([pair for pair in kept if pair[0].key not in keys]), samples(held_out)

    def train_dataloader(self) -> CombinedLoader | TaskCycle:
        """``{task: batch}`` a step. Each process draws its own share; the loaders' positions go into checkpoints."""
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        loaders = {}
        for task in self.tasks:
            loaders[task] = loader = ResumableLoader(
                self.training[task],
                collate,
                self.batch_size[task],
                seed=zlib.crc32(f"{self.seed} {task}".encode()),
                rank=share["rank"],
                world_size=share["num_replicas"],
                num_workers=self.num_workers,
            )
            if loader.left_over:
                rank_zero_only(print)(
                    f"{task}: {loader.left_over} of {len(self.training[task]):,} samples, other ones every epoch, are "
                    f"left over: {loader.world_size} processes take {loader.batch_size} each"
                )
        if self.mode in ("alternate", "ratio"):
            return TaskCycle(loaders, self.ratio if self.mode == "ratio" else dict.fromkeys(loaders, 1))
        return CombinedLoader(loaders, self.mode)

    def val_dataloader(self) -> dict[str, DataLoader]:
        """A plain loader for each task that has held-out samples, to be run one after the other."""
        return {
            task: DataLoader(
                held_out,
                self.batch_size[task],
                collate_fn=collate,
                num_workers=self.num_workers,
                generator=torch.Generator(),  # else the loader draws from the global one
            )
            for task, held_out in self.held_out.items()
            if len(held_out)
        }

    def summary(self) -> dict[str, dict]:
        """For each task what :func:`lav2.data.report.summarize` says of it."""
        return {
            task: report.summarize(self.training[task], self.held_out[task], self.problems[task]) for task in self.tasks
        }


def shuffled_batches(pairs: list[tuple[Example, Sample]], size: int, seed: int) -> list[tuple[Example, Sample]]:
    """The samples in batches of similar length, which come in any order: the first ones say what all would."""
    pairs = sorted(pairs, key=lambda pair: len(pair[1].tokens))
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    *whole, last = batches or [[]]  # the last one may be smaller
    Random(seed).shuffle(whole)
    return [pair for batch in (*whole, last) for pair in batch]
