"""From a composed config to a trained run folder."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lav2.adapter import AdaptedLlama, parameter_summary, read_adapter_config, trained_groups
from lav2.adapter.start import start_from
from lav2.cli import in_sweep
from lav2.config import (
    DTYPES,
    adapter_config,
    build_data,
    build_optim,
    build_trainer,
    construct,
    has_weights,
    llama_shape,
    problems,
    tokenizer_path,
)
from lav2.data.captions import CAPTION_PROMPT
from lav2.data.report import print_examples
from lav2.errors import UserError
from lav2.llama import Llama, load_llama, load_tokenizer, open_checkpoint
from lav2.llama.checkpoint import Checkpoint
from lav2.llama.kernels import fuse
from lav2.llama.loading import fingerprint, stored_fingerprint
from lav2.run_folder import CONFIG, adapter_folder
from lav2.tasks import TASKS
from lav2.training.callbacks import AdapterFolder, DataProblems, Gates
from lav2.training.checkpoints import Checkpoints, WholeCheckpoints, by_step, newest_checkpoint
from lav2.training.module import JointModule
from lav2.training.plan import planned, print_plan
from lav2.training.recomputation import recompute_blocks
from lav2.training.record import RunRecord, keep_config, recorded
from lav2.training.sharding import Sharding, skeleton
from lav2.training.speed import Speed
from lav2.training.strategies import end_launched, strategy_name
from lav2.training.tracking import Tracking
from lav2.vision import VisionEncoder, feature_width

# What makes a run the run it is: a resumed run must agree with the stored config in these sections.
IDENTITY = ("llama", "adapter", "adapter_from", "vision", "data", "optim", "tasks", "seed", "paths", "trainer")
# … except for what changes nothing but where and how fast it runs; the loaders check that as many samples make a step
FREE = (
    *("data.num_workers", "data.cache_dir", "data.batch_size.caption", "data.batch_size.instruction"),
    *("trainer.log_every_n_steps", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
)


@recorded
def train(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """Train as ``cfg`` says and leave in ``folder`` what a run folder holds (README, "A run folder").

    Without base weights (``llama.path`` is null) only the parameter table is made, with ``data_report`` only the
    report on the data is printed, with ``plan`` only what each GPU will hold.

    Returns:
        The last value of every logged metric.

    Raises:
        UserError: everything that is wrong with the config, together, before any weight is read.
    """
    if found := problems(cfg, resumes=bool(by_step(folder / "checkpoints"))):
        raise UserError(found[0] if len(found) == 1 else f"{len(found)} problems:\n  " + "\n  ".join(found))
    if cfg.data_report:
        report_data(cfg)
        return {}
    if cfg.plan:
        print_plan(*planned(cfg, bare_model(cfg), build_data(cfg), build_optim(cfg)))
        return {}
    checkpoint = resumed_checkpoint(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_space(bare_model(cfg), folder)
    if not has_weights(cfg):
        write_parameters(bare_model(cfg), cfg.tasks, folder)
        keep_config(cfg, folder)
        Console().print(
            "No weights, no training: this was the parameter table alone. "
            "To train, set llama.path, vision.weights and the paths of the data."
        )
        return {}

    seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg)
    adapter = adapter_config(cfg)
    encoder = VisionEncoder(**cfg.vision) if data.has_images and adapter.sees else None
    trainer = build_trainer(
        cfg,
        default_root_dir=folder,
        logger=construct("logger", cfg.logger, folder=folder),
        callbacks=[
            AdapterFolder(folder / "adapter", description(cfg, encoder, folder)),
            Gates(),
            Speed(),
            RunRecord(folder),
            Tracking(OmegaConf.to_container(cfg, resolve=True), folder / "adapter"),
            DataProblems(folder / "data_problems.json"),
            TQDMProgressBar(refresh_rate=cfg.callbacks.progress_every, leave=True),
            Checkpoints(folder / "checkpoints", cfg.callbacks.checkpoint_every),
        ],
        plugins=[WholeCheckpoints()],
    )
    data.prepare(
        load_tokenizer(tokenizer_path(cfg)),
        encoder and encoder.to(trainer.strategy.root_device),
        image_tokens=adapter.visual_length if adapter.fusion == "tokens" else None,
        encoder_trains=adapter.mixture.vision_blocks > 0,
    )

    torch.manual_seed(cfg.seed)  # the adapter's first values depend on the seed alone
    llama, weights = base_model(cfg, trainer.strategy)
    model = AdaptedLlama(llama, adapter, feature_width(cfg.vision.name, cfg.vision.projected), encoder)
    if cfg.adapter_from is not None and checkpoint is None:
        base = fingerprint(llama) if weights is None else stored_fingerprint(weights)
        start_from(cfg.adapter_from, model, base, encoder and encoder.fingerprint)
    if trainer.is_global_zero:
        write_parameters(model, cfg.tasks, folder)
        keep_config(cfg, folder)
    if cfg.activation_checkpointing:
        recompute_blocks(llama)
    fuse(cfg.compile)
    module = JointModule(model, build_optim(cfg), cfg.tasks, cfg.seed, cfg.on_nan, weights, cfg.one_pass)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Exception:
        end_launched(trainer)
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                failed = sys.exc_info()[0] is not None
                logger.experiment.finish(exit_code=int(failed))  # else the sweep's next run would write into this one
    rank_zero_only(print)(f"finished at step {trainer.global_step}; the run is in {folder}")
    return {name: float(value) for name, value in trainer.logged_metrics.items()}


def base_model(cfg: DictConfig, strategy: Strategy) -> tuple[Llama, Checkpoint | None]:
    """The base model; under FSDP2 without weights, and what each process is to read its share of them from."""
    dtype = DTYPES[cfg.llama.dtype]
    if isinstance(strategy, Sharding):
        checkpoint = open_checkpoint(cfg.llama.path)
        return skeleton(checkpoint, dtype), checkpoint
    return load_llama(cfg.llama.path, dtype, cfg.llama.quantize), None


def report_data(cfg: DictConfig) -> None:
    """Print what the data hold and samples as the model sees them; reads the tokenizer and the data, and no weights."""
    data, adapter = build_data(cfg), adapter_config(cfg)
    image_tokens = adapter.visual_length if adapter.fusion == "tokens" else None
    data.prepare(load_tokenizer(tokenizer_path(cfg)), image_tokens=image_tokens, sees=adapter.sees)
    data.setup()
    print_examples(data.training, data.tokenizer, data.template)


def bare_model(cfg: DictConfig) -> AdaptedLlama:
    """The adapted model on the meta device: shapes without weights."""
    with torch.device("meta"):
        llama = Llama(llama_shape(cfg)).to(DTYPES[cfg.llama.dtype])
        return AdaptedLlama(llama, adapter_config(cfg), feature_width(cfg.vision.name, cfg.vision.projected))


def description(cfg: DictConfig, encoder: VisionEncoder | None, folder: Path) -> dict:
    """What the adapter folder says about what surrounds the adapter.

    A phase without images keeps what the adapter it started from says of them: it can see as it could before.
    """
    if encoder is None and cfg.adapter_from is not None and adapter_config(cfg).sees:
        start = Path(cfg.adapter_from)
        before = read_adapter_config(adapter_folder(start if start.is_dir() else folder))  # a run that goes on
    else:
        before = {}
    vision = OmegaConf.to_container(cfg.vision, resolve=True) if encoder else None
    prompts = [source.get("prompt", CAPTION_PROMPT) for source in build_data(cfg).captions]
    return {
        "base_path": str(Path(cfg.llama.path).resolve()),
        "quantize": cfg.llama.quantize,
        "tokenizer": str(tokenizer_path(cfg).resolve()),
        "vision": {**vision, "weights": str(Path(vision["weights"]).resolve())} if vision else before.get("vision"),
        "vision_fingerprint": encoder.fingerprint if encoder else before.get("vision_fingerprint"),
        "template": cfg.data.template,
        "caption_prompts": before.get("caption_prompts") or prompts,
    }


def resumed_checkpoint(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from: the newest good one of the run in ``folder``, or ``None`` for a new run.

    With ``resume=auto``, and for a job of a sweep (which a cluster may have put back into its queue), the run in
    ``folder`` goes on if it has a checkpoint, and starts anew otherwise.

    Raises:
        UserError: there is no run to resume or no good checkpoint of it; ``folder`` holds a run that nobody asked to
            resume; or ``cfg`` is not the config of that run, and then names what differs.
    """
    there, checkpoint = (folder / CONFIG).is_file(), newest_checkpoint(folder / "checkpoints")
    if cfg.resume in (None, "auto"):
        if not there or checkpoint is None:
            return None
        if cfg.resume is None and not in_sweep():
            raise UserError(f"{folder} holds a run already: resume=auto goes on with it; or set another hydra.run.dir")
    elif not there:
        raise UserError(f"resume={cfg.resume}: no run folder there (config.yaml is missing)")
    here = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    differences = [
        f"{name} is {value!r} here and {then!r} there"
        for name, value, then in compare(here, OmegaConf.load(folder / CONFIG))
        if name.split(".")[0] in IDENTITY and name not in FREE
    ]
    if differences:
        raise UserError(
            f"{folder} holds another run: {'; '.join(differences[:3])}; give the config it was started with"
        )
    if checkpoint is None:
        raise UserError(f"resume={cfg.resume}: no checkpoint there yet; start the run anew")
    if checkpoint.is_dir() != (strategy_name(cfg.strategy) == "deepspeed"):
        raise UserError(
            f"{folder}: DeepSpeed alone reads and writes its own checkpoints; give the strategy the run was "
            "started with"
        )
    return checkpoint


