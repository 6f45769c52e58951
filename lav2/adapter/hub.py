"""Adapter folders on the Hugging Face Hub: megabytes, never the base weights."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError
from safetensors.torch import load_file

from lav2.adapter.config import AdapterConfig
from lav2.adapter.folder import CONFIG, WEIGHTS, read_adapter_config
from lav2.errors import UserError
from lav2.llama import LlamaConfig

CARD = "README.md"


def find_adapter(folder: str | Path) -> Path:
    """The adapter folder that ``folder`` names: it, the one in that run folder or, for ``"org/name"``, the Hub's.

    Raises:
        UserError: there is no such folder and, for a name of the Hub, it cannot be had from there.
    """
    path = Path(folder)
    if isinstance(folder, str) and not path.exists() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder):
        try:
            path = pull_adapter(folder)
        except UserError as error:
            raise UserError(f"no folder {folder} here, and from the Hub: {error}") from None
    return path / "adapter" if (path / "adapter").is_dir() else path


def push_adapter(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload adapter",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload an adapter folder, as ``lav2.load(repo_id)`` reads it.

    Of paths on this machine only their last names are told. The folder's ``README.md`` goes along; where neither the
    folder nor the repository has one, a model card is written.

    Args:
        folder: an adapter folder, or a run folder that holds one.
        repo_id: ``org/name``; made if it is not there yet, and then ``private`` if asked.
        revision: an existing branch; default: the main one.
        token: default: that of ``hf auth login`` or of HF_TOKEN.
        endpoint: the Hub's address; default: HF_ENDPOINT or huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        UserError: the folder holds no adapter, or the Hub is out of reach or refuses.
    """
    folder = find_adapter(Path(folder))
    config = portable(read_adapter_config(folder))
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"no adapter weights at {folder / WEIGHTS}")
    files: dict[str, str | bytes] = {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS: str(folder / WEIGHTS),
    }
    api = HfApi(endpoint=endpoint, token=token)
    with clear_hub_errors(repo_id, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        has_card = (folder / CARD).is_file() or api.file_exists(repo_id, CARD, revision=revision)
    if (folder / CARD).is_file():
        files[CARD] = str(folder / CARD)
    elif not has_card:
        parameters = sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values())
        files[CARD] = model_card(repo_id, config, parameters).encode()
    with clear_hub_errors(repo_id, api.endpoint):
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


def pull_adapter(
    repo_id: str,
    folder: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download an adapter and return its folder: ``folder``, which must be new, or one in the Hub's cache.

    What is in the cache already is not downloaded again, and serves when the Hub is out of reach.

    Raises:
        UserError: the Hub is out of reach or refuses, there is no such adapter, or ``folder`` exists.
    """
    if folder is not None and Path(folder).exists():
        raise UserError(f"{folder} exists already: name a new folder for the adapter")
    with clear_hub_errors(repo_id, endpoint or constants.ENDPOINT):
        pulled = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD], token=token, endpoint=endpoint
            )
        )
    if not (pulled / CONFIG).is_file() or not (pulled / WEIGHTS).is_file():
        raise UserError(f"{repo_id} is no adapter: it lacks {CONFIG} or {WEIGHTS}")
    read_adapter_config(pulled)
    return pulled if folder is None else Path(shutil.copytree(pulled, folder))


def portable(value: Any) -> Any:
    """A config's values with every absolute path, which would tell about this machine, cut down to its last name."""
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def model_card(repo_id: str, config: dict[str, Any], parameters: int) -> str:
    """A README for the Hub: what the adapter is, what it needs, and how to load it."""
    adapter = AdapterConfig.from_dict(config["adapter"])
    shape = LlamaConfig(**config["base"]["shape"])
    vision = config.get("vision")
    images = f', vision_weights="/path/to/{vision["name"]}"' if vision else ""
    changed = {key: value for key, value in asdict(adapter).items() if value != asdict(AdapterConfig())[key]}
    facts = {
        "parameters": f"{parameters:,}",
        "base model": f"a LLaMA of {shape.num_layers} layers, hidden size {shape.hidden_size}, vocabulary "
        f"{shape.vocab_size}; fingerprint of its weights {config['base']['fingerprint']}",
        "image encoder": f"open_clip's {vision['name']}, {vision['tokens']}, {vision['channel_order']}"
        if vision
        else "none",
        "prompt template": config.get("template", "not stated"),
        "origin": f"converted from {config['converted_from']}" if "converted_from" in config else "trained with lav2",
        "adapter, where it differs from the paper's V2": f"`{json.dumps(changed)}`" if changed else "nowhere",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
library_name: lav2
tags:
- llama-adapter
- llama-adapter-v2
---

# {repo_id.split("/")[-1]}

An adapter for a frozen LLaMA, in the format of lav2 (LLaMA-Adapter V2, arXiv 2304.15010). The base model's weights are
not in here; the base is checked by its fingerprint when the adapter is loaded.

```python
from lav2 import load

model = load("{repo_id}", base="/path/to/the/base/model"{images})
```

| | |
| --- | --- |
{rows}
"""


@contextlib.contextmanager
def clear_hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    try:
        yield
    except HFValidationError:
        raise UserError(f"{repo_id!r} is no name on the Hub: give org/name") from None
    except RevisionNotFoundError:
        raise UserError(f"{repo_id} at {endpoint} has no such revision") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 404):
            raise UserError(
                f"{repo_id} is not at {endpoint}, or only for those who may see it: check the name, and log in with "
                "`hf auth login` (or set HF_TOKEN)"
            ) from None
        if status == 403:
            raise UserError(
                f"no rights at {endpoint} for {repo_id}: log in with `hf auth login` as one who has them"
            ) from None
        raise UserError(f"{endpoint} refuses {repo_id}: {first_line(error)}") from None
    except Exception as error:  # the client lets through what its HTTP library raises, which changes with its version
        raise UserError(f"cannot reach {repo_id} at {endpoint}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
