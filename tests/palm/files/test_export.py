"""The folder that is given away: peft loads its members, and nothing in it names this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_policies import make_adapter, make_policy
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trl_pafo.errors import PortfolioError, RunFolderError
from trl_pafo.palm import OracleResult, Portfolio, build_portfolio, export_members
from trl_pafo.palm.files.export import member_card


def portfolio_of(policies: list, names: tuple[str, str] = ("helpful", "brief | *x* <b>")) -> Portfolio:
    values = [[1.0, 0.1], [0.1, 1.0], [0.7, 0.75]]
    results = [OracleResult(value, kl=0.5, policy=policy) for value, policy in zip(values, policies, strict=True)]

    def oracle(weights: np.ndarray) -> OracleResult:
        return max(results, key=lambda result: float(np.dot(result.values, weights)))

    return build_portfolio(oracle, 2, 0.05, reward_names=names, progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    root = tmp_path_factory.mktemp("trained")
    base = make_policy(root / "base")
    adapters = [make_adapter(base, root / f"member-{seed}", seed) for seed in range(3)]
    for adapter in adapters:
        (Path(adapter) / "training_args.bin").write_bytes(b"a pickle")
        (Path(adapter) / "checkpoint-2").mkdir()
        (Path(adapter) / "README.md").write_text(f"base: {base}")
    return base, adapters


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def test_peft_loads_every_member_of_the_folder(folders, tmp_path) -> None:
    base, adapters = folders
    portfolio = portfolio_of(adapters)
    out = export_members(portfolio, tmp_path / "out", copy_base=True, title="A *title*")
    assert not list(tmp_path.glob(".out*"))
    loaded = Portfolio.load(out)
    assert loaded.policies == tuple(f"members/{place}" for place in range(len(portfolio)))
    assert np.array_equal(loaded.values, portfolio.values)
    for weights in ([0.9, 0.1], [0.5, 0.5], [0.1, 0.9]):
        place = loaded.choose(weights)
        there = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(out / "base_model"), out / loaded.policies[place])
        here = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), portfolio.policies[place])
        assert torch.equal(logits(there), logits(here))
    assert {file.name for file in (out / "members/0").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_vllm_reads_every_member_of_the_folder(folders, tmp_path, monkeypatch) -> None:
    """By the code that `LoRARequest` leads to, which needs no GPU; serving needs one. Skipped without vLLM."""
    lora_model = pytest.importorskip("vllm.lora.lora_model")
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    monkeypatch.setattr(lora_model, "PIN_MEMORY", False)
    _, adapters = folders
    out = export_members(portfolio_of(adapters), tmp_path / "out", base_model="org/base")
    for member in (out / "members").iterdir():
        helper = PEFTHelper.from_local_dir(str(member), max_position_embeddings=512)
        helper.validate_legal(LoRAConfig(max_lora_rank=8))
        modules = {name.rpartition(".")[2] for name in helper.target_modules}
        loaded = lora_model.LoRAModel.from_local_checkpoint(
            str(member), modules, peft_helper=helper, lora_model_id=1, device="cpu", dtype=torch.float32
        )
        assert loaded.loras
        assert all(lora.rank == 2 for lora in loaded.loras.values())


def test_no_path_of_this_machine_is_left(folders, tmp_path) -> None:
    base, adapters = folders
    known = portfolio_of(adapters)
    out = export_members(known, tmp_path / "out", base_model="org/base")
    for file in out.rglob("*"):
        if file.is_file():
            assert str(Path(base).parent).encode() not in file.read_bytes(), file
    config = json.loads((out / "members/0/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["r"] == 2


def test_policies_that_are_not_members_keep_their_last_name(folders, tmp_path) -> None:
    _, adapters = folders
    names = ("a", "b")
    whole = portfolio_of(adapters, names)
    few = build_portfolio(
        lambda weights: None,  # type: ignore[arg-type, return-value]
        2,
        0.05,
        num_members=1,
        max_calls=0,
        reward_names=names,
        warm_start=[(call.weights, call.result) for call in whole.calls],
        progress=False,
    )
    loaded = Portfolio.load(export_members(few, tmp_path / "out", base_model="org/base"))
    assert len(loaded.calls) == len(whole.calls)
    others = [call.result.policy for place, call in enumerate(loaded.calls) if place not in loaded.members]
    assert set(others) <= {"member-0", "member-1", "member-2"}


def test_the_card_escapes_names_and_says_what_is_certified(folders, tmp_path) -> None:
    _, adapters = folders
    portfolio = portfolio_of(adapters)
    card = (export_members(portfolio, tmp_path / "out", base_model="org/base") / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"library_name": "peft", "base_model": "org/base", "tags": ["trl-pafo", "palm", "portfolio"]}
    assert r"brief \| \*x\* &lt;b&gt;" in card
    assert "<b>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| [")]
    assert len(rows) == len(portfolio)
    assert all(line.replace(r"\|", "").count("|") == 7 for line in rows)
    assert f"relative gap {portfolio.gap:.4f}" in card
    assert 'LLM("org/base", enable_lora=True, max_loras=3, max_lora_rank=8)' in card


def test_the_code_of_the_card_runs(folders, tmp_path) -> None:
    """All but vLLM, which needs a GPU: choose, and load with peft."""
    _, adapters = folders
    out = export_members(portfolio_of(adapters), tmp_path / "out", copy_base=True)
    blocks = [block.split("```")[0] for block in (out / "README.md").read_text().split("```python\n")[1:]]
    code = "\n".join(block for block in blocks if "vllm" not in block).replace("THIS_FOLDER", str(out))
    scope: dict = {}
    exec(code, scope)
    assert isinstance(scope["model"], PeftModel)
    assert scope["path"] == f"{out}/members/{scope['member']}"
    compile(next(block for block in blocks if "vllm" in block), "card", "exec")


def test_whole_models_need_no_base(folders, tmp_path) -> None:
    base, _ = folders
    out = export_members(portfolio_of([base] * 3), tmp_path / "out")
    assert "AutoModelForCausalLM.from_pretrained(path)" in (out / "README.md").read_text()
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(out / "members/0")), logits(AutoModelForCausalLM.from_pretrained(base))
    )


def test_a_certificate_on_an_inexact_oracle_says_so(folders) -> None:
    _, adapters = folders
    whole = portfolio_of(adapters)
    known = [(call.weights, call.result) for call in whole.calls]
    inexact = build_portfolio(
        lambda w: None,  # type: ignore[arg-type, return-value]
        2,
        0.2,
        oracle_factor=0.1,
        num_members=3,
        max_calls=0,
        warm_start=known,
        progress=False,
    )
    assert "as within 0.1 of the best for them" in member_card(inexact, "org/base", 8)
    assert "rests on the training" not in member_card(whole, "org/base", 8)


def test_bad_input(folders, tmp_path) -> None:
    _, adapters = folders
    (tmp_path / "there").mkdir()
    with pytest.raises(RunFolderError, match="exists already"):
        export_members(portfolio_of(adapters), tmp_path / "there")
    with pytest.raises(PortfolioError, match=r"no folder of an adapter or a model\. Only trained members"):
        export_members(portfolio_of([{"beta": 0}] * 3), tmp_path / "out")
    with pytest.raises(PortfolioError, match="folder of this machine"):
        export_members(portfolio_of(adapters), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PortfolioError, match="holds no safetensors"):
        export_members(portfolio_of([str(tmp_path / "empty")] * 3), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
