"""A service gives the rewards of `trl-pafo score`, whoever asks beside, refuses what it refuses, and answers before it stops."""

import asyncio
import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from helpers.parts import WORDS, break_rewards_of, make_model, remember_inputs
from helpers.rounding import rounding
from helpers.served import Service, flags, serving
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.named_groups import remember_groups
from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models import FairRewardModel, RewardScorer, scoring
from trl_pafo.serving import app as app_module
from trl_pafo.serving.serve import serve

PAST = [
    {"prompt": "what is red", "chosen": "the house", "rejected": "lol"},
    {"prompt": "can i run", "chosen": "ok", "rejected": "no"},
]
ASK = {"prompt": "how do i sing", "response": "kindly sir", "history": PAST}
PAIR = {"prompt": "how do i sing", "chosen": "kindly sir", "rejected": "haha lol", "history": PAST[1:]}
SECRET = "my cat is my secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return remember_inputs(make_model("encoder", tmp_path_factory.mktemp("served")), num_history=1)


@pytest.fixture(scope="module")
def service(folder):
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def model(folder):
    return FairRewardModel.from_pretrained(folder)


def alone(model, row, response="response"):
    return model.score(row["prompt"], [row[response]], history=row.get("history"))[0]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A model that reads the name of a group, and counts two past pairs."""
    folder = remember_inputs(make_model("encoder", tmp_path_factory.mktemp("named")), num_history=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    remember_groups(tokenizer, GroupMixture.unfitted({"a": 0.7, "b": 0.3}).as_json(), tau=0.5)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["folder", "named"])
def test_rows_pairs_and_lists_of_responses_get_the_rewards_of_the_class(kind, request):
    folder = request.getfixturevalue(kind)
    model, responses = FairRewardModel.from_pretrained(folder), ["kindly sir", "haha lol", "ok"]
    several = {"prompt": ASK["prompt"], "responses": responses, "history": PAST}
    expected = [
        {"reward": alone(model, ASK)},
        {"rewards": model.score(**several)},
        {"reward_chosen": alone(model, PAIR, "chosen"), "reward_rejected": alone(model, PAIR, "rejected")},
        {"reward": alone(model, {**ASK, "history": []})},
    ]
    different = [*expected[0].values(), *expected[1]["rewards"][1:], *expected[2].values(), *expected[3].values()]
    assert kind == "named" or len({round(reward, 4) for reward in different}) == 6
    with serving(folder) as running:
        status, answers = running.ask("/score", [ASK, several, PAIR, {**ASK, "history": []}])
        singly = [running.ask("/score", row) for row in (ASK, several)]
        classified = running.ask("/classify", TestClassify.BODY)[1]["data"][0]["probs"]
        assert running.ask("/score", {**ASK, "history": [{"chosen": "ok"}]})[0] == 422
    assert status == 200
    for answer, right in zip([*answers, *(one for _, one in singly)], [*expected, *expected[:2]], strict=True):
        assert answer.keys() == right.keys()
        for found, wanted in zip(answer.values(), right.values(), strict=True):
            assert found == pytest.approx(wanted, abs=1e-4)
    assert classified == [pytest.approx(alone(model, ASK), abs=1e-4)]


class TestScore:
    def test_responses_are_a_list_without_a_response_beside_it(self, service):
        for wrong in ({"responses": "ok"}, {"responses": []}, {"responses": ["ok"]}):
            status, answer = service.ask("/score", {**ASK, **wrong})
            assert (status, answer["detail"][0]["item"]) == (422, 0)
            assert "item 0: `responses` must be a list of responses, without response, chosen" in answer["detail"][0]["error"]
        assert service.ask("/score", {"prompt": "how", "responses": ["ok"] * 1025})[0] == 413

    def test_each_item_that_is_wrong_is_named_and_none_is_scored(self, service):
        before = service.number("trl_pafo_items_total")
        wrong = {
            "item 1 has neither `response` nor `chosen` and `rejected`; it has prompt.": {"prompt": "how"},
            "item 2: expected a JSON object, got int": 3,
            "item 3: a history must be a list of past pairs": {**ASK, "history": 3},
            "item 4: `history` is missing, and the model was trained with histories": {"prompt": "a", "response": "b"},
            "1 of 1 rows are longer than the 256 positions of the model, the first is item 5": {**ASK, "response": "red " * 300},
        }
        status, answer = service.ask("/score", [ASK, *wrong.values()])
        assert status == 422
        assert [error["item"] for error in answer["detail"]] == [1, 2, 3, 4, 5]
        for error, message in zip(answer["detail"], wrong, strict=True):
            assert error["error"].startswith(message)
        assert service.number("trl_pafo_items_total") == before

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"{", "The body is not JSON (Expecting property name"),
            (b"\xff", "The body, line 1: this is not UTF-8 text"),
            (b'{"a": ' + b"[" * 700 + b"]" * 700 + b"}", "The body is not JSON (it is nested too deeply)"),
            (b"[]", "The list holds no items"),
            (b"3", "item 0: expected a JSON object, got int"),
        ],
    )
    def test_a_body_that_holds_no_rows(self, service, body, message):
        status, answer = service.ask("/score", body)
        assert status == 422
        assert answer["detail"][0]["error"].startswith(message)


class TestClassify:
    MESSAGES = [{"role": "user", "content": ASK["prompt"]}, {"role": "assistant", "content": ASK["response"]}]
    BODY = {"messages": MESSAGES, "chat_template_kwargs": {"history": PAST}, "use_activation": False, "model": "any"}

    def test_a_conversation_as_vllm_takes_it(self, service, model):
        status, answer = service.ask("/classify", self.BODY)
        assert status == 200
        (item,) = answer["data"]
        assert item == {"index": 0, "label": "LABEL_0", "probs": item["probs"], "num_classes": 1}
        (ids,) = RewardScorer(model.scorer.folder).tokenize([ASK])
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == len(ids["response"])
        assert (answer["object"], answer["model"]) == ("list", str(model.scorer.folder))

    def test_texts_of_a_model_that_was_trained_on_texts(self, tmp_path):
        trained = remember_inputs(make_model("decoder", tmp_path), inputs="text", num_history=0)
        texts = ["how do i sing kindly sir", "the house lol"]
        with serving(trained) as service:
            status, answer = service.ask("/classify", {"input": texts, "use_activation": False})
            one = service.ask("/classify", {"input": texts[1], "use_activation": False})[1]
        model = FairRewardModel.from_pretrained(trained)
        cut = [("how do i sing", " kindly sir"), ("the house", " lol")]
        expected = [model.score(prompt, [response])[0] for prompt, response in cut]
        assert status == 200
        assert [item["probs"][0] for item in answer["data"]] == pytest.approx(expected, abs=rounding(expected))
        assert one["data"][0]["probs"] == pytest.approx(expected[1:], abs=rounding(expected))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"use_activation": None}, "`use_activation` must be false: rewards are raw"),
            ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens is not known here"),
            ({"messages": None}, "Give either `messages`"),
            ({"messages": "a"}, "item 0: `prompt` is missing"),
            ({"chat_template_kwargs": None}, "item 0: `history` is missing"),
            ({"messages": None, "input": "a"}, "`input` is a text without a history"),
            ({"messages": None, "input": "a", "chat_template_kwargs": None}, "item 0 is a text without a prompt, and the model"),
            ({"messages": None, "input": [[1]], "chat_template_kwargs": None}, "item 0: `input` must be a text"),
        ],
    )
    def test_what_it_refuses(self, service, change, message):
        status, answer = service.ask("/classify", {**self.BODY, **change})
        assert status == 422
        assert answer["detail"][0]["error"].startswith(message)


class TestManyAtOnce:
    """Each answer is that of its request alone, whoever asks at the same time."""

    def ask_all(self, folder, num_requests, num_clients):
        rng = random.Random(0)
        say = lambda most: " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))  # noqa: E731
        requests = []
        for number in range(num_requests):
            user = [{"prompt": say(8), "chosen": say(9), "rejected": say(9)} for _ in range(rng.randint(0, 2))]
            rows = [{"prompt": say(30), "response": say(60), "history": user} for _ in range(rng.choice([1, 1, 2, 3]))]
            if number % 100 == 50:
                rows[-1] = rng.choice([{"prompt": "how"}, {**rows[-1], "history": 3}, {**rows[-1], "response": "red " * 300}])
            requests.append(rows)
        answers = [None] * num_requests

        def client(first):
            connection = service.connect()
            for number in range(first, num_requests, num_clients):
                answers[number] = service.ask("/score", requests[number], connection)

        with serving(folder) as service, ThreadPoolExecutor(num_clients) as pool:
            list(pool.map(client, range(num_clients)))
            num_good = service.number('trl_pafo_requests_total{endpoint="/score",status="200"}')
            assert service.number("trl_pafo_queue") == 0
            assert service.number("trl_pafo_batches_total") < num_good  # they were scored together
        model = FairRewardModel.from_pretrained(folder)
        for number, (rows, (status, answer)) in enumerate(zip(requests, answers, strict=True)):
            assert status == (422 if number % 100 == 50 else 200)
            if status == 422:
                assert answer["detail"][0]["item"] == len(rows) - 1
                continue
            expected = [alone(model, row) for row in rows]
            assert [found["reward"] for found in answer] == pytest.approx(expected, abs=rounding(expected))
        assert num_good == sum(status == 200 for status, _ in answers)

    def test_sixty(self, folder):
        self.ask_all(folder, 60, 6)

    @pytest.mark.slow
    def test_ten_thousand(self, folder):
        self.ask_all(folder, 10_000, 8)


class TestUsers:
    def test_each_gets_the_rewards_of_the_own_past_up_to_now(self, folder, model, tmp_path):
        store = tmp_path / "history.jsonl"
        lines = [json.dumps({"user": user, **past}) + "\n" for user, past in (("ada", PAST[0]), ("eve", PAST[1]))]
        store.write_text(lines[0])
        ask = {"prompt": ASK["prompt"], "response": ASK["response"]}
        expected = [alone(model, {**ask, "history": history}) for history in (PAST[:1], PAST[1:], [])]
        assert len({round(reward, 3) for reward in expected}) == 3
        with serving(folder, users=str(store)) as service:
            rows = [{**ask, "user": user} for user in ("ada", "eve", "bob")]
            assert service.ask("/score", rows[1])[1]["reward"] == pytest.approx(expected[2], abs=rounding(expected))
            with open(store, "a") as file:
                file.write(lines[1])
            found = [row["reward"] for row in service.ask("/score", rows)[1]]
            assert found == pytest.approx(expected, abs=rounding(expected))
            body = {**TestClassify.BODY, "user": "eve", "chat_template_kwargs": None}
            assert service.ask("/classify", body)[1]["data"][0]["probs"] == pytest.approx(expected[1:2], abs=rounding(expected))
            status, answer = service.ask("/score", [rows[0], ask, {**rows[0], "history": []}])
            assert (status, [error["item"] for error in answer["detail"]]) == (422, [1, 2])

    def test_a_store_that_is_broken_shows_nobodys_texts(self, folder, tmp_path, caplog):
        store = tmp_path / "history.jsonl"
        store.write_text(json.dumps({"user": "ada", **PAST[0]}) + "\n")
        with serving(folder, users=str(store)) as service:
            with open(store, "a") as file:
                file.write(json.dumps({"user": "ada", "prompt": 3, "chosen": [SECRET], "rejected": SECRET}) + "\n")
            status, answer = service.ask("/score", {**ASK, "user": "eve"})
        assert status == 503
        assert "`trl-pafo score - --users FILE` names it" in answer["detail"][0]["error"]
        assert SECRET not in json.dumps(answer) + caplog.text


class TestLimits:
    def test_items_tokens_and_bytes(self, folder):
        with serving(folder, max_items=2, max_tokens=20) as service:
            assert service.ask("/score", [ASK] * 2)[0] == 200
            status, answer = service.ask("/score", [ASK] * 3)
            assert (status, answer["detail"][0]["error"].startswith("3 items are more than the 2")) == (413, True)
            status, answer = service.ask("/score", [ASK, {**ASK, "response": "red " * 20}])
            assert (status, answer["detail"][0]["item"]) == (422, 1)
            assert "more than 20 (--max_tokens)" in answer["detail"][0]["error"]
            long = {**ASK, "note": "x" * 2**20}
            assert service.ask("/score", long)[0] == 413
            assert len(json.dumps(long)) < 2**20 + 1000  # one byte a letter
            connection = service.connect()
            connection.request("POST", "/score", iter([b" " * 2**19] * 3), encode_chunked=True)  # says no length
            assert connection.getresponse().status == 413
            assert service.ask("/score", {**ASK, "note": "x" * (2**20 - 1000)})[0] == 200

    def test_a_body_that_does_not_come(self, service, monkeypatch):
        monkeypatch.setattr(app_module, "BODY_SECONDS", 0.1)
        with socket.create_connection(("127.0.0.1", service.port)) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")

    def test_a_full_queue_is_said_at_once(self, folder, monkeypatch):
        busy, go = Event(), Event()
        real = RewardScorer.read_tokens

        def slowly(*args, **options):
            busy.set()
            assert go.wait(60)
            return real(*args, **options)

        with serving(folder, max_queue=1) as service, ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(RewardScorer, "read_tokens", slowly)
            first = pool.submit(service.ask, "/score", ASK)
            assert busy.wait(60)
            connection = service.connect()
            connection.request("POST", "/score", json.dumps(ASK))
            response = connection.getresponse()
            assert (response.status, response.getheader("Retry-After")) == (503, "1")
            assert service.ask("/health")[0] == 200  # while a batch is computed
            assert service.number("trl_pafo_queue") == 1
            go.set()
            assert first.result()[0] == 200
            assert service.ask("/score", ASK)[0] == 200


class TestReadiness:
    def test_ready_is_only_who_has_loaded_the_model(self, folder):
        with serving(folder, load=False) as service:
            assert service.ask("/health")[0] == 503
            assert service.ask("/score", ASK)[0] == 503
            service.worker.start()
            assert service.worker.ready.wait(60)
            assert service.ask("/health") == (200, {"status": "ready", "model": folder})
            assert service.ask("/score", ASK)[0] == 200

    def test_weights_that_cannot_be_loaded_end_it(self, folder, monkeypatch):
        def broken(*args):
            raise ConfigError("The weights are broken.")

        monkeypatch.setattr(scoring, "load_reward_model", broken)
        with pytest.raises(ConfigError, match="The weights are broken"):
            serve(flags(folder))


class TestFailures:
    def test_a_reward_that_is_not_finite_is_no_error_of_others(self, folder, monkeypatch):
        break_rewards_of("whee", folder, monkeypatch)
        bad = {**ASK, "response": "whee"}
        with serving(folder, batch_wait_ms=200.0) as service, ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(service.ask, "/score", rows) for rows in ([ASK, bad], [ASK, PAIR])]
            (status, answer), (other, _) = [answer.result() for answer in answers]
            batches = service.number("trl_pafo_batches_total")
        assert (status, other) == (500, 200)
        assert batches == 1
        assert answer["detail"] == [{"item": 1, "error": answer["detail"][0]["error"]}]
        assert answer["detail"][0]["error"].startswith("1 of 1 rewards are NaN or infinite")

    @pytest.mark.parametrize("place", ["read_tokens", "tokenize"])
    def test_nothing_of_the_texts_is_logged(self, folder, monkeypatch, caplog, capfd, place):
        def fail(self, rows, *args, **options):
            raise RuntimeError(f"no idea what {SECRET} is: {rows}")

        with serving(folder) as service, caplog.at_level(logging.DEBUG):
            monkeypatch.setattr(RewardScorer, place, fail)
            status, answer = service.ask("/score", {**ASK, "prompt": SECRET, "user": SECRET})
            monkeypatch.undo()
            assert service.ask("/score", {**ASK, "prompt": SECRET})[0] == 200
            assert service.ask("/score", {"prompt": SECRET})[0] == 422
        assert status == 500
        assert answer["detail"][0]["error"] == "RuntimeError: the server failed on it, and its log says where."
        assert "RuntimeError in" in caplog.text
        assert "test_service.py" in caplog.text
        said = caplog.text + "".join(capfd.readouterr())
        assert SECRET not in said
        assert str(AutoTokenizer.from_pretrained(folder)(SECRET)["input_ids"][1:-1])[1:-1] not in said

    def test_who_hangs_up_leaves_the_others_alone(self, service):
        for body in (b"{", json.dumps(ASK).encode()):
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(json.dumps(ASK)) + body)
        assert service.ask("/score", ASK)[0] == 200
        deadline = time.monotonic() + 30
        while service.number("trl_pafo_queue"):
            assert time.monotonic() < deadline


class TestPage:
    """What docs/serving.md shows of services, with the port of one that runs."""

    @pytest.fixture
    def blocks(self, service):
        page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8").replace(":8000", f":{service.port}")
        return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    def test_requests_of_curl(self, service, blocks):
        asked = [text for kind, text in blocks if kind == "bash" and text.startswith("curl http")]
        paths, bodies = zip(
            *[re.match(r"curl http://localhost:\d+(\S+) -d '(.*?)'$", text, re.M | re.S).groups() for text in asked], strict=True
        )
        assert paths == ("/score", "/classify")
        (score, found), (classify, one) = [service.ask(path, body.encode()) for path, body in zip(paths, bodies, strict=True)]
        assert (score, classify) == (200, 200)
        assert [set(row) for row in found] == [{"reward"}, {"reward_chosen", "reward_rejected"}]
        assert one["data"][0]["probs"] == pytest.approx([found[0]["reward"]], abs=rounding(found[0]["reward"]))

    def test_python(self, service, model, blocks):
        ask, function, *recipes = [
            text for kind, text in blocks if kind == "python" and re.search("urlopen|aiohttp|body = ", text)
        ]
        names = {"tokenizer": AutoTokenizer.from_pretrained(model.scorer.folder), "history": PAST}
        exec(ask, names)
        (row,) = names["rows"]
        assert names["rewards"] == pytest.approx([alone(model, row)], abs=rounding(names["rewards"]))
        exec(function, names)
        prompts, texts = [row["prompt"], "how do i sing"], [row["response"], "kindly sir"]
        found = asyncio.run(names["served_reward"](prompts, texts, [None, PAST], extra=1))
        expected = [alone(model, {**row, "history": []}), alone(model, ASK)]
        assert found == pytest.approx(expected, abs=rounding(found))
        names["messages"] = TestClassify.MESSAGES
        vllm, tei = recipes
        exec(vllm, names)
        answer = service.ask("/classify", names["body"])[1]
        assert answer["data"][0]["probs"] == pytest.approx(expected[1:], abs=rounding(expected))
        # A tokenizer as encoders have it, which puts its special tokens around each text.
        names["tokenizer"]._tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(token, names["tokenizer"].convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")],
        )
        exec(tei, names)  # it compares what is read
        assert names["body"]["inputs"].endswith("kindly sir")


COMMAND = """
import sys, time
from trl_pafo.cli import main
from trl_pafo.models import RewardScorer
real = RewardScorer.read_tokens
def slowly(*args, **options):
    print("scoring", file=sys.stderr, flush=True)
    time.sleep(1)
    return real(*args, **options)
