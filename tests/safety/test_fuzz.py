"""Whatever the input of `score` and `prepare`, it is an answer or one line that says what is wrong: never a traceback."""

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.parts import make_model, make_pairs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trl_pafo.cli import main
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.errors import TrlPafoError

# Whatever JSON holds, with what is easily forgotten: numbers beyond 64 bits, NaN, half a surrogate pair, NUL, line separators.
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "a\x00b", "\u2028", "\ufeff", " ", "", "../../x", "{{ 7 * 7 }}", "x " * 400]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -(2**63) - 1, float("nan"), float("inf"), 1e308])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["what is red", "yes", "no sir", "haha", "ok", "tea"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": WORDS}), min_size=1, max_size=2)
BROKEN_MESSAGES = st.lists(st.fixed_dictionaries({}, optional={"role": ANYTHING, "content": ANYTHING}), max_size=2)
# Right more often than not, so that it is not always the same first check that speaks.
FIELD = WORDS | WORDS | MESSAGES | BROKEN_MESSAGES | ANYTHING
PAST = st.lists(st.fixed_dictionaries({}, optional={"prompt": FIELD, "chosen": FIELD, "rejected": FIELD}), max_size=2)
RIGHT = {"prompt": WORDS, "chosen": WORDS, "rejected": WORDS, "user": st.sampled_from("uvwxyz"), "group": st.sampled_from("ab")}
ROW = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("prompt", "response", "chosen", "rejected"), FIELD),
        **dict.fromkeys(("user", "group"), st.sampled_from("abcd") | ANYTHING),
        "support_rate": st.floats(0, 1) | ANYTHING,
        "history": PAST | ANYTHING,
        "other": ANYTHING,
    },
)
LINES = st.lists(
    ROW.map(json.dumps) | st.fixed_dictionaries(RIGHT).map(json.dumps) | ANYTHING.map(json.dumps) | st.text(max_size=20),
    max_size=6,
)
DEEP = "[" * 100_000
MANY_DIGITS = '{"prompt": "a", "response": "b", "chosen": "b", "rejected": "c", "user": ' + "1" * 5000 + "}"


def as_bytes(lines, cut, ending, mark):
    """A file as somebody may have written it: with a mark or without, lines ended in one way or another, broken off."""
    data = mark + ending.join(lines).encode("utf-8", "surrogatepass")
    return data[: len(data) - cut]


