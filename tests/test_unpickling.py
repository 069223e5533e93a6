"""Nothing from outside is unpickled or run: every source file of the packages is read for what would do so."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_architecture import PACKAGES, ROOT, sources

UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
EXCEPTIONS = {"PickleError", "PicklingError", "UnpicklingError"}
"""All that may be used of `pickle`."""
SAFE_YAML = {"yaml.safe_load", "yaml.safe_load_all"}
LOADER = ("yaml.load", True)
"""Safe as long as its loader is: a test of its own."""
SWITCHES = {("weights_only", "False"), ("allow_pickle", "True"), ("trust_remote_code", "True")}
CODE = {"eval", "exec", "compile", "__import__"}


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and words for whatever unpickles, or runs, what it is given."""
    bounded = {base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in limited(node)}
    for node in ast.walk(tree):
        if node in bounded:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module in UNPICKLERS or (node.module in ("pickle", "_pickle") and not names <= EXCEPTIONS):
                yield node.lineno, f"from {node.module} import .."
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr not in EXCEPTIONS:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, text) for text in refused(node))


def limited(kind: ast.ClassDef) -> Iterator[ast.expr]:
    """The bases of an unpickler that decides itself which names it knows, as torch's for weights does."""
    if any(isinstance(member, ast.FunctionDef) and member.name == "find_class" for member in kind.body):
        yield from (base for base in kind.bases if ast.unparse(base) == "pickle.Unpickler")


def refused(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in CODE:
        yield f"{name}()"
    if name.startswith("yaml.") and "load" in name and name not in SAFE_YAML and (name, "Loader" in given) != LOADER:
        yield name
    if name.endswith(".read_pickle") or name in ("torch.jit.load", "torch.hub.load"):
        yield name
    yield from (f"{switch}={value}" for switch, value in SWITCHES if given.get(switch) == value)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled(package):
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in sources(package)
        for line, text in findings(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_yaml_loader_makes_plain_values_only():
    import yaml

    from configs.yaml_io import Loader

    assert issubclass(Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(b'')", "from pickle import load", "import cloudpickle", "torch.load(path)",
        "torch.load(path, weights_only=flag)", "torch.load(path, weights_only=False)", "eval(text)",
        "numpy.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.unsafe_load(text)",
        "Model.from_pretrained(path, trust_remote_code=True)", "pandas.read_pickle(path)",
        "import pickle\npickle.Unpickler(file)", "class All(pickle.Unpickler): ...",
    ],
)  # fmt: skip
def test_each_way_is_found(text):
    assert list(findings(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)", "yaml.load(text, Loader=Loader)", "policy.eval()", "re.compile(x)",
        "class Few(pickle.Unpickler):\n    def find_class(self, module, name): ...",
    ],
)  # fmt: skip
def test_what_is_safe_is_not(text):
    assert not list(findings(ast.parse(text)))
