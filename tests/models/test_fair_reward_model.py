"""One class for programs that serve users: rewards of `trl-pafo score` to the last bit, and the same refusals."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.parts import make_adapter, make_model, remember_inputs
from transformers import AutoTokenizer

from trl_pafo import FairRewardModel
from trl_pafo.data import HistoryCutter, add_history_template
from trl_pafo.errors import ConfigError, DataError, TrlPafoError
from trl_pafo.evaluation.score_file import score_file

ROOT = Path(__file__).parents[2]
PAST = [
    {"prompt": "what is red", "chosen": "the house", "rejected": "lol"},
    {"prompt": "can i run", "chosen": "ok", "rejected": "no"},
    {"prompt": "is it blue", "chosen": "yes sir", "rejected": "haha"},
]
RESPONSES = ["kindly sir", "haha", "whee lol whee"]


def trained(folder, kind="encoder", inputs="messages", num_history=2, **settings):
    """A model that remembers that it was trained so."""
    make_model(kind, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if inputs == "messages":
        add_history_template(tokenizer)
    HistoryCutter(tokenizer, num_history, **settings).remember(inputs)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(folder):
    return FairRewardModel.from_pretrained(folder, device="cpu")


def scored(folder, rows, tmp_path, batch_size=32):
    """What `trl-pafo score` writes for these rows."""
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    limits = dict.fromkeys(("num_history", "history_max_tokens", "history_fields"))
    flags = {
        "input": str(tmp_path / "in.jsonl"),
        "output": str(out),
        "batch_size": batch_size,
        "bf16": False,
        "users": None,
        **limits,
    }
    score_file(Namespace(model_name_or_path=folder, **flags))
    return [json.loads(line) for line in out.read_text().splitlines()]


def as_chat(text, role):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(("kind", "messages"), [("encoder", True), ("decoder", False), ("adapter", False)])
def test_rewards_are_those_of_score_to_the_last_bit(kind, messages, decoder, tmp_path):
    if kind == "adapter":
        folder = remember_inputs(make_adapter(decoder, tmp_path / "model", seed=1), num_history=2)
    else:
        folder = trained(tmp_path / "model", kind)
    model = FairRewardModel.from_pretrained(folder, device="cpu")
    prompts, histories = ["how do i sing", "when is the sun red", "how do i sing"], [PAST[:1], [], PAST]
    prompts = [as_chat(text, "user") for text in prompts] if messages else prompts
    responses = [as_chat(text, "assistant") for text in RESPONSES] if messages else RESPONSES
    requests = [{"prompt": p, "responses": responses, "history": h} for p, h in zip(prompts, histories, strict=True)]
    rows = [{"prompt": r["prompt"], "response": response, "history": r["history"]} for r in requests for response in responses]
    found = model.score_batch(requests, batch_size=2)
    with pytest.warns(UserWarning, match="3 of 9 rows have no history"):
        expected = [row["reward"] for row in scored(folder, rows, tmp_path, batch_size=2)]
    assert [reward for rewards in found for reward in rewards] == expected
    assert len({round(reward, 4) for reward in expected}) == 9  # each user and each response has its own
    single = model.score(prompts[0], responses, history=PAST[:1])
    assert single == [row["reward"] for row in scored(folder, rows[:3], tmp_path)]
    assert single == pytest.approx(found[0], abs=1e-4)


def test_the_history_is_cut_to_what_the_folder_remembers(folder, model, tmp_path):
    assert model.num_history == 2
    ask = {"prompt": "how do i sing", "responses": RESPONSES}
    assert model.score(**ask, history=PAST) == model.score(**ask, history=PAST[:2])
    assert model.score(**ask, history=PAST[:2]) != pytest.approx(model.score(**ask, history=PAST[:1]), abs=1e-3)
    one = FairRewardModel.from_pretrained(folder, num_history=1)
    assert one.score(**ask, history=PAST) == model.score(**ask, history=PAST[:1])
    without = FairRewardModel.from_pretrained(trained(tmp_path, inputs="text", num_history=0))
    assert without.num_history == 0
    assert len(without.score(**ask)) == 3
    with pytest.raises(DataError, match="response 0 has a history, and the model was trained without"):
        without.score(**ask, history=PAST)


def test_weights_are_in_the_dtype_that_was_asked_for(folder, model):
    ask = {"prompt": "how do i sing", "responses": RESPONSES, "history": PAST}
    exact = model.score(**ask)
    for dtype in ("bfloat16", torch.bfloat16):
        smaller = FairRewardModel.from_pretrained(folder, device="cpu", dtype=dtype)
        assert next(smaller.scorer.model.parameters()).dtype == torch.bfloat16
    rough = smaller.score(**ask)
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.1 * max(map(abs, exact)))
    with pytest.raises(ConfigError, match="`dtype` must be float32, bfloat16 or float16, got 'auto'"):
        FairRewardModel.from_pretrained(folder, dtype="auto")


OWN = [{"prompt": "how do i sing", "response": ""}, {"prompt": ["how"], "response": "ha"}, {"response": "how do i sing ha"}]
WITH = {"prompt": "how do i sing", "response": "haha"}
REFUSED = [
    *({**row, "history": PAST} for row in OWN),
    {**WITH, "response": as_chat("haha", "assistant"), "history": PAST},
    {**WITH, "response": "red " * 300, "history": PAST},
    {**WITH, "history": "liked tea"},
    {**WITH, "history": [{"prompt": "what is red"}]},
    {**WITH, "chat_template_kwargs": 3, "history": PAST},
    {**WITH},
]


@pytest.mark.parametrize("row", REFUSED)
def test_what_score_refuses_is_refused(folder, model, tmp_path, row):
    with pytest.raises(TrlPafoError) as of_score:
        scored(folder, [row], tmp_path)
    request = {**row, "prompt": row.get("prompt"), "responses": [row["response"]]}
    del request["response"]
    with pytest.raises(TrlPafoError) as found:
        model.score(**request)
    if "history" in row:
        assert str(found.value) == str(of_score.value).replace(f"{tmp_path}/in.jsonl, line 1", "response 0")
    else:
        assert "no row has a history, and the model was trained with histories" in str(of_score.value)
        assert "response 0: `history` is missing, and the model was trained with histories: " in str(found.value)
        assert model.score(**request, history=[])  # said, not forgotten
    with pytest.raises(TrlPafoError, match="request 1, response 0"):
        model.score_batch([{"prompt": "how do i sing", "responses": ["ha"], "history": PAST}, request])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"responses": "haha"}, "request 0, response 0: `responses` must be a list of responses, got 'haha'"),
        ({"response": "haha"}, "response is unknown. Give .*, responses"),
        ({"responses": ["haha"], "past": []}, "past is unknown. Give chat_template_kwargs, history, prompt, responses, tools"),
    ],
)
def test_a_request_that_is_none(model, request_, message):
    with pytest.raises(DataError, match=message):
        model.score_batch([{"prompt": "how", "history": PAST, **request_}])


def test_no_requests_and_what_is_no_list_of_them(model):
    with pytest.raises(ConfigError, match="`batch_size` must be a whole number"):
        model.score_batch([], batch_size=0)
    assert model.score_batch([]) == []
    request = {"prompt": "how", "responses": ["haha"], "history": PAST}
    assert model.score_batch(each for each in [request]) == model.score_batch([request])
    for requests in ({"prompt": "how", "responses": ["haha"], "history": []}, ["haha"]):
        with pytest.raises(DataError, match="`requests` must be a list of dicts with `prompt`, `responses`"):
            model.score_batch(requests)


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_snippets_run_as_pasted(tmp_path, monkeypatch, page):
    trained(tmp_path / "fair-reward-model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (snippet,) = [block for block in blocks if 'FairRewardModel.from_pretrained("fair-reward-model")' in block]
    shown: dict = {}
    exec(snippet, shown)
    assert len(shown["rewards"]) == 2
    assert shown["rewards"] == shown["model"].score(shown["prompt"], shown["responses"], history=shown["past"])
