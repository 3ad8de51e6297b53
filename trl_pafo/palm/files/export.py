"""A folder of members that peft and vLLM load as adapters, with a card; it names no path of the machine it was made on."""

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.errors import PortfolioError, RunFolderError
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.palm.core import OracleCall
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.storage.files import new_folder
from trl_pafo.storage.run_folder import write_text

BASE_FOLDER = "base_model"
# Weights, configuration and tokenizer; never pickles (training_args.bin), checkpoints or logs.
_KEPT = (
    "*.safetensors",
    "*.safetensors.index.json",
    ADAPTER_CONFIG,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "member.json",
)
# Where libraries note down which folder something was loaded from.
_PATH_KEYS = ("_name_or_path", "name_or_path")


def export_members(
    portfolio: Portfolio, folder: str | Path, *, base_model: str | None = None, copy_base: bool = False, title: str = "Portfolio"
) -> Path:
    """Copy each member into `members/<place>/` and write `portfolio.json` and a card, README.md.

    Args:
        portfolio ([`Portfolio`]):
            A portfolio whose policies are folders of adapters or models, as [`~trl_pafo.palm.oracles.grpo.GRPOOracle`]'s.
        folder (`str` or `Path`):
            A new folder.
        base_model (`str`, *optional*):
            What the adapters are loaded on, such as a Hub id; by default what they name themselves.
        copy_base (`bool`, *optional*, defaults to `False`):
            Copy the adapters' base, a folder on this machine, to `base_model/` beside the members.
        title (`str`, *optional*, defaults to `"Portfolio"`):
            Title of the card.

    Returns:
        The folder.

    Raises:
        PortfolioError: If a policy is no folder with safetensors, the adapters have several bases, or the base is a folder of
            this machine that is neither renamed nor copied.
        RunFolderError: If the folder exists, another export is at work on it, or it cannot be written.
    """
    out = Path(folder)
    with new_folder(out) as aside:
        _export(portfolio, aside, out, base_model, copy_base, title)
    return out


def _export(portfolio: Portfolio, aside: Path, out: Path, base_model: str | None, copy_base: bool, title: str) -> None:
    sources = [_source(policy, place) for place, policy in enumerate(portfolio.policies)]
    base, base_source = _base(sources, base_model, copy_base)
    try:
        for place, source in enumerate(sources):
            _copy(source, aside / "members" / str(place), base)
        if base_source is not None:
            _copy(base_source, aside / BASE_FOLDER, None)
        moved = _without_paths(portfolio)
        moved.save(aside)
        ranks = [_adapter(source).get("r", 0) for source in sources]
        write_text(aside / "README.md", member_card(moved, base, max(ranks), title))
    except OSError as error:
        raise RunFolderError(f"The members cannot be written to {out}: {error}.") from error


def _source(policy: Any, place: int) -> Path:
    path = Path(policy) if isinstance(policy, str | Path) else None
    if path is None or not path.is_dir():
        raise PortfolioError(
            f"Member {place} is {str(policy)[:80]!r}, no folder of an adapter or a model. Only trained members can be exported; if they "
            "were moved, build or load the portfolio with their new paths."
        )
    weights = sorted(file.name for file in path.glob("*.safetensors"))
    if not weights or not ((path / ADAPTER_CONFIG).exists() or (path / "config.json").exists()):
        raise PortfolioError(
            f"Member {place}, {path.name}, holds no safetensors with their config; save it with save_pretrained."
        )
    return path


def _adapter(source: Path) -> dict[str, Any]:
    path = source / ADAPTER_CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _base(sources: list[Path], base_model: str | None, copy_base: bool) -> tuple[str | None, Path | None]:
    """What the adapters should name as their base, and the folder to copy it from."""
    named = {_adapter(source).get("base_model_name_or_path") for source in sources if (source / ADAPTER_CONFIG).exists()}
    if not named:
        return None, None
    if base_model is not None and not copy_base:
        return base_model, None
    if len(named) > 1 or None in named:
        raise PortfolioError(
            f"The adapters name the bases {sorted(map(str, named))}; pass `base_model`, the one that they share."
        )
    own = str(named.pop())
    if copy_base:
        if not Path(own).is_dir():
            raise PortfolioError(
                f"`copy_base` needs the adapters' base in a folder; they name {Path(own).name!r}. Pass `base_model`."
            )
        return base_model or BASE_FOLDER, Path(own)
    if Path(own).is_dir() or Path(own).is_absolute():
        raise PortfolioError(
            f"The adapters' base is a folder of this machine ({Path(own).name}). Pass `base_model`, the name under which others find "
            "it, or `copy_base=True` to put it beside the members."
        )
    return own, None


