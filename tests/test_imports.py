"""Which package may import which: the arrow that keeps the method apart from data, pictures and experiments."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"lumos_pl", "data_modules", "callbacks", "experiments", "bench", "faults", "tests"}
MAY_IMPORT = {
    "lumos_pl": set(),
    "data_modules": {"lumos_pl"},
    "callbacks": {"lumos_pl"},
    "experiments": {"lumos_pl", "data_modules", "callbacks"},
}
LEAVES = {  # modules of lumos_pl, and what they may know of it
    "lumos_pl.errors": set(),
    "lumos_pl.spans": set(),
    "lumos_pl.layout": {"errors", "settings", "spans"},
    "lumos_pl.masking": {"errors", "seeding", "settings"},
    "lumos_pl.settings": {"errors", "settings"},
    "lumos_pl.machinery.own_files": {"errors", "machinery"},
    "lumos_pl.machinery.atomic_file": {"errors", "machinery"},
}
STRANGERS = {"models", "loss", "tokenizers"}  # joined by the module and by what stands above them


def modules(package: str) -> Iterator[tuple[Path, str]]:
    """Every file with every module it imports, also where that is inside a function."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None and not node.level, f"{file}: a relative import"
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_along_the_arrow_alone(package: str) -> None:
    forbidden = PACKAGES - MAY_IMPORT[package] - {package}
    against = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file, name in modules(package)
        if name.partition(".")[0] in forbidden
    ]
    assert against == []


def test_what_is_imported_is_listed() -> None:
    """Nothing is there only because another dependency brings it along; `flash_attn` may be absent."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [
        need
        for name in ("play", "wandb", "mlflow", "s3", "gs", "http", "heif", "parquet", "ray", "finetune")
        for need in project["optional-dependencies"][name]
    ]
    listed = {re.split(r"[<>=\[]", need)[0].lower().replace("_", "-") for need in project["dependencies"] + optional}
    owners = packages_distributions()
    imported = {name.partition(".")[0] for package in MAY_IMPORT for _, name in modules(package)}
    distributions = {name: owners.get(name, []) for name in imported - PACKAGES - sys.stdlib_module_names}
    known = {name for name, of in distributions.items() if listed & {one.lower().replace("_", "-") for one in of}}
    assert {name for name, of in distributions.items() if of} - known == set()


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_know_little(leaf: str) -> None:
    place = ROOT / leaf.replace(".", "/")
    files = {place.with_suffix(".py"), *place.glob("*.py")}
    known = {name.split(".")[1] for file, name in modules("lumos_pl") if file in files and name.startswith("lumos_pl.")}
    assert known <= LEAVES[leaf]


def test_what_makes_the_method_work_knows_nothing_of_the_method() -> None:
    """Its files, devices and Lightning's privacies could be another project's; what shards a model stands apart."""
    known = {name.split(".")[1] for _, name in modules("lumos_pl/machinery") if name.startswith("lumos_pl.")}
    assert known <= {"errors", "machinery", "settings"}


@pytest.mark.parametrize("part", sorted(STRANGERS))
def test_models_loss_and_tokenizers_do_not_know_each_other(part: str) -> None:
    known = {name.split(".")[1] for _, name in modules(f"lumos_pl/{part}") if name.startswith("lumos_pl.")}
    assert not known & (STRANGERS - {part})
