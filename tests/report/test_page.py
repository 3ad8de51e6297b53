"""The whole page: what it holds, what it leaves alone, and that a browser has nothing to say against it."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from helpers.fake_runs import make_run

from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.report import page
from trl_pafo.report.details import cases
from trl_pafo.report.page import write_report
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import read_record

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "\"'&{{ 7 * 7 }}{% raw %}",
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script></svg><iframe src=javascript:alert(1)>",
    "<!-- --><a href=javascript:alert(1)>x</a>]]><b>x</b>&lt;script&gt;",
    "$\\frac{1}{$ $x$\u202e",
]
EVIL = " ".join(HOSTILE)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text outside of `<style>`."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def report_with(folder, word):
    """The report of a run whose texts, users and groups hold a word."""
    make_run(folder, groups=(f"most {word}", f"few {word}"), text=word)
    results = json.loads((folder / "results/results.json").read_text())
    results["verdicts"]["pafo"]["sentence"] = word
    (folder / "results/results.json").write_text(json.dumps(results))
    return write_report(folder)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    return report_with(tmp_path_factory.mktemp("runs") / "a<b", EVIL)


def test_texts_and_names_add_no_element(evil, tmp_path):
    """The page of hostile texts and groups has the very elements and attributes of the page of plain ones."""
    pages = [Elements(path.read_text(encoding="utf-8")).tags for path in (evil, report_with(tmp_path / "plain", "plain"))]
    # Glyphs of pictures are paths, as many as there are different ones.
    glyphs = ("path", "use", "defs", "g", "text", "tspan")
    found, expected = ([(tag, sorted(attributes)) for tag, attributes in page if tag not in glyphs] for page in pages)
    assert found == expected
    assert len(expected) > 200
    for text in HOSTILE[:-1]:
        assert Elements(f"<p title='{text}'>{text}</p>").tags != Elements("<p title='plain'>plain</p>").tags


def test_the_page_is_one_file_without_scripts_or_network(evil):
    text = evil.read_text(encoding="utf-8")
    tags = Elements(text).tags
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "img", "embed", "base", "form")]
    assert all(attributes["aria-label"] for tag, attributes in tags if tag == "svg")
    assert "default-src 'none'" in text
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_texts_from_the_data_are_shown_and_not_computed(evil):
    words = Elements(evil.read_text(encoding="utf-8")).text
    for shown in (f"disliked 1 {EVIL}", f"most {EVIL}", "a<b"):
        assert shown in words


def test_it_begins_with_plain_sentences(evil):
    words = Elements(evil.read_text(encoding="utf-8")).text
    sentences = plain_sentences(read_record(evil.parent).results)
    places = [words.replace("\u00a0", " ").index(sentence) for sentence in sentences]
    assert places == sorted(places)
    assert places[-1] < words.index("Trained on ")


def test_ids_are_unique_and_links_have_targets(evil):
    tags = Elements(evil.read_text(encoding="utf-8")).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in tags if tag == "a"]
    assert len(links) >= 6
    assert set(links) <= set(ids)


def test_an_older_report_is_replaced_by_the_same_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SECTIONS", (cases,))
    folder = make_run(tmp_path / "run", methods=("personalized_bt", "pafo"))
    path = write_report(folder)
    before = path.read_text(encoding="utf-8")
    assert write_report(folder) == path
    assert path.read_text(encoding="utf-8") == before


def test_nothing_else_is_overwritten(tmp_path):
    folder = make_run(tmp_path / "run", methods=("personalized_bt", "pafo"))
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<html>my thesis</html>", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"is no report of trl-pafo.*nothing was overwritten"):
        write_report(folder, thesis)
    with pytest.raises(ConfigError, match=r"A report is a \.html file"):
        write_report(folder, tmp_path / "report.pdf")
    assert thesis.read_text(encoding="utf-8") == "<html>my thesis</html>"
    with pytest.raises(RunFolderError, match=r"results\.json is missing"):
        write_report(tmp_path)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("TRL_PAFO_REQUIRE_CHROMIUM") != "1":
        pytest.skip("no Chromium on the PATH; with TRL_PAFO_REQUIRE_CHROMIUM=1 this is a failure")
    assert found, f"TRL_PAFO_REQUIRE_CHROMIUM=1, but none of {BROWSERS} is on the PATH."
    return found


def test_a_browser_has_no_complaint_and_a_telephone_no_need_to_scroll(evil, browser, tmp_path):
    control = tmp_path / "control.html"  # what the test must see if it were so
    control.write_text("<div style='width:600px'>x</div><script>console.error('complaint')</script>", encoding="utf-8")
    report = tmp_path / "report.html"
    shutil.copy(evil, report)
    frames = "".join(f"<iframe id={f.stem} src='{f.as_uri()}' width=390 height=800></iframe>" for f in (report, control))
    script = (
        "onload = () => { document.title = ['report', 'control'].map(id => { let page = "
        "document.getElementById(id).contentDocument.documentElement; return page.scrollWidth - page.clientWidth }).join() }"
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><title></title><script>{script}</script>{frames}", encoding="utf-8")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--v=0",
    ]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in console if "complaint" in line and "control.html" in line]
    assert not [line for line in console if "control.html" not in line]
    too_wide = re.search(r"<title>(-?\d+),(-?\d+)</title>", done.stdout)
    assert too_wide, done.stdout[:500] + done.stderr[-2000:]
    assert int(too_wide[1]) <= 0 < int(too_wide[2])
