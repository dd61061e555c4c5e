from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kflats

ROOT = Path(__file__).parents[1]


def test_all_is_sorted_and_real() -> None:
    assert kflats.__all__ == sorted(kflats.__all__)
    assert all(getattr(kflats, name).__doc__ for name in kflats.__all__)
    assert dir(kflats) == kflats.__all__


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="module 'kflats' has no attribute 'nothing'"):
        kflats.nothing  # noqa: B018


def test_import_is_light() -> None:
    heavy = "('torch', 'sklearn', 'transformers', 'datasets', 'matplotlib')"
    code = f"import sys, kflats, kflats.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_does_not_load_transformers() -> None:
    names = kflats.__all__
    code = (
        f"import sys, kflats; [getattr(kflats, n) for n in {names}]; "
        "print([m for m in ('transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_changelog_and_citation_have_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert kflats.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
