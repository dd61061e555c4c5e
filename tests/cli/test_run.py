from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Cli

_PROGRAM = """
import sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(type(model.get_input_embeddings()).__name__, sys.argv[2:], __name__)
sys.exit(3)
"""


def test_program_that_knows_no_kflats_loads_a_compressed_model(
    kflats: Cli, bert: Path, place: Path
) -> None:
    small = place / "small"
    kflats("compress", bert, "-o", small, "--compression", 0.4, "--clusters", 2)
    program = place / "program.py"
    program.write_text(_PROGRAM)
    words = [sys.executable, "-m", "kflats.cli", "run", str(program), str(small), "--json", "-m"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == "FactorizedEmbedding ['--json', '-m'] __main__"
    plain = subprocess.run(
        [sys.executable, str(program), str(small)], capture_output=True, text=True, check=False
    )
    assert plain.returncode == 1
    assert "kflats" in plain.stderr


def test_run_refuses_what_is_no_program(kflats: Cli, place: Path) -> None:
    for words in ((place / "none.py",), ("-m", "no_such_module"), ("-m", "a.b.c"), ()):
        result = kflats("run", *words)
        assert (result.code, len(result.errors)) == (2, 1), words
