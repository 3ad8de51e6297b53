"""Saved reward models to the Hub: which files, from a folder of links that holds nothing else, and errors that name the fix.

What is pushed is chosen file by file. A pattern of what to leave out, as the base trainer has it, pushes whatever else is in the
output folder: margins of teachers, pickles, logs.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.hub.card import CARD_NAME, with_base, with_repo
from trl_pafo.models.safe_loading import ADAPTER_CONFIG

logger = logging.getLogger(__name__)

_OF_ADAPTERS = (ADAPTER_CONFIG, "adapter_model.safetensors")
_OF_FULL_MODELS = ("config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# Files of the top level of a folder; those of tokenizers are the names that transformers and tokenizers write.
PUSHED = (
    *_OF_ADAPTERS,
    *_OF_FULL_MODELS,
    CARD_NAME,
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_STATEFUL = ("checkpoint", "all_checkpoints")


class HubError(TrlPafoError):
    """The Hub refused something, or could not be reached."""


def check_before_training(
    hub_model_id: str | None,
    output_dir: str | Path,
    *,
    strategy: str = "end",
    token: str | None = None,
    asks_hub: bool = True,
) -> None:
    """Raise what would make a push fail, before hours of training are spent.

    Args:
        hub_model_id (`str`, *optional*):
            `name` or `namespace/name`; the name of `output_dir` without it.
        output_dir (`str` or `Path`):
            Folder of the training.
        strategy (`str`, *optional*, defaults to `"end"`):
            `hub_strategy` of the training.
        token (`str`, *optional*):
            Token with permission to write; the one that is logged in without it.
        asks_hub (`bool`, *optional*, defaults to `True`):
            Ask the Hub whose token it is. One of several processes is enough.

    Raises:
        ConfigError: If the strategy would push the optimizer's state, the name cannot be one, or there is no token.
        HubError: If the Hub does not accept the token, or cannot be reached.
    """
    if strategy in _STATEFUL:
        raise ConfigError(
            f"hub_strategy={strategy!r} would push the optimizer's state, which trl-pafo never does. Use hub_strategy='every_save' "
            "(the model at each save) or 'end', and keep checkpoints on a disk of yours to resume from."
        )
    name = hub_model_id or Path(output_dir).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f"hub_model_id={name!r}" if hub_model_id else f"The name of the output folder, {name!r},"
        raise ConfigError(
            f"{what} cannot be the name of a model on the Hub ({_first_line(error)}). Give hub_model_id as NAME or NAMESPACE/NAME, with "
            "letters, digits, '-', '_' and '.' alone."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, or leave out push_to_hub.")
    token = token or get_token()
    if not token:
        raise ConfigError(
            "There is no token for the Hub, so the model could not be pushed. Run `hf auth login`, or set HF_TOKEN or hub_token to a "
            "token that may write."
        )
    if asks_hub:
        with readable_errors("Nothing was trained, since the model could not be pushed", name):
            _check_owner(HfApi(token=token).whoami(), name)


def _check_owner(who: dict[str, Any], name: str) -> None:
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ConfigError(
            f"The token of {who['name']} may only read. Make one that may write (https://huggingface.co/settings/tokens), and set it as "
            "HF_TOKEN or by `hf auth login`."
        )
    owners = [who["name"], *(org["name"] for org in who.get("orgs") or ())]
    # Tokens of other kinds may write where they may not list.
    if role == "write" and "/" in name and name.split("/")[0].lower() not in map(str.lower, owners):
        raise ConfigError(f"{name!r} belongs to somebody else: the token is one of {', '.join(owners)}. Correct hub_model_id.")


def create_repo(name: str, *, token: str | None = None, private: bool | None = None) -> str:
    """Make the repository where there is none; return its full name.

    Raises:
        HubError: If the Hub does not make it.
    """
    with readable_errors("The repository could not be made", name):
        return HfApi(token=token).create_repo(name, private=private, exist_ok=True).repo_id


@contextmanager
def staged(
    folder: str | Path,
    repo_id: str,
    card: str | None = None,
    base_model: str | None = None,
    inside: str | Path | None = None,
    is_adapter: bool | None = None,
) -> Iterator[Path]:
    """A folder with the files of a model that are pushed, and nothing else, as long as the context lasts.

    The files are links where the disk allows it: a checkpoint may be deleted meanwhile, and no disk is filled.

    Args:
        folder (`str` or `Path`):
            A saved model.
        repo_id (`str`):
            Where it goes; the snippet of the card names it.
        card (`str`, *optional*):
            Text of the card. Defaults to that of the folder, if it is there.
        base_model (`str`, *optional*):
            Hub id of an adapter's base, in the place of a path of this machine, of which else the last name alone is kept.
        inside (`str` or `Path`, *optional*):
            Where the folder is made, on the same disk. Defaults to `folder`; a checkpoint would take it along when it goes.
        is_adapter (`bool`, *optional*):
            Which of the two to take where an earlier training left the other one. Defaults to the adapter, which loading prefers.

    Raises:
        HubError: If the folder holds no weights.
    """
    folder = Path(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file() if is_adapter is None else is_adapter
    others = _OF_FULL_MODELS if is_adapter else _OF_ADAPTERS
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_any(path.name, PUSHED)]
    files = [path for path in files if not _is_any(path.name, others)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise HubError(
            f"{folder} holds no weights in safetensors, so there is nothing to push. With FSDP set "
            "fsdp_state_dict_type: FULL_STATE_DICT, with DeepSpeed ZeRO-3 stage3_gather_16bit_weights_on_model_save."
        )
    aside = _folder_aside(Path(inside or folder))
    try:
        for path in files:
            if path.name != CARD_NAME:
                _link(path, aside / path.name)
        if card is None and (folder / CARD_NAME).is_file():
            card = (folder / CARD_NAME).read_text(encoding="utf-8")
        if card is not None:
            card = with_repo(card, repo_id)
            (aside / CARD_NAME).write_text(with_base(card, base_model) if base_model else card, encoding="utf-8")
        _name_base(aside, base_model)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _name_base(folder: Path, base_model: str | None) -> None:
    """The base of an adapter: as given, and no path of this machine."""
    local = local_base_of(folder)
    if (local is None and base_model is None) or not (folder / ADAPTER_CONFIG).exists():
        return
    if base_model is None:
        logger.warning(
            f"The adapter's base model is the folder {local}, which nobody else has, so the pushed adapter cannot be loaded by itself. "
            "Train from a model of the Hub, or push again with `trl-pafo push ... --base_model NAMESPACE/NAME`."
        )
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model or Path(str(local)).name
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _folder_aside(folder: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".push-", dir=folder))
    except OSError:  # a folder that may only be read
        return Path(tempfile.mkdtemp(prefix="trl-pafo-push-"))


def _link(path: Path, to: Path) -> None:
    # What is written anew at each save is copied: writing through a link would change what is being pushed.
    if path.suffix == ".safetensors" and not path.is_symlink():
        try:
            os.link(path, to)
            return
        except OSError:
            pass
    shutil.copyfile(path, to)


def upload(folder: Path, repo_id: str, *, message: str, token: str | None = None, revision: str | None = None) -> Any:
    """Push what stands in a folder of [`staged`]; weights of another shape that were there before go."""
    api = HfApi(token=token)
    weights = (*_OF_ADAPTERS, *_OF_FULL_MODELS)
    old = [name for name in api.list_repo_files(repo_id, revision=revision) if "/" not in name and _is_any(name, weights)]
    stale = [name for name in old if not (folder / name).exists()]
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, delete_patterns=stale or None
    )


def push_model(
    folder: str | Path,
    hub_model_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    base_model: str | None = None,
) -> Any:
    """Push a saved model with its tokenizer and its card, the README.md of the folder.

    Args:
        folder (`str` or `Path`):
            A saved reward model or adapter.
        hub_model_id (`str`):
            `name` or `namespace/name`; made where it does not exist.
        token (`str`, *optional*):
            Token with permission to write; the one that is logged in without it.
        private (`bool`, *optional*):
            Whether a new repository is private; what the owner's settings say without it.
        revision (`str`, *optional*):
            Branch to push to.
        message (`str`, *optional*, defaults to `"Upload model"`):
            Message of the commit.
        base_model (`str`, *optional*):
            As in [`staged`].

    Returns:
        [`~huggingface_hub.CommitInfo`].

    Raises:
        ConfigError: If there is no token or the name cannot be one.
        HubError: If the Hub refuses, or cannot be reached. The folder is as it was.
    """
    check_before_training(hub_model_id, folder, token=token, asks_hub=False)
    repo_id = create_repo(hub_model_id, token=token, private=private)
    with readable_errors("The model was not pushed", repo_id, folder), staged(folder, repo_id, None, base_model) as files:
        return upload(files, repo_id, message=message, token=token, revision=revision)


@contextmanager
def readable_errors(what: str, repo_id: str, folder: str | Path | None = None) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one [`HubError`] that names the fix."""
    try:
        yield
    except TrlPafoError:
        raise
    except Exception as error:  # of the client's many layers, whose classes differ between versions
        text = f"{what} ({repo_id}): {explain(error, repo_id)}"
        if folder is not None:
            text += f" Nothing is lost: it is in {folder}, and `trl-pafo push {folder} --hub_model_id {repo_id}` pushes it."
        raise HubError(text) from error


