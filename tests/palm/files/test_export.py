"""The folder that is given away: peft loads its members, and nothing in it names this machine."""

import json
import shutil
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


def portfolio_of(policies: list) -> Portfolio:
    values = [[1.0, 0.1], [0.1, 1.0], [0.7, 0.75], [0.2, 0.2]]
    results = [OracleResult(value, kl=0.5, policy=policy) for value, policy in zip(values, policies, strict=False)]

    def oracle(weights: np.ndarray) -> OracleResult:
        return max(results[:3], key=lambda result: float(np.dot(result.values, weights)))

    names = ("helpful", "brief | *x* <b>")
    return build_portfolio(oracle, 2, 0.05, reward_names=names, warm_start=results[3:], progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Portfolio]:
    """A base, and a portfolio of three adapters on it; a fourth is known and no member."""
    root = tmp_path_factory.mktemp("trained")
    base = make_policy(root / "base")
    adapters = [make_adapter(base, root / f"member-{seed}", seed) for seed in range(4)]
    for adapter in adapters:
        (Path(adapter) / "training_args.bin").write_bytes(b"a pickle")
        (Path(adapter) / "checkpoint-2").mkdir()
        (Path(adapter) / "README.md").write_text(f"base: {base}")
        (Path(adapter) / "tokenizer_config.json").write_text(json.dumps({"name_or_path": base}))
    return Path(base), portfolio_of(adapters)


@pytest.fixture(scope="module")
def out(trained: tuple[Path, Portfolio], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_members(trained[1], tmp_path_factory.mktemp("given") / "out", base_model="org/base")


def test_peft_loads_every_member_of_the_folder(trained, out) -> None:
    base, portfolio = trained
    loaded = Portfolio.load(out)
    assert loaded.policies == ("members/0", "members/1", "members/2")
    assert loaded.calls[0].result.policy == "member-3"  # no member: only its last name is left
    assert np.array_equal(loaded.values, portfolio.values)

    def logits(folder: str | Path) -> torch.Tensor:
        with torch.no_grad():
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
            return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits

    for here, there in zip(portfolio.policies, loaded.policies, strict=True):
        assert torch.equal(logits(out / there), logits(here))
    given = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"}
    assert {file.name for file in (out / "members/0").iterdir()} == given
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_vllm_reads_every_member_of_the_folder(out, monkeypatch) -> None:
    """By the code that `LoRARequest` leads to, which needs no GPU; serving needs one. Skipped without vLLM."""
    lora_model = pytest.importorskip("vllm.lora.lora_model")
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    monkeypatch.setattr(lora_model, "PIN_MEMORY", False)
    for member in (out / "members").iterdir():
        helper = PEFTHelper.from_local_dir(str(member), max_position_embeddings=512)
        helper.validate_legal(LoRAConfig(max_lora_rank=8))
        modules = {name.rpartition(".")[2] for name in helper.target_modules}
        loaded = lora_model.LoRAModel.from_local_checkpoint(
            str(member), modules, peft_helper=helper, lora_model_id=1, device="cpu", dtype=torch.float32
        )
        assert loaded.loras
        assert all(lora.rank == 2 for lora in loaded.loras.values())


def test_no_path_of_this_machine_is_left(trained, out) -> None:
    for file in out.rglob("*"):
        if file.is_file():
            assert str(trained[0].parent).encode() not in file.read_bytes(), file


def test_the_card_escapes_names_and_says_what_is_certified(trained, out) -> None:
    _, portfolio = trained
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"library_name": "peft", "base_model": "org/base", "tags": ["trl-pafo", "palm", "portfolio"]}
    assert r"brief \| \*x\* &lt;b&gt;" in card
    assert "<b>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) == len(portfolio) + 2
    assert all(line.replace(r"\|", "").count("|") == 8 for line in rows)
    assert f"relative gap {portfolio.gap:.4f}" in card
    assert 'LLM("org/base", enable_lora=True, max_loras=3, max_lora_rank=8)' in card


def test_the_code_of_the_card_runs(trained, tmp_path) -> None:
    """All but vLLM, which needs a GPU: choose, and load with peft."""
    base, portfolio = trained
    out = export_members(portfolio, tmp_path / "out", base_model=str(base))
    blocks = [block.split("```")[0] for block in (out / "README.md").read_text().split("```python\n")[1:]]
    code = "\n".join(block for block in blocks if "vllm" not in block).replace("THIS_FOLDER", str(out))
    scope: dict = {}
    exec(code, scope)
    assert isinstance(scope["model"], PeftModel)
    assert scope["path"] == f"{out}/members/{scope['member']}"
    compile(next(block for block in blocks if "vllm" in block), "card", "exec")


def with_bases(portfolio: Portfolio, bases: list[str], folder: Path) -> list[str]:
    """Copies of the members that name other bases."""
    copies = []
    for policy, base in zip(portfolio.policies, bases, strict=True):
        copies.append(str(shutil.copytree(policy, folder / Path(policy).name)))
        config = Path(copies[-1]) / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))
    return copies


def test_the_base_that_all_adapters_name_need_not_be_given(trained, tmp_path) -> None:
    portfolio = portfolio_of(with_bases(trained[1], ["org/own"] * 3, tmp_path))
    out = export_members(portfolio, tmp_path / "out")
    assert json.loads((out / "members/2/adapter_config.json").read_text())["base_model_name_or_path"] == "org/own"
    assert yaml.safe_load((out / "README.md").read_text().split("---\n")[1])["base_model"] == "org/own"
    portfolio = portfolio_of(with_bases(trained[1], ["org/b", "org/a", "org/b"], tmp_path / "several"))
    with pytest.raises(PortfolioError, match=r"name the bases \['org/a', 'org/b'\]; pass `base_model`"):
        export_members(portfolio, tmp_path / "none")


def test_bad_input(trained, tmp_path) -> None:
    base, portfolio = trained
    with pytest.raises(RunFolderError, match="exists already"):
        export_members(portfolio, tmp_path, base_model="org/base")
    for policy in ({"beta": 0}, str(base)):
        with pytest.raises(PortfolioError, match="not an adapter folder"):
            export_members(portfolio_of([policy] * 3), tmp_path / "out")
    with pytest.raises(PortfolioError, match="folder of this machine"):
        export_members(portfolio, tmp_path / "out")
    assert not list(tmp_path.iterdir())
