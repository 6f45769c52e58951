"""Adapters that travel: ``python -m lav2.share convert|export|push|pull …``; ``--help`` says more."""

from argparse import ArgumentParser, Namespace

from lav2.cli import clear_errors

DTYPES = ("float16", "bfloat16", "float32")


def parser() -> ArgumentParser:
    root = ArgumentParser("python -m lav2.share", description="Adapters in, out and to the Hugging Face Hub.")
    commands = root.add_subparsers(required=True, metavar="convert | export | push | pull")

    def command(task, help: str) -> ArgumentParser:
        made = commands.add_parser(task.__name__, help=help, description=help)
        made.set_defaults(task=task)
        return made

    made = command(convert, "the authors' released adapters (V1, V1's captioner, 7B multimodal, 65B chat) → a folder")
    made.add_argument("file", help="the released .pth file")
    made.add_argument("folder", help="the adapter folder to write")
    made.add_argument("--base", required=True, help="the LLaMA it was trained on")
    made.add_argument("--vision-weights", help="OpenAI's CLIP ViT-L/14, for an adapter that sees")
    made.add_argument("--prompt-length", type=int, default=10, help="of a language adapter; default: 10")
    made.add_argument("--gate-activation", choices=("tanh", "none"), help="default: none for scalar gates, else tanh")

    made = command(export, "an adapter without prompts folded into its base → a plain Hugging Face LLaMA folder")
    made.add_argument("adapter", help="an adapter or run folder, or org/name on the Hub")
    made.add_argument("folder", help="the LLaMA folder to write")
    made.add_argument("--base", help="the base model; default: where it was when the adapter was trained")
    made.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the weights; default: {DTYPES[0]}")
    made.add_argument("--text-only", action="store_true", help="leave the visual path out: the exported model is blind")

    made = command(push, "an adapter folder → the Hub; log in with `hf auth login` first")
    made.add_argument("adapter", help="an adapter or run folder")
    made.add_argument("repo_id", help="org/name; made if it is not there yet")
    made.add_argument("--private", action="store_true", help="make a new repository private")
    made.add_argument("--revision", help="an existing branch; default: the main one")
    made.add_argument("--message", default="Upload adapter", help="of the commit; default: Upload adapter")

    made = command(pull, "an adapter on the Hub → a folder")
    made.add_argument("repo_id", help="org/name")
    made.add_argument("folder", help="the folder to make")
    made.add_argument("--revision", help="a branch, tag or commit; default: the main branch")
    return root


def convert(args: Namespace) -> None:
    from lav2.adapter.released import convert

    convert(args.file, args.folder, args.base, args.vision_weights, args.prompt_length, args.gate_activation)
    print(f"the adapter is in {args.folder}")


def export(args: Namespace) -> None:
    import torch

    from lav2.adapter import AdapterConfig, load_adapter, read_adapter_config
    from lav2.adapter.export import check_foldable, check_new, check_tokenizer, export_llama
    from lav2.adapter.hub import find_adapter
    from lav2.inference import find_base, find_tokenizer
    from lav2.llama import LlamaConfig, load_llama

    check_new(args.folder)
    folder = find_adapter(args.adapter)
    config = read_adapter_config(folder)
    check_foldable(AdapterConfig.from_dict(config["adapter"]), LlamaConfig(**config["base"]["shape"]), args.text_only)
    base = find_base(folder, config, args.base)
    tokenizer = find_tokenizer(config, base)
    check_tokenizer(tokenizer)
    dtype = getattr(torch, args.dtype)
    # float16 could lose what the base's fingerprint is made of
    llama = load_llama(base, torch.float32 if dtype == torch.float16 else dtype)
    export_llama(load_adapter(folder, llama), tokenizer, args.folder, dtype, args.text_only)
    print(f"the folded LLaMA is in {args.folder}")
    if rounded := config.get("quantize"):
        print(
            f"it is made of the plain base, and the adapter was trained on one rounded to {rounded}: scores may differ"
        )


def push(args: Namespace) -> None:
    from lav2.adapter.hub import push_adapter

    print(push_adapter(args.adapter, args.repo_id, args.private, args.revision, args.message))


def pull(args: Namespace) -> None:
    from lav2.adapter.hub import pull_adapter

    print(f"the adapter is in {pull_adapter(args.repo_id, args.folder, args.revision)}")


def main(arguments: list[str] | None = None) -> None:
    """Run one command of the command line, or of ``arguments``; mistakes end the program as in ``train.py``."""
    with clear_errors():
        parsed = parser().parse_args(arguments)
        parsed.task(parsed)


if __name__ == "__main__":
    main()
