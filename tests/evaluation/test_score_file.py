"""Files in, rewards out: every bad line is one clear error, every reward the one that the model gives."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress

import pytest
from helpers.parts import WORDS, make_model, remember_inputs
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.messages import as_messages
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError, RunFolderError, TeacherError
from trl_pafo.evaluation import score_file as score_file_module
from trl_pafo.evaluation.score_file import score_file
from trl_pafo.models.batches import score_sequences
from trl_pafo.models.loading import load_reward_model
from trl_pafo.models.scoring import RewardScorer

MESSAGE = {"role": "assistant", "content": "kindly"}
PAST = [
    {"prompt": "what is red", "chosen": "the house", "rejected": "lol"},
    {"prompt": "can i run", "chosen": "ok", "rejected": "no"},
]
ROWS = [
    {"prompt": "how do i sing", "response": "kindly sir", "id": 7},
    {"prompt": "how do i sing", "chosen": "kindly sir", "rejected": "haha", "history": PAST, "note": "ä 水"},
    {"prompt": [{"role": "user", "content": "how do i sing"}], "chosen": [MESSAGE], "rejected": [{**MESSAGE, "content": "lol"}]},
    {"prompt": "what is it", "response": "whee", "history": PAST[:1]},
]


@pytest.fixture
def read(encoder, tmp_path, monkeypatch):
    """Score a file of these lines; weights are not loaded for one with which something is wrong."""
    monkeypatch.setattr("trl_pafo.models.scoring.load_reward_model", None)

    def score(*lines):
        (tmp_path / "f").write_text("\n".join(lines), encoding="utf-8", newline="")
        score_file(flags(encoder, tmp_path / "f"))

    return score


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"other": ' + "[" * 600 + "]" * 600 + "}", "line 2: not JSON .*nested too deeply"),
        ('{"response": "a", "prompt": "b", "reward": 1}', "line 2 has `reward` already, which would be replaced. Rename"),
        ('{"prompt": "a", "chosen": "b"}', "line 2 has neither `response` nor `chosen` and `rejected`; it has prompt, chosen"),
        ('{"response": ["a"]}', "line 2: `response` must be a text that is not empty, or messages with `role` and `content`"),
        ('{"response": [{"role": "user"}]}', "line 2: `response` must be a text"),
        ('{"response": "a", "prompt": null}', "line 2: `prompt` must be a text"),
        ('{"prompt": "a", "chosen": "a", "rejected": []}', r"line 2: `rejected` must be .*got \[\]"),
        (
            '{"question": "a", "chosen": "b", "rejected": "c"}',
            "line 2: `prompt` is missing, and is not the start of `chosen` and `rejected`",
        ),
        ('{"prompt": "a", "response": [{"role": "assistant", "content": "b"}]}', "line 2: `prompt` text, `response` messages"),
        (
            json.dumps({side: json.dumps([MESSAGE]) for side in ("prompt", "response")}),
            "line 2: .* messages that are written as text",
        ),
    ],
)
def test_a_bad_line_is_named(read, line, match):
    with pytest.raises(DataError, match=match):
        read(json.dumps(ROWS[0]), line)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Human: hi Assistant: ho", "rejected": "Human: hi Assistant: no"},
        {"response": [{"role": "user", "content": "hi"}, MESSAGE]},
        {"prompt": "how does a chat look as JSON", "response": json.dumps([MESSAGE])},
    ],
)
def test_responses_that_begin_with_their_prompt_need_no_other(read, monkeypatch, row):
    monkeypatch.undo()
    read(json.dumps(row))


def test_no_rows(read):
    with pytest.raises(DataError, match="f holds no rows"):
        read("", " \n")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def flags(model, source, **changes):
    options = {"output": None, "users": None, "batch_size": 2, "bf16": False, "num_history": None, "history_max_tokens": None}
    return Namespace(model_name_or_path=str(model), input=str(source), **{**options, "history_fields": None, **changes})


def expected_rows(folder, **limits):
    """The rows with their rewards, one at a time."""
    tokenizer, model = add_history_template(AutoTokenizer.from_pretrained(folder)), load_reward_model(folder)
    cutter = HistoryCutter(tokenizer, **limits)
    scored = []
    for row in ROWS:  # some have a history, so all are messages
        rewards = {}
        for side, name in {"response": "reward", "chosen": "reward_chosen", "rejected": "reward_rejected"}.items():
            if side in row:
                messages = [*as_messages(row["prompt"], "user"), *as_messages(row[side], "assistant")]
                ids = tokenizer.apply_chat_template(messages, history=cutter(row.get("history")))["input_ids"]
                rewards[name] = float(score_sequences(model, [ids], tokenizer.pad_token_id)[0])
        scored.append({**row, **rewards})
    return scored


def assert_same(lines, expected):
    found = [json.loads(line) for line in lines.splitlines()]
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert list(row) == list(wanted)
        for name, value in wanted.items():
            assert row[name] == (pytest.approx(value, abs=rounding(value)) if name.startswith("reward") else value)


def test_without_what_a_service_needs_rewards_are_the_same(encoder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROWS[0]))
    hidden = ["fastapi", "starlette", "uvicorn", "prometheus_client"]
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    code = f"{hide}; from trl_pafo.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "score", "--model_name_or_path", encoder, "--input", str(rows)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    score_file(flags(encoder, rows))
    assert found == capsys.readouterr().out


class TestScoreFile:
    @pytest.fixture(scope="class", params=["encoder", "decoder"])
    @classmethod
    def model(cls, request, tmp_path_factory):
        return make_model(request.param, tmp_path_factory.mktemp("lively"))

    def test_the_rewards_are_those_of_the_model_whatever_part_a_row_is_in(self, model, source, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(score_file_module, "BATCHES_AT_ONCE", 1)
        out = tmp_path / "scored.jsonl"
        score_file(flags(model, source, output=str(out)))
        assert_same(out.read_text(encoding="utf-8"), expected_rows(model))
        assert "ä 水" in out.read_text(encoding="utf-8")
        assert f"4 rows scored: {out}" in capsys.readouterr().out

    def test_histories_change_rewards_and_are_cut_as_the_flags_say(self, model, source, capsys):
        score_file(flags(model, source, num_history=1, history_fields=["chosen"]))
        cut = capsys.readouterr().out
        assert_same(cut, expected_rows(model, num_history=1, fields=["chosen"]))
        whole = expected_rows(model)[1]["reward_chosen"]
        assert abs(json.loads(cut.splitlines()[1])["reward_chosen"] - whole) > 1e-3

    def test_an_output_is_never_overwritten(self, encoder, source, tmp_path):
        out = tmp_path / "scored.jsonl"
        out.write_text("precious")
        with pytest.raises(RunFolderError, match=r"exists already. Choose another --output; nothing is overwritten"):
            score_file(flags(encoder, source, output=str(out)))
        assert out.read_text() == "precious"

    def test_a_file_that_is_none_is_found_before_the_model_is_looked_for(self, source):
        source.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=r"rows.jsonl, line 1: this is not UTF-8 text"):
            score_file(flags("no/such-model", source))

    def test_a_file_of_another_kind_or_none(self, encoder, source):
        with pytest.raises(ConfigError, match=r"--output out\.jsonl\.gz: plain JSON Lines are written"):
            score_file(flags(encoder, source, output="out.jsonl.gz"))
        with pytest.raises(ConfigError, match=r"rows\.parquet: rows are read from JSON Lines"):
            score_file(flags(encoder, "rows.parquet"))
        with pytest.raises(DataError, match=r"missing\.jsonl.* cannot be read"):
            score_file(flags(encoder, "missing.jsonl"))

    def test_both_model_and_input_are_needed(self, encoder, source):
        for missing in ("model_name_or_path", "input"):
            args = flags(encoder, source)
            setattr(args, missing, None)
            with pytest.raises(ConfigError, match="Give --model_name_or_path and --input"):
                score_file(args)

    def test_a_model_that_is_not_there_is_told_before_the_rows_are_read(self, source, monkeypatch):
        monkeypatch.setattr(score_file_module, "read_records", None)
        with pytest.raises(TeacherError, match="No model is found at 'no/such-model'"):
            score_file(flags("no/such-model", source))


class TestManyRows:
    """Parts of two rows, as if they were thousands."""

    @pytest.fixture
    def model(self, encoder, tmp_path):
        return remember_inputs(shutil.copytree(encoder, tmp_path / "model"), num_history=1)

    @pytest.fixture
    def rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(score_file_module, "BATCHES_AT_ONCE", 1)
        rows = [{"prompt": f"how do i {word}", "response": "kindly sir", "history": PAST} for word in WORDS[20:27]]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def interrupt(self, monkeypatch, args, after=2):
        """The number of parts that were scored when it was interrupted."""
        real, parts = RewardScorer.score, []

        def score(self, rows, **how):
            if len(parts) == after:
                raise KeyboardInterrupt
            parts.append(rows)
            return real(self, rows, **how)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(RewardScorer, "score", score)
            score_file(args)
        return parts

    def test_an_interrupted_file_is_continued_with_the_same_result(self, model, rows, tmp_path, monkeypatch, capsys):
        score_file(flags(model, rows, output=str(tmp_path / "at once")))
        args = flags(model, rows, output=str(tmp_path / "out"))
        assert [len(part) for part in self.interrupt(monkeypatch, args)] == [2, 2]
        assert not (tmp_path / "out").exists()
        with open(tmp_path / "out.partial/lines", "a") as file:
            file.write('{"prompt": "how do')
        assert [len(part) for part in self.interrupt(monkeypatch, args, 9)] == [2, 1]
        assert "Going on after 4 of 7 rows" in capsys.readouterr().err
        assert (tmp_path / "out").read_bytes() == (tmp_path / "at once").read_bytes()
        assert not (tmp_path / "out.partial").exists()

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"bf16": True}, "bf16"), ({"input": "a"}, "input"), ({}, "model")],
    )
    def test_other_options_or_files_are_not_mixed_with_what_was_begun(self, model, rows, tmp_path, monkeypatch, change, named):
        args = flags(model, rows, output=str(tmp_path / "out"))
        self.interrupt(monkeypatch, args)
        other = make_model("encoder", tmp_path / "other", seed=3) if named == "model" else model
        shutil.copy(model / "tokenizer_config.json", other) if named == "model" else None
        if named == "input":
            rows.write_text(rows.read_text().replace("kindly", "please"))
            change = {}
        with pytest.raises(RunFolderError, match=rf"out.partial holds the beginning of another out, with other {named}\."):
            score_file(flags(other, rows, output=str(tmp_path / "out"), **change))

    @pytest.mark.parametrize("change", ["appended", "cut off"])
    def test_a_file_that_changes_while_it_is_scored(self, model, rows, tmp_path, monkeypatch, change):
        before, real = rows.read_bytes(), RewardScorer.score

        def score(self, *given, **how):
            rows.write_bytes(before + b"\n" + before if change == "appended" else b"")
            return real(self, *given, **how)

        monkeypatch.setattr(RewardScorer, "score", score)
        # It is the only part, or the first.
        monkeypatch.setattr(score_file_module, "BATCHES_AT_ONCE", 4 if change == "cut off" else 1)
        with pytest.raises(DataError, match=r"rows.jsonl was changed while it was read.*start again"):
            score_file(flags(model, rows, output=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()

    def test_a_store_that_grows_while_it_is_read_is_another_one(self, model, rows, tmp_path, monkeypatch):
        """What was scored before the interruption would not know the new line, the rest would."""
        store = tmp_path / "history.jsonl"
        store.write_text(json.dumps({"user": "ada", **PAST[1]}) + "\n")
        given = [json.loads(line) | {"user": "ada"} for line in rows.read_text().splitlines()]
        rows.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "history"}) for row in given))
        args = flags(model, rows, output=str(tmp_path / "out"), users=str(store))
        real = score_file_module.scorer_of

        def scorer_of(args):
            with open(store, "a") as file:
                file.write(json.dumps({"user": "ada", **PAST[0]}) + "\n")
            return real(args)

        with monkeypatch.context() as patch:
            patch.setattr(score_file_module, "scorer_of", scorer_of)
            self.interrupt(monkeypatch, args)
        with pytest.raises(RunFolderError, match=r"with other users\."):
            score_file(args)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
    def test_a_pipe_is_refused(self, model, tmp_path):
        """It can be read once: all would be checked, and nothing scored."""
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match=r"is a pipe, and rows are read several times.*Save them as a file, or give -"):
            score_file(flags(model, tmp_path / "pipe"))

    def test_a_row_too_long_in_a_late_part_is_found_before_weights_are_loaded(self, model, rows, tmp_path, monkeypatch):
        monkeypatch.setattr("trl_pafo.models.scoring.load_reward_model", None)
        with open(rows, "a") as file:
            file.write("\n\n" + json.dumps({"prompt": "what", "response": "red " * 300, "history": PAST}))
        with pytest.raises(
            DataError, match=r"1 of 8 rows are longer than the 256 positions of the model, the first is .*, line 9"
        ):
            score_file(flags(model, rows, output=str(tmp_path / "out")))
        assert not (tmp_path / "out.partial").exists()

    def test_histories_of_users(self, model, rows, tmp_path, capsys):
        """Those that each row would bring itself."""
        store = tmp_path / "history.jsonl"
        past = {"ada": PAST[1], "bob": PAST[0]}
        store.write_text("".join(json.dumps({"user": user, **pair}) + "\n" for user, pair in past.items()))
        named = [
            {**json.loads(line), "user": "ada bob eve".split()[n % 3]} for n, line in enumerate(rows.read_text().splitlines())
        ]
        own = [{**row, "history": [past[row["user"]]] if row["user"] in past else []} for row in named]
        found = []
        for given, users, warning in (
            (own, None, "2 of 7 rows have no history"),
            (named, str(store), "2 of 7 rows are of users without past pairs in .*history.jsonl .the first: .*, line 3"),
        ):
            rows.write_text("\n".join(json.dumps(row if users is None else {**row, "history": None}) for row in given))
            with pytest.warns(UserWarning, match=warning):
                score_file(flags(model, rows, users=users))
            found.append([json.loads(line)["reward"] for line in capsys.readouterr().out.splitlines()])
        assert found[0] == found[1]
        assert len(set(found[0])) == 7

    def test_a_store_without_effect_is_refused(self, model, rows, encoder, tmp_path):
        (tmp_path / "history.jsonl").write_text("")
        store = {"users": str(tmp_path / "history.jsonl")}
        with pytest.raises(ConfigError, match="--users gives histories, and --num_history 0 shows none"):
            score_file(flags(model, rows, num_history=0, **store))
        plain = remember_inputs(model, num_history=0)
        with pytest.raises(ConfigError, match=r"the model was trained without\. Leave it out"):
            score_file(flags(plain, rows, **store))
