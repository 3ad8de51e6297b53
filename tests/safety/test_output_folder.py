"""No name that comes from data, a manifest or a card leads a file out of the output folder, and no text in the report is markup."""

import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.fake_runs import make_run
from helpers.parts import make_model, make_pairs
from trl import ModelConfig

from trl_pafo import PAFOConfig
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.palm import fit_reward_models
from trl_pafo.pipeline.run import Run
from trl_pafo.report.page import write_report

NAMES = ["../../x", "/abs/x", "a/b", "..", "x" * 300, "a\x00b", "CON", "a\\b"]
TEXTS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</svg><iframe src=javascript:alert(1)>",
    "<!-- --><a href=javascript:alert(1)>x</a>",
    "]]><b>x</b>",
    "&lt;script&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$ $x$",
    "a\x00b\x0b\x1b",
    "\u202e\u2028",
]


def tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def inside(tmp_path):
    """A folder deep in another, around which nothing may appear or change."""
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/precious.txt").write_text("precious")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    before = tree(tmp_path)
    yield folder
    assert {path: d for path, d in tree(tmp_path).items() if not path.startswith(str(folder))} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "precious.txt", "x"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_groups_of_any_name_have_teachers_of_their_own(inside, training, tmp_path_factory):
    """`a/b` and `a_b` were one folder once: the second teacher took the place of the first."""
    groups = ["a/b", "a_b", "../../x", "A_B"]
    rows = make_pairs(num_users=40, pairs_per_user=2, num_minority=20, history=0)
    users = sorted(set(rows["user"]), key=lambda user: int(user.split("-")[1]))
    group_of = {user: groups[n % len(groups)] for n, user in enumerate(users)}
    rows = [{**row, "group": group_of[row["user"]], "prompt": f"{row['prompt']} {n}"} for n, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    base = make_model("encoder", tmp_path_factory.mktemp("models") / "base")
    args = PAFOConfig(str(inside / "run"), **{**training, "max_steps": 1, "max_length": 128}, num_history=1)
    options = RunArguments(
        source="files", data_path=str(path), methods=["bradley_terry", "group_routed"], reference="bradley_terry"
    )
    options.num_resamples = 2
    run = Run(options, args, ModelConfig(model_name_or_path=base))
    run()
    teachers = json.loads((inside / "run/manifest.json").read_text())["stages"]
    outputs = {name: stage["output"] for name, stage in teachers.items() if name.startswith("teacher")}
    assert {name.partition(":")[2] for name in outputs} == set(groups)
    assert len({output.casefold() for output in outputs.values()}) == len(outputs) == 2 * len(groups)  # one a fold
    for output in outputs.values():
        assert (inside / "run" / output / "model.safetensors").is_file()


def test_types_of_responses_as_folders(inside, tmp_path_factory):
    base = make_model("encoder", tmp_path_factory.mktemp("models") / "base")
    prompts = [AnsweredPrompt(f"what {n}", {"../../x": "yes sir", "a/b": "no", "a_b": "haha"}) for n in range(3)]
    folders = fit_reward_models(prompts, inside / "models", model=base)
    assert set(folders) == {"../../x", "a/b", "a_b"}
    assert len(set(folders.values())) == 3
    for folder in folders.values():
        assert Path(folder).parent == inside / "models"
        assert (Path(folder) / "model.safetensors").is_file()


class Skeleton(HTMLParser):
    """Elements and the names of their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_comment(self, data):
        self.found.append(("comment", data))


def test_texts_and_names_add_no_element_to_the_report(tmp_path):
    """The page of hostile texts and groups has the very elements and attributes of the page of plain ones."""
    found = []
    for number, word in enumerate(("plain", " ".join(TEXTS))):
        groups = (f"m {word}", f"f {word}")
        folder = make_run(tmp_path / str(number), methods=("personalized_bt", "pafo"), groups=groups, text=word, users=(4, 3))
        results = json.loads((folder / "results/results.json").read_text())
        results["verdicts"]["pafo"]["sentence"] = word
        (folder / "results/results.json").write_text(json.dumps(results))
        found.append(write_report(folder).read_text(encoding="utf-8"))
    plain, hostile = (Skeleton(page).found for page in found)
    # Glyphs of pictures are paths, as many as there are different ones.
    plain, hostile = (
        [entry for entry in page if entry[0] not in ("path", "use", "defs", "g", "text", "tspan")] for page in (plain, hostile)
    )
    assert hostile == plain
    assert len(plain) > 200
    assert not {tag for tag, _ in Skeleton(found[1]).found} & {*"script img iframe object embed base form comment".split()}
    assert not [name for _, names in Skeleton(found[1]).found for name in names if name.startswith("on")]
    assert "default-src 'none'" in found[1]


@pytest.mark.parametrize("text", TEXTS[:6])
def test_the_skeleton_shows_what_would_not_be_escaped(text):
    assert Skeleton(f"<p title='{text}'>{text}</p>").found != Skeleton("<p title='plain'>plain</p>").found