FILES = st.builds(
    as_bytes,
    LINES,
    st.integers(0, 3),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
)
BYTES = st.binary(max_size=60)
TIMES = int(os.environ.get("TRL_PAFO_FUZZ", "1"))  # so many times as many examples, and others each time
fuzz = settings(suppress_health_check=list(HealthCheck), database=None, derandomize=TIMES == 1)
RIGHT_ROWS = [json.dumps(row) for row in make_pairs(num_users=8, pairs_per_user=3, history=0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model("decoder", tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def run(capsys, *argv):
    """Exit status and what was said; a traceback would come through."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as error:  # argparse
        status = error.code
    captured = capsys.readouterr()
    if status:
        assert captured.err.strip(), "an error that says nothing"
    return status, captured.out, captured.err


class TestScore:
    @settings(fuzz, max_examples=8 * TIMES)
    @given(FILES | BYTES)
    @example(DEEP.encode())
    @example(MANY_DIGITS.encode())
    @example(b'{"prompt": "a", "response": "yes", "x": ' + b"[" * 900 + b"]" * 900 + b"}")
    @example(b'{"prompt": "a", "response": "yes"}\n{"prompt": "a", "response": "\xff"}')
    @example(b'{"prompt": "a", "response": "yes", "history": [{"prompt": "a"}]}')
    @example(b'{"prompt": "a", "response": "' + b"yes " * 1000 + b'"}')
    def test_any_file(self, model, folder, capsys, data):
        path = folder / "rows.jsonl"
        path.write_bytes(data)
        status, out, error = run(capsys, "score", "--model_name_or_path", model, "--input", path)
        assert status in (0, 1)
        if status == 0:
            given_rows = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
            scored = [json.loads(line) for line in out.split("\n") if line]
            assert 0 < len(scored) <= len(given_rows)
            assert all("reward" in row or {"reward_chosen", "reward_rejected"} <= set(row) for row in scored)
        else:
            assert error.splitlines()[-1].startswith("trl-pafo score: ")

    @settings(fuzz, max_examples=8 * TIMES)
    @given(FILES | BYTES)
    @example(DEEP.encode() + b"\n" + MANY_DIGITS.encode())
    @example(b'{"prompt": "a", "response": "\xff"}\n{"prompt": "a", "response": "yes", "user": {}}')
    def test_any_line_has_its_answer(self, model, capsys, data):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
            status, out, _ = run(capsys, "score", "-", "--model_name_or_path", model)
        assert status == 0
        answers = [json.loads(line) for line in out.split("\n")[:-1]]
        assert len(answers) == data.count(b"\n") + bool(data.rpartition(b"\n")[2])
        assert all("error" in row or "reward" in row or {"reward_chosen", "reward_rejected"} <= set(row) for row in answers)

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--batch_size", "-3"], "`batch_size` must be a whole number of at least 1, got -3"),
            (["--num_history", "-1"], "`num_history` must be at least 0"),
            (["--history_fields", "bogus"], "`history_fields` must be some of"),
            (["--output", "/proc/there/is/none"], "/proc/there"),
            (["--input", "x" * 5000], "cannot be read"),
            (["--model_name_or_path", "a\x00b"], "No model is found"),
            (["--no_such_flag", "1"], "no_such_flag"),
        ],
    )
    def test_flags_that_make_no_sense(self, model, folder, capsys, flags, says):
        path = folder / "good.jsonl"
        path.write_text('{"prompt": "what", "response": "yes"}')
        status, out, error = run(capsys, "score", "--model_name_or_path", model, "--input", path, *flags)
        assert status in (1, 2)
        assert says in error
        assert not out

    @pytest.mark.parametrize(
        "text", ["!!python/object/apply:os.mkdir ['{}']", "- a", "a:\n\t- b", "batch_size: [1, 2]", "env: 3"]
    )
    def test_a_configuration_is_plain_values(self, model, folder, tmp_path, capsys, text):
        path, mark = folder / "good.jsonl", tmp_path / "mark"
        path.write_text('{"prompt": "what", "response": "yes"}')
        config = tmp_path / "c.yaml"
        config.write_text(text.replace("{}", str(mark)))
        assert run(capsys, "score", "--config", config, "--model_name_or_path", model, "--input", path)[0] in (1, 2)
        assert not mark.exists()


def read(path):
    """The splits of a file; `None` where it is refused."""
    try:
        splits = load_source(DataArguments(source="files", data_path=str(path)))
    except TrlPafoError:
        return None
    assert {"prompt", "chosen", "rejected", "user", "group", "support_rate"} <= set(splits["train"].column_names)
    assert not set(splits["train"]["user"]) & set(splits["test"]["user"])
    return splits


class TestFiles:
    @settings(fuzz, max_examples=30 * TIMES)
    @given(FILES | BYTES, st.booleans())
    @example(DEEP.encode(), False)
    @example(DEEP.encode(), True)
    @example(('{"a":' * 100_000).encode(), False)
    @example(MANY_DIGITS.encode(), False)
    @example(b'{"prompt": "x", "z": ' + b"[" * 500 + b"]" * 500 + b"}", False)
    @example("\n".join(RIGHT_ROWS).encode(), True)
    def test_any_json(self, folder, data, zipped):
        path = folder / ("rows.jsonl.gz" if zipped else "rows.jsonl")
        path.write_bytes(gzip.compress(data) if zipped else data)
        read(path)

    @settings(fuzz, max_examples=15 * TIMES)
    @given(ROW)
    @example({"history": [{"prompt": 1, "chosen": None, "rejected": {}}]})
    @example({"history": [{"prompt": [{"x": 1}], "chosen": "b", "rejected": "c"}]})
    @example({"prompt": [{"role": "user", "content": 3}]})
    @example({"group": ["a"]})
    @example({"user": {"a": 1}})
    def test_any_field_in_all_rows(self, folder, change):
        """One kind in all rows, so that it is not the change of a column's type that is refused."""
        path = folder / "rows.jsonl"
        rows = [{**json.loads(row), **change, "prompt": f"{json.loads(row)['prompt']} {n}"} for n, row in enumerate(RIGHT_ROWS)]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        splits = read(path)
        if splits is not None:
            for row in splits["train"]:
                assert isinstance(row["user"], str)
                assert isinstance(row["group"], str)

    @settings(fuzz, max_examples=30 * TIMES)
    @given(
        st.text(max_size=80) | st.lists(st.lists(TEXTS, max_size=6), max_size=5).map(lambda rows: "\n".join(map(",".join, rows)))
    )
    @example("prompt,chosen,rejected,user\n\x00,\x00,a,b\n")
    @example("prompt,prompt,chosen,rejected,user\na,b,c,d,e\n")
    @example('prompt,chosen,rejected,user\n"x,y')
    def test_any_table_in_text(self, folder, text):
        for name in ("rows.csv", "rows.tsv"):
            (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
            read(folder / name)

    @settings(fuzz, max_examples=30 * TIMES)
    @given(BYTES, st.sampled_from(["csv", "csv.gz", "parquet", "json.gz", "txt", "arrow"]))
    @example(b"PAR1xxxxPAR1", "parquet")
    @example(gzip.compress(b"a,b\n1,2", mtime=0)[:-4], "csv.gz")
    def test_any_bytes(self, folder, data, ending):
        (folder / f"rows.{ending}").write_bytes(data)
        read(folder / f"rows.{ending}")

    TYPES = st.sampled_from(
        [
            *(pa.int8(), pa.uint64(), pa.float16(), pa.bool_(), pa.binary(), pa.large_string(), pa.string_view(), pa.date32()),
            *(pa.null(), pa.timestamp("ns"), pa.duration("s"), pa.list_(pa.string()), pa.struct([("role", pa.string())])),
            *(pa.decimal128(5, 2), pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int8(), pa.string())),
            *(pa.string(), pa.string(), pa.string()),
        ]
    )

    @settings(fuzz, max_examples=20 * TIMES)
    @given(st.fixed_dictionaries(dict.fromkeys(RIGHT, TYPES)), st.integers(0, 3))
    def test_any_types_of_a_table(self, folder, types, num_rows):
        arrays = {}
        for name, kind in types.items():
            texts = [f"{name} {n}" for n in range(num_rows)]
            try:
                arrays[name] = pa.array(texts).cast(kind)
            except pa.ArrowException:
                arrays[name] = pa.nulls(num_rows, kind)
        parquet.write_table(pa.table(arrays), folder / "rows.parquet")
        read(folder / "rows.parquet")

    @pytest.mark.parametrize("path", ["", "a\x00b", "x" * 5000, "owner/name", "/proc/self/mem", "/dev/null"])
    def test_any_path(self, path):
        assert read(path) is None

    def test_a_dataset_that_is_a_script_is_not_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        (tmp_path / "data/data.py").write_text("open('run', 'w')")
        assert read("data") is None
        assert read("data/data.py") is None
        assert not Path("run").exists()


class TestPrepare:
    @settings(fuzz, max_examples=3 * TIMES)
    @given(st.lists(ROW, max_size=3))
    @example([{"group": "\x00"}])
    @example([{"group": "../../x"}, {"user": "/abs"}])
    @example([{"prompt": "{{ 7 * 7 }}{% for"}])
    def test_any_rows_among_right_ones(self, model, tmp_path_factory, capsys, changes):
        tmp_path = tmp_path_factory.mktemp("prepare")
        rows = [*map(json.loads, RIGHT_ROWS), *({**json.loads(RIGHT_ROWS[0]), **change} for change in changes)]
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        out = tmp_path / "deep" / "er" / "out"
        flags = ["--source", "files", "--data_path", tmp_path / "rows.jsonl", "--model_name_or_path", model, "--output_dir", out]
        status, _, error = run(capsys, "prepare", *flags, "--num_history", 1)
        assert status in (0, 1)
        if status:
            assert "trl-pafo prepare: " in error
        # Nothing is written but into the folder, whatever the texts say.
        assert {path.name for path in tmp_path.iterdir()} <= {"rows.jsonl", "deep"}
        assert [path.name for path in (tmp_path / "deep" / "er").glob("*")] == ([] if status else ["out"])
