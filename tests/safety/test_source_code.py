"""What the code never does, read from its syntax: pickles, code from data, unsafe YAML, models loaded past the few loaders, and what
Unix alone has."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

import trl_pafo

ROOT = Path(trl_pafo.__file__).parent
FILES = sorted(
    path for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "examples").rglob("*.py")] if "__pycache__" not in path.parts
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "zipfile", "tarfile"}
MODULES |= {"fcntl", "resource", "pwd", "grp", "termios"}  # which Windows lacks
SIGNALS = {f"signal.SIG{name}" for name in ("KILL", "HUP", "ALRM", "USR1", "USR2", "CHLD", "STOP", "CONT")}  # and these
CALLS = set(
    (
        "eval exec compile __import__ os.system os.popen torch.load yaml.load yaml.full_load yaml.unsafe_load "
        "pd.read_pickle pandas.read_pickle shutil.unpack_archive"
    ).split()
)
# The only names that are taken from a module of what should not be used: an error, and a look at the end of a file; no reader.
TAKEN = {("zipfile", "BadZipFile"), ("zipfile", "is_zipfile")}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


NODES = {path: [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in FILES}


def faults(nodes: Iterable[ast.AST]) -> list[str]:
    """What of all this a source text does."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found += [f"from {node.module} import {a.name}" for a in node.names if (node.module, a.name) not in TAKEN]
        elif isinstance(node, ast.Attribute) and dotted(node) in SIGNALS:
            found.append(dotted(node))
        elif isinstance(node, ast.Call):
            found += _faults_of_call(node)
    return found


def _faults_of_call(call: ast.Call) -> list[str]:
    name, last = dotted(call.func), dotted(call.func).split(".")[-1]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    found = [name] if name in CALLS else []
    for risky in ("allow_pickle", "shell", "trust_remote_code"):
        value = keywords.get(risky)
        if isinstance(value, ast.Constant) and value.value is not False:
            found.append(f"{name}({risky}={value.value!r})")
    if (
        last in ("load", "save", "savez", "savez_compressed")
        and name.split(".")[0] in ("np", "numpy")
        and "allow_pickle" not in keywords
    ):
        found.append(f"{name} without allow_pickle=False")
    if last == "from_pretrained":
        spread = {dotted(keyword.value) for keyword in call.keywords if keyword.arg is None}
        if "SAFELY" not in spread and not _needs_no_more(name, keywords):
            found.append(f"{name} without SAFELY")
    return found


def _needs_no_more(name: str, keywords: dict) -> bool:
    if name == "PeftModel.from_pretrained":  # an adapter on a base in memory: its folder is checked, it brings no code
        return True
    if name in ("RewardScorer.from_pretrained", "FairRewardModel.from_pretrained"):  # load by load_reward_model
        return True
    return ("Tokenizer" in name or "Config" in name) and "trust_remote_code" in keywords


def test_no_file_does_any_of_it():
    found = {str(path): wrong for path, nodes in NODES.items() if (wrong := faults(nodes))}
    assert not found, "See trl_pafo/models/safe_loading.py for how models are loaded."


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import fcntl",
        "code == -signal.SIGKILL",
        "import joblib.numpy_pickle",
        "from pickle import loads",
        "from zipfile import ZipFile",
        "eval('1')",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(path, use_safetensors=True)",
        "AutoTokenizer.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "AutoConfig.from_pretrained(path, num_labels=1)",
    ],
)
def test_each_would_be_found(source):
    assert faults(ast.walk(ast.parse(source)))


def test_what_is_allowed_is_not_found():
    allowed = (
        "np.load(p, allow_pickle=False)\nyaml.safe_load(t)\nAutoModel.from_pretrained(p, **SAFELY)\n"
        "AutoTokenizer.from_pretrained(p, trust_remote_code=args.trust_remote_code)\nre.compile('a')"
    )
    assert not faults(ast.walk(ast.parse(allowed)))


def test_templates_escape():
    """Only what the page makes itself is marked as markup."""
    marked = [
        (path.name, ast.unparse(node))
        for path, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "Markup"
    ]
    assert {file for file, _ in marked} == {"page.py"}
    assert len(marked) == 2  # the pictures and the style sheet
    for template in ROOT.rglob("*.html.jinja"):
        assert "|safe" not in template.read_text(encoding="utf-8").replace(" ", "")
