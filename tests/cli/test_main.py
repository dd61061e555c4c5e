from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kflats as library
from tests.cli.conftest import Cli

COMMANDS = ("inspect", "compress", "evaluate", "demo")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(kflats: Cli, flag: str) -> None:
    result = kflats(flag)
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(kflats: Cli, command: str) -> None:
    result = kflats(command, "--help")
    assert result.code == 0
    assert f"Usage: kflats {command}" in result.out
    assert "--json" in result.out


def test_version_is_that_of_the_package(kflats: Cli) -> None:
    result = kflats("--version")
    assert (result.code, result.out) == (0, f"kflats {library.__version__}\n")


def test_the_installed_command_starts() -> None:
    script = Path(sys.executable).with_name("kflats")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kflats {library.__version__}\n"