RewardScorer.read_tokens = slowly
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_what_was_accepted_is_answered_before_it_stops(folder, model, number):
    command = [sys.executable, "-c", COMMAND, "--model_name_or_path", folder, "--port", "0"]
    # Tests that run in the background of a shell ignore Ctrl-C, and so would what they start.
    undo = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=undo) as process,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            line = next(line for line in process.stderr if line.startswith("Serving "))
            running = Service(int(line.rsplit(":", 1)[1]), None, None)
            while not is_ready(running):
                time.sleep(0.05)
            answers = [pool.submit(running.ask, "/score", ASK) for _ in range(2)]
            assert next(line for line in process.stderr if line == "scoring\n")
            process.send_signal(number)
            assert process.wait(60) == 0
            rest = process.stderr.read()
        finally:
            process.kill()
        found = [answer.result() for answer in answers]
    assert [status for status, _ in found] == [200, 200]
    expected = alone(model, ASK)
    assert [answer["reward"] for _, answer in found] == pytest.approx([expected] * 2, abs=rounding(expected))
    assert "Traceback" not in rest
    assert not is_ready(running)


def is_ready(running):
    try:
        return running.ask("/health")[0] == 200
    except ConnectionRefusedError:  # it does not listen yet, or not any more
        return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name_or_path": None}, "Give --model_name_or_path"),
        ({"max_items": 0}, "--max_items must be at least 1, got 0"),
        ({"max_tokens": 0}, "--max_tokens must be at least 1"),
        ({"batch_wait_ms": -1.0}, "--batch_wait_ms must be from 0 to 1000"),
        ({"port": 70000}, "--port must be from 0 to 65535, got 70000"),
        ({"host": "nowhere.invalid"}, "Nothing can listen on nowhere.invalid"),
        ({"users": "missing.jsonl"}, "The past pairs 'missing.jsonl' cannot be read"),
        ({"model_name_or_path": "nowhere/x"}, "No model is found at 'nowhere/x'"),
    ],
)
def test_flags_that_cannot_be_used(folder, change, message):
    with pytest.raises(TrlPafoError, match=message):
        serve(flags(folder, **change))


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(service):
    with pytest.raises(ConfigError, match=f"port {service.port}: .*Choose another --host or --port"):
        serve(flags("nowhere/x", port=service.port))


def test_without_the_extra_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("trl_pafo.serving.serve.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"A service needs fastapi, uvicorn, prometheus_client: pip install trl-pafo\[serve\]"):
        serve(flags(folder))
