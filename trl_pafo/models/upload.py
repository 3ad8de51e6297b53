"""Saved reward models to the Hub: weights in safetensors, tokenizer, configuration and card, and nothing else of their folder."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from trl_pafo.errors import TrlPafoError
from trl_pafo.models.card import CARD_NAME, PICTURE, with_base, with_repo
from trl_pafo.models.safe_loading import ADAPTER_CONFIG

logger = logging.getLogger(__name__)

_OF_ADAPTERS = (ADAPTER_CONFIG, "adapter_model.safetensors")
_OF_FULL_MODELS = ("config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PUSHED = (
    *_OF_ADAPTERS,
    *_OF_FULL_MODELS,
    CARD_NAME,
    PICTURE,
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
"""Names of the files that are pushed, of the top level of a model's folder."""


class HubError(TrlPafoError):
    """The Hub refused something, or could not be reached."""


@contextmanager
def one_hub_error(what: str, advice: str) -> Iterator[None]:
    """Whatever the Hub or its client raises becomes one [`HubError`]: what failed, why, and what to do."""
    try:
        yield
    except TrlPafoError:
        raise
    except Exception as error:
        raise HubError(f"{what}: {' '.join(str(error).split()).rstrip('.')}. {advice}") from error


def create_repo(name: str, *, token: str | None = None, private: bool | None = None) -> str:
    """Create the model repository unless it exists, which also tells whether name, token and network are right; its full name.

    Without a token it is the one that is logged in. `private` is for a new repository; by default its owner's settings decide.

    Raises:
        HubError: If the Hub refuses, or cannot be reached.
    """
    with one_hub_error(f"The Hub repository {name} cannot be used", "Check hub_model_id and the token (`hf auth login`)."):
        return HfApi(token=token).create_repo(name, private=private, exist_ok=True).repo_id


def files_to_push(folder: str | Path) -> list[Path]:
    """The files of a saved model that belong on the Hub. Beside an adapter, which loading prefers, no full model is pushed.

    Raises:
        HubError: If the folder holds no weights.
    """
    folder = Path(folder)
    unused = _OF_FULL_MODELS if (folder / ADAPTER_CONFIG).is_file() else ()
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    files = [path for path in files if _matches(path.name, PUSHED) and not _matches(path.name, unused)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise HubError(
            f"{folder} holds no weights in safetensors, so there is nothing to push. With FSDP set "
            "fsdp_state_dict_type: FULL_STATE_DICT, with DeepSpeed ZeRO-3 stage3_gather_16bit_weights_on_model_save."
        )
    return files


def remove_adapter(folder: str | Path) -> None:
    """Remove an adapter from a folder that full weights were saved in, if there are some: loading prefers the adapter."""
    folder = Path(folder)
    if any(path.suffix == ".safetensors" and _matches(path.name, _OF_FULL_MODELS) for path in folder.iterdir()):
        for name in _OF_ADAPTERS:
            (folder / name).unlink(missing_ok=True)


def upload_model(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    base_model: str | None = None,
) -> Any:
    """Push a saved model with its tokenizer and its card, the README.md of the folder, in which nothing changes. Weights of another
    kind that were in the repository, an existing one, are deleted.

    The snippet of the card names the repository by its full name. Without a token it is the one that is logged in. `base_model` is
    the Hub id of an adapter's base model, in place of a path of this machine, of which else the last name alone is pushed.

    Raises:
        HubError: If the folder holds no weights, the Hub refuses, or cannot be reached.
    """
    advice = f"The model is saved in {folder}: `trl-pafo push {folder} --hub_model_id {repo_id}` pushes it."
    with one_hub_error(f"The model was not pushed to {repo_id}", advice):
        files = files_to_push(folder)
        api = HfApi(token=token)
        names = {path.name for path in files}
        stale = [
            name for name in api.list_repo_files(repo_id, revision=revision) if _matches(name, _WEIGHTS) and name not in names
        ]
        operations: list[Any] = [
            *(CommitOperationAdd(path.name, _content(path, repo_id, base_model)) for path in files),
            *(CommitOperationDelete(name) for name in stale),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


_WEIGHTS = (*_OF_ADAPTERS, *_OF_FULL_MODELS)


def _content(path: Path, repo_id: str, base_model: str | None) -> str | bytes:
    """The file itself, or what is pushed in its place."""
    if path.name == CARD_NAME:
        card = with_repo(path.read_text(encoding="utf-8"), repo_id)
        return (with_base(card, base_model) if base_model else card).encode()
    if path.name != ADAPTER_CONFIG:
        return str(path)
    config = json.loads(path.read_text(encoding="utf-8"))
    base = str(config.get("base_model_name_or_path") or "")
    if base_model is None and (os.path.isabs(base) or os.path.exists(base)):
        logger.warning(
            f"The adapter's base model is the folder {base} of this machine, so the pushed adapter cannot be loaded by itself. Train "
            "from a model of the Hub, or push again with `trl-pafo push ... --base_model NAMESPACE/NAME`."
        )
        base = Path(base).name
    return json.dumps({**config, "base_model_name_or_path": base_model or base}, indent=2).encode()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)
