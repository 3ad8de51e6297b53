"""One class for programs that serve users: rewards of `trl-pafo score` to the last bit, and the same refusals."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.parts import make_model
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def folder(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"), request.param)


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


@pytest.mark.parametrize("messages", [False, True])
def test_rewards_are_those_of_score_to_the_last_bit(folder, tmp_path, messages):
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


def test_the_history_is_cut_to_what_the_folder_remembers(folder):
    model = FairRewardModel.from_pretrained(folder)
    assert model.num_history == 2
    ask = {"prompt": "how do i sing", "responses": RESPONSES}
    assert model.score(**ask, history=PAST) == model.score(**ask, history=PAST[:2])
    assert model.score(**ask, history=PAST[:2]) != pytest.approx(model.score(**ask, history=PAST[:1]), abs=1e-3)
    one = FairRewardModel.from_pretrained(folder, num_history=1)
    assert one.score(**ask, history=PAST) == model.score(**ask, history=PAST[:1])


def test_an_adapter(decoder, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(decoder)
    torch.manual_seed(1)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "lora")
    tokenizer = add_history_template(AutoTokenizer.from_pretrained(decoder))
    HistoryCutter(tokenizer, 2).remember()
    tokenizer.save_pretrained(tmp_path / "lora")
    found = FairRewardModel.from_pretrained(tmp_path / "lora").score("how do i sing", RESPONSES, history=PAST)
    rows = [{"prompt": "how do i sing", "response": response, "history": PAST} for response in RESPONSES]
    assert found == [row["reward"] for row in scored(str(tmp_path / "lora"), rows, tmp_path)]
    assert found != pytest.approx(
        FairRewardModel.from_pretrained(decoder).score("how do i sing", RESPONSES, history=PAST), abs=1e-3
    )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_weights_stand_where_and_in_the_dtype_that_was_asked_for(folder, dtype):
    model = FairRewardModel.from_pretrained(folder, device="cpu", dtype=dtype)
    weight = next(model.scorer.model.parameters())
    assert (weight.dtype, weight.device.type) == (torch.bfloat16, "cpu")
    ask = {"prompt": "how do i sing", "responses": RESPONSES, "history": PAST}
    exact, rough = FairRewardModel.from_pretrained(folder).score(**ask), model.score(**ask)
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
def test_what_score_refuses_is_refused(folder, tmp_path, row):
    with pytest.raises(TrlPafoError) as of_score:
        scored(folder, [row], tmp_path)
    request = {**row, "prompt": row.get("prompt"), "responses": [row["response"]]}
    del request["response"]
    model = FairRewardModel.from_pretrained(folder)
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


def test_a_model_without_histories_takes_none(tmp_path):
    model = FairRewardModel.from_pretrained(trained(tmp_path, inputs="text", num_history=0))
    assert model.num_history == 0
    assert len(model.score("how do i sing", RESPONSES)) == 3
    with pytest.raises(DataError, match="response 0 has a history, and the model was trained without"):
        model.score("how do i sing", RESPONSES, history=PAST)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"responses": "haha"}, "request 0, response 0: `responses` must be a list of responses, got 'haha'"),
        ({}, "`responses` must be a list of responses, got None"),
        ({"response": "haha"}, "response is unknown. Give .*, responses"),
        ({"responses": ["haha"], "past": []}, "past is unknown. Give chat_template_kwargs, history, prompt, responses, tools"),
    ],
)
def test_a_request_that_is_none(folder, request_, message):
    with pytest.raises(DataError, match=message):
        FairRewardModel.from_pretrained(folder).score_batch([{"prompt": "how", "history": PAST, **request_}])
    with pytest.raises(ConfigError, match="`batch_size` must be a whole number"):
        FairRewardModel.from_pretrained(folder).score_batch([], batch_size=0)
    assert FairRewardModel.from_pretrained(folder).score_batch([]) == []
    for requests in ({"prompt": "how", "responses": ["haha"], "history": []}, ["haha"]):
        with pytest.raises(DataError, match="`requests` must be a list of dicts with `prompt`, `responses`"):
            FairRewardModel.from_pretrained(folder).score_batch(requests)


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
