"""A folder of members that peft and vLLM load as adapters, with a card; it names no path of the machine it was made on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from trl_pafo.errors import PortfolioError
from trl_pafo.models.card import CARD_NAME
from trl_pafo.models.card_template import escaped
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.models.upload import files_to_push
from trl_pafo.palm.core import OracleCall
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.storage.files import new_folder, write_text

# Where libraries note down which folder something was loaded from.
_PATH_KEYS = ("_name_or_path", "name_or_path")
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def export_members(portfolio: Portfolio, folder: str | Path, *, base_model: str | None = None) -> Path:
    """Copy each member into `members/<place>/` and write `portfolio.json` and a card, README.md.

    Args:
        portfolio ([`Portfolio`]):
            A portfolio whose policies are folders of adapters, as [`~trl_pafo.palm.GRPOOracle`]'s.
        folder (`str` or `Path`):
            A new folder.
        base_model (`str`, *optional*):
            What the adapters are loaded on, such as a Hub id; by default what they name themselves.

    Returns:
        The folder.

    Raises:
        PortfolioError: If a policy is not an adapter folder, the adapters have several bases, or the base is a folder of this
            machine and `base_model` does not say where others find it.
        HubError: If an adapter holds no safetensors.
        RunFolderError: If the folder exists, or cannot be written.
    """
    sources = [_adapter_folder(policy, place) for place, policy in enumerate(portfolio.policies)]
    configs = [json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8")) for source in sources]
    base = base_model or _common_base(configs)
    with new_folder(Path(folder)) as partial:
        for place, source in enumerate(sources):
            _copy(source, partial / "members" / str(place), base)
        moved = _without_paths(portfolio)
        moved.save(partial)
        write_text(partial / CARD_NAME, member_card(moved, base, max(config.get("r", 0) for config in configs)))
    return Path(folder)


def _adapter_folder(policy: Any, place: int) -> Path:
    path = Path(policy) if isinstance(policy, str | Path) else None
    if path is None or not (path / ADAPTER_CONFIG).is_file():
        raise PortfolioError(
            f"Member {place} is {str(policy)[:80]!r}, which is not an adapter folder. Only trained adapters can be exported; if they were "
            "moved, build the portfolio again with their new paths."
        )
    return path


def _common_base(configs: list[dict[str, Any]]) -> str:
    named = {str(config.get("base_model_name_or_path")) for config in configs}
    if len(named) > 1:
        raise PortfolioError(f"The adapters name the bases {sorted(named)}; pass `base_model`, the one that they share.")
    base = named.pop()
    if Path(base).is_dir() or Path(base).is_absolute():
        raise PortfolioError(
            f"The adapters' base is a folder of this machine ({Path(base).name}). Pass `base_model`, the name under which others find it."
        )
    return base


def _copy(source: Path, target: Path, base: str) -> None:
    target.mkdir(parents=True)
    for file in files_to_push(source):
        if file.name == CARD_NAME:
            continue
        if file.suffix != ".json":
            shutil.copyfile(file, target / file.name)
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key not in _PATH_KEYS}
        if file.name == ADAPTER_CONFIG:
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
        return replace(call, result=replace(call.result, policy=policy))

    return replace(portfolio, calls=tuple(moved(number, call) for number, call in enumerate(portfolio.calls)))


def member_card(portfolio: Portfolio, base: str, rank: int) -> str:
    """The card: what the members are, what is certified, how to choose and to load one. Names are escaped. `rank` is the adapters'
    greatest.
    """
    names = [escaped(name) for name in portfolio.reward_names]
    table = replace(portfolio, reward_names=tuple(names)).table()
    allowed = next((size for size in _VLLM_RANKS if size >= rank), rank)
    return f"""---
{ModelCardData(library_name="peft", base_model=base, tags=["trl-pafo", "palm", "portfolio"]).to_yaml()}
---

# Portfolio

{len(portfolio)} policies. For every weight vector on {len(names)} rewards ({", ".join(names)}) one of them is near the best.

{table}

Member n is `members/n`. "w" are the weights that it was trained for, then its mean rewards and its KL in nats. Asked for: epsilon = {portfolio.epsilon:g}, delta =
{portfolio.delta:g}. Certified:

> {escaped(str(portfolio.certificate))}

The certificate rests on the training: it takes each policy that was trained for some weights as within
{portfolio.upper_bound.factor:.3g} of the best for them (seen: {portfolio.observed_factor:.3g}).

## Choose a member

```python
from trl_pafo.palm import Portfolio

portfolio = Portfolio.load("THIS_FOLDER")
weights = [{", ".join([f"{1 / len(names):.3g}"] * len(names))}]  # not negative, adding up to 1, in the order of the rewards above
member = portfolio.choose(weights)  # no model is called
path = f"THIS_FOLDER/members/{{member}}"
```

## Load it with peft

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})
model = PeftModel.from_pretrained(base, path)
```

## Serve all members with vLLM

```python
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

llm = LLM({json.dumps(base)}, enable_lora=True, max_loras={len(portfolio)}, max_lora_rank={allowed})
adapter = LoRARequest(f"member-{{member}}", member + 1, path)
llm.chat(messages, SamplingParams(max_tokens=256), lora_request=adapter)
```
"""