def explain(error: BaseException, repo_id: str) -> str:
    """What went wrong and what to do about it, in one line."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set. Unset it."
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _explain_status(link.response.status_code, link, repo_id)
    names = " ".join(cls.__name__ for link in chain for cls in type(link).__mro__)
    if re.search(r"Connect|Network|Timeout|Transport|Protocol", names):
        return (
            f"{constants.ENDPOINT} cannot be reached ({_first_line(error)}). Check the network and HF_ENDPOINT, then push again."
        )
    return f"{_first_line(error)}. Correct this, then push again."


def _explain_status(status: int, error: HfHubHTTPError, repo_id: str) -> str:
    said = error.server_message or _first_line(error)
    if status == 401:
        return "the Hub does not accept the token. Run `hf auth login`, or set HF_TOKEN to a valid token that may write."
    if status == 403:
        return f"the token may not write to it. Use a token that may write there, or a hub_model_id of your own ({said})."
    if status == 404:
        return (
            f"there is no such repository or branch, or the token may not see it. Correct hub_model_id or the revision ({said})."
        )
    if status == 400:
        return f"the Hub does not take this: {said}. Correct it, then push again."
    if status == 429:
        return "the Hub asks for patience (too many requests). Push again in some minutes."
    if status >= 500:
        return f"the Hub has trouble of its own (status {status}). Push again later."
    return f"status {status}, {said}. Correct this, then push again."


def history_of(tokenizer: Any) -> dict[str, Any] | None:
    """The settings of the history that a tokenizer remembers; `None` for a model that is shown none."""
    from trl_pafo.data.history import remembered

    settings = remembered(tokenizer)
    return None if settings is None or settings["num_history"] == 0 else settings


def local_base_of(folder: str | Path) -> str | None:
    """The base of a saved adapter where that is a path of this machine, which nobody else has; else `None`."""
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        return None
    base = str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    return base if os.path.isabs(base) or os.path.exists(base) else None


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