def compare(here: DictConfig, there: DictConfig) -> list[tuple[str, object, object]]:
    """(name, value here, value there) of every leaf in which two configs differ."""

    def leaves(node, prefix=""):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, node

    one, two = (dict(leaves(OmegaConf.to_container(config))) for config in (here, there))
    return [
        (name, one.get(name), two.get(name))
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]


def check_space(model: AdaptedLlama, folder: Path) -> None:
    """Refuse to start where the run's files would not fit.

    A checkpoint holds the adapter and two moments of each parameter; two are kept and a third is written before the
    oldest is removed, and the adapter folder holds the adapter once more, twice while it is written.
    """
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in model.adapter.parameters())
    needed, free = 11 * adapter + 2**20, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no space for the run: {folder} has {free / 1e6:,.0f} MB free and its checkpoints need "
            f"{needed / 1e6:,.0f} MB; free some, or set hydra.run.dir to a folder on another disk"
        )


@rank_zero_only
def write_parameters(model: AdaptedLlama, tasks: Sequence[str], folder: Path) -> None:
    """Print the table of ownership and write it to ``parameters.json``; what trains is what ``tasks`` move."""
    summary = parameter_summary(model, trained_groups(model, tasks, model.config.ownership))
    (folder / "parameters.json").write_text(json.dumps(summary, indent=2) + "\n")
    table = Table("owner", "part", "parameters", "bytes", title="who owns which parameters (sec 4.2)")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in summary["parts"]:
        table.add_row(row["owner"], row["part"], f"{row['count']:,}", f"{row['bytes']:,}")
    table.add_section()
    for who in TASKS:
        table.add_row(who, "together", f"{summary['groups'][who]['count']:,}", f"{summary['groups'][who]['bytes']:,}")
    table.add_row("trainable", f"{summary['percent_of_base']:.3f} % of the base", f"{summary['trainable']:,}", "")
    Console().print(table)
