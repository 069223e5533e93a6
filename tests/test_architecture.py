"""The order of the packages, held by reading every import: configs <- reward <- rollout <- learner."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "reward", "rollout", "learner")
"""Each may import itself and those before it."""

WITHOUT_TORCH = """
import sys

REFUSED = {"torch", "ray", "numpy", "diffusers", "transformers", "peft", "deepspeed", "open_clip", "datasets",
           "reward", "rollout", "learner"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"configs must not need {name}")

sys.meta_path.insert(0, Refuse())

import importlib, pkgutil
import configs
for module in pkgutil.walk_packages(configs.__path__, "configs."):
    importlib.import_module(module.name)

from configs.cautions import cautions
from configs.docs import render
from configs.placement import render_placement
for name in configs.preset_names():
    config = configs.load_config(name, ["run.seed=7"])
    configs.dump_config(config), cautions(config), render_placement(config, {"CPU": 1.0})
render()
print("modules", sum(name.startswith("configs") for name in sys.modules))
"""

WITHOUT_MODELS = [
    "rollout.replay_actor",
    "rollout.weights_actor",
    "rollout.pool_actor",
    "rollout.evaluator_actor",
    "learner.telemetry",
    "learner.evaluations",
    "learner.ranks",
    "learner.main",
]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted module of every import in a file, inside functions and `if TYPE_CHECKING` too."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_never_point_the_other_way(package: str) -> None:
    forbidden = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in sources(package)
        for line, module in imported(file)
        if module.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_configs_needs_neither_torch_nor_ray() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[1]) >= len(sources("configs"))


def test_a_process_that_only_coordinates_does_not_carry_torch() -> None:
    """Actors, the driver, what Ray Train's controller and Ray's tasks import: each would hold 300 MB more for it."""
    code = f"""
import importlib, sys
for module in {WITHOUT_MODELS}:
    importlib.import_module(module)
    if carried := {{'torch', 'diffusers', 'transformers'}} & set(sys.modules):
        sys.exit(f'{{module}} imports {{sorted(carried)}}')
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_libraries_that_are_imported_are_declared_and_no_others() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {_normal(re.split(r"[\[<>=!~; ]", text)[0]) for text in project["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    undeclared, used = set(), {"scipy"}  # transformers builds Mask2Former only with it
    for package in PACKAGES:
        for file in sources(package):
            for line, module in imported(file):
                top = module.split(".")[0]
                if top in {*PACKAGES, *sys.stdlib_module_names}:
                    continue
                found = declared & {_normal(name) for name in owners.get(top, [top])}
                used |= found
                if not found:
                    undeclared.add(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert undeclared == set()
    assert declared == used, "declared, and imported by nothing"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