def _copy(source: Path, target: Path, base: str | None) -> None:
    target.mkdir(parents=True)
    for file in sorted({file for pattern in _KEPT for file in source.glob(pattern)}):
        if file.suffix != ".json":
            shutil.copyfile(file, target / file.name)
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            for key in _PATH_KEYS:
                content.pop(key, None)
            if file.name == ADAPTER_CONFIG and base is not None:
                content["base_model_name_or_path"] = base
        write_text(target / file.name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _without_paths(portfolio: Portfolio) -> Portfolio:
    """The portfolio with members at their places in the folder, and other policies by their last name alone."""
    places = {call: place for place, call in enumerate(portfolio.members)}

    def moved(number: int, call: OracleCall) -> OracleCall:
        policy = call.result.policy
        if number in places:
            policy = f"members/{places[number]}"
        elif isinstance(policy, str | Path):
            policy = Path(policy).name
        return dataclasses.replace(call, result=dataclasses.replace(call.result, policy=policy))

    return dataclasses.replace(portfolio, calls=tuple(moved(number, call) for number, call in enumerate(portfolio.calls)))


def member_card(portfolio: Portfolio, base: str | None, rank: int, title: str = "Portfolio") -> str:
    """The card: what the members are, what is certified, how to choose and to load one. Names are escaped.

    Args:
        portfolio ([`Portfolio`]):
            With policies as they lie in the folder.
        base (`str`, *optional*):
            Base of the adapters; `None` if the members are whole models.
        rank (`int`):
            The greatest rank of the adapters.
        title (`str`, *optional*, defaults to `"Portfolio"`):
            Title.
    """
    import yaml

    front: dict[str, Any] = {
        "library_name": "transformers" if base is None else "peft",
        "tags": ["trl-pafo", "palm", "portfolio"],
    }
    if base is not None and base != BASE_FOLDER:
        front["base_model"] = base
    names = [_escape(name) for name in portfolio.reward_names]
    head = ["member", *(f"weight: {name}" for name in names), *(f"value: {name}" for name in names), "KL (nats)"]
    lines = [head, ["---:"] * len(head)]
    for place, (weights, values, kl) in enumerate(zip(portfolio.weights, portfolio.values, portfolio.kl, strict=True)):
        own = ["-" if np.isnan(weight) else f"{weight:.3f}" for weight in weights]
        lines.append([f"[{place}](members/{place})", *own, *(f"{value:.4f}" for value in values), f"{kl:.3f}"])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    promised = f"epsilon = {portfolio.epsilon:g}, delta = {portfolio.delta:g}"
    even = ", ".join([f"{1 / len(names):.3g}"] * len(names))
    text = f"""---
{yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip()}
---

# {_escape(title)}

{len(portfolio)} policies. For every weight vector on {len(names)} rewards ({", ".join(names)}) one of them is near the best.

{table}

Values are mean rewards, without the KL term; a weight of "-" is not known. Asked for: {promised}. Certified:

> {_escape(str(portfolio.certificate))}

{_factor(portfolio)}
## Choose a member

```python
from trl_pafo.palm import Portfolio

portfolio = Portfolio.load("THIS_FOLDER")
weights = [{even}]  # not negative, adding up to 1, in the order of the rewards above
member = portfolio.choose(weights)  # no model is called
path = f"THIS_FOLDER/members/{{member}}"
```

"""
    return text + (_load_models() if base is None else _load_adapters(base, rank, len(portfolio)))


def _factor(portfolio: Portfolio) -> str:
    if portfolio.upper_bound.factor == 0 and portfolio.observed_factor == 0:
        return ""
    return (
        f"The certificate rests on the training: it takes each policy that was trained for some weights as within "
        f"{portfolio.upper_bound.factor:.3g} of the best for them (seen: {portfolio.observed_factor:.3g}).\n"
    )


def _load_adapters(base: str, rank: int, num_members: int) -> str:
    name = json.dumps(f"THIS_FOLDER/{BASE_FOLDER}" if base == BASE_FOLDER else base)
    # vLLM knows these ranks alone.
    allowed = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
    return f"""## Load it with peft

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({name})
model = PeftModel.from_pretrained(base, path)
```

## Serve all members with vLLM

```python
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

llm = LLM({name}, enable_lora=True, max_loras={num_members}, max_lora_rank={allowed})
adapter = LoRARequest(f"member-{{member}}", member + 1, path)
llm.chat(messages, SamplingParams(max_tokens=256), lora_request=adapter)
```
"""


def _load_models() -> str:
    return """## Load it

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(path)
```
"""


def _escape(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#!~])", r"\\\1", flat)
