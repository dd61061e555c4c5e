"""Every command and block of README and docs, in order, on what the ones before have written.

They run in the environment of ``make demo`` first, where some want an extra that README names, and
these then with everything that is installed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.scene import ROOT, Ran, Scene, beyond, commands, python_blocks, save_small_minilm

pytest.importorskip("sentence_transformers")
pytest.importorskip("pyarrow")

README = [
    *commands("README.md"),
    "kflats evaluate MODEL",
    "kflats compress MODEL -o OUT --bits 4 --method codes --entropy",
]
DOCS = [
    line
    for name in ("quantization", "glue", "integrations")
    for line in commands(f"docs/{name}.md")
]
CLUSTER = "kflats glue run paper-roberta -o /shared/results --ray auto"
BOTH = ("heal", "export")
"""What runs on flats and on packed codes."""

SIZES = {"3MB": "12KB", "20MB": "60KB"}
"""For a table 370 times smaller than that of MiniLM."""

PLACES = ("HEALED", "DENSE", "ONNX", "dense", "onnx")
models = pytest.mark.parametrize(
    "story", ["tiny", pytest.param("minilm", marks=pytest.mark.slow)], indirect=True
)


def needs() -> dict[str, str]:
    """Return which extra README says that commands and options need beyond ``demo``."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"enough for all of them but these: ([^.]*)\.", text)
    found = re.findall(r"`([a-z-]+)`(?: without `--data`)? needs `(\w+)`", sentence)
    assert len(found) == sentence.count("needs")
    return dict(found)


def extra_of(words: tuple[str, ...]) -> str | None:
    """Return the extra that README names for a command."""
    if words[0] == "evaluate" and "--data" in words:
        return None
    return next((extra for name, extra in needs().items() if name in (words[0], *words)), None)


@dataclass
class Story:
    """Runs lines in one scene.

    The first folder with flats becomes ``flats``, the first in packed codes ``codes``; every
    later compression goes into a folder of its own.
    """

    scene: Scene
    hidden: frozenset[str]
    told: list[tuple[str, Ran]] = field(default_factory=list)

    def tell(self, lines: Iterable[str]) -> None:
        for line in lines:
            words = shlex.split(line)[1:]
            for out in self._outs(words):
                ran = self.scene.kflats(*self.own(words, out), hidden=self.hidden)
                self.told.append((line, ran))

    def _outs(self, words: list[str]) -> list[str]:
        if words[0] == "compress":
            kind = "codes" if "--bits" in words else "flats"
            taken = (self.scene.folder / kind).exists()
            return [f"out-{len(self.told)}" if taken else kind]
        if not {"OUT", "small"} & set(words):
            return [""]
        return ["flats", "codes"] if words[0] in BOTH else ["codes"]

    def own(self, words: list[str], out: str) -> list[str]:
        """Return the words with the places and the sizes of this scene."""
        places = {name: f"{name}-{out}" for name in PLACES}
        places |= {"MODEL": "minilm", "OUT": out, "small": out}
        if self.scene.minilm is not None:
            places |= SIZES
        own = [places.get(word, word) for word in words]
        return [*own, "--task", "rte", "--seed", "0"] if own[:2] == ["glue", "run"] else own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the place of all-MiniLM-L6-v2."""
    return save_small_minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def story(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    """What README tells, in the environment of ``make demo``."""
    folder = tmp_path_factory.mktemp("readme") / "scene"
    story = Story(Scene(folder, tiny if request.param == "tiny" else None), beyond("demo"))
    story.tell(README)
    return story


def assert_done(ran: Ran) -> None:
    assert ran.code == 0, str(ran)
    assert "Traceback" not in ran.out + ran.err, str(ran)


def assert_refused(ran: Ran, message: str) -> None:
    assert ran.code == 1, str(ran)
    assert len(ran.errors) == 1, str(ran)
    assert ran.errors[0].startswith("error: "), str(ran)
    assert message in ran.errors[0], str(ran)
    assert "Traceback" not in ran.out, str(ran)


@models
def test_readme_in_the_environment_of_the_demo(story: Story) -> None:
    assert len(story.told) > 20
    for _, ran in story.told:
        extra = extra_of(ran.words)
        if extra is None:
            assert_done(ran)
        else:
            assert_refused(ran, f"run pip install -c constraints.txt -e '.[{extra}]'")
            assert not (story.scene.folder / ran.words[-1]).exists() or ran.name == "glue"
    wanted = {name for name, _ in needs().items()}
    seen = {word for _, ran in story.told for word in ran.words if extra_of(ran.words)}
    assert wanted <= seen


@models
def test_the_blocks_of_readme_in_the_environment_of_the_demo(story: Story) -> None:
    blocks = python_blocks("README.md")
    assert len(blocks) >= 3
    for block in blocks:
        assert_done(story.scene.python(block, story.hidden))


@models
def test_what_wanted_an_extra_runs_with_it(story: Story) -> None:
    for package in ("accelerate", "datasets", "plotly", "onnx", "onnxruntime", "constriction"):
        pytest.importorskip(package)
    refused = [ran for _, ran in story.told if extra_of(ran.words)]
    assert refused
    for old in refused:
        ran = story.scene.kflats(*old.words)
        if ran.name == "evaluate":
            assert_refused(ran, "--data")  # the tests are offline
        elif ran.words[:2] == ("export", "codes"):
            assert_refused(ran, "packed codes have no ONNX form")
        else:
            assert_done(ran)


@models
def test_without_any_extra_every_command_ends_in_one_line(story: Story) -> None:
    first = {ran.name: ran for _, ran in reversed(story.told)}
    del first["run"]  # what happens there is the affair of the program
    assert_done(story.scene.kflats(*first.pop("info").words, hidden=beyond()))
    for old in first.values():
        before = ("", *old.words)  # a word after -o names what must be new
        pairs = zip(before, old.words, strict=False)
        words = [f"new-{word}" if last == "-o" else word for last, word in pairs]
        assert_refused(story.scene.kflats(*words, hidden=beyond()), "needed for this")


@pytest.mark.slow
def test_the_commands_of_the_docs(tiny: Path, tmp_path: Path) -> None:
    assert CLUSTER in DOCS
    story = Story(Scene(tmp_path / "scene", tiny), frozenset())
    story.tell(["kflats compress MODEL -o OUT --compression 0.4"])
    story.tell(line for line in DOCS if line != CLUSTER)
    for _, ran in story.told:
        if ran.words[:2] == ("export", "codes"):
            assert_refused(ran, "packed codes have no ONNX form")
        else:
            assert_done(ran)


def test_hidden_packages_look_as_if_they_were_not_installed(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene", None)
    code = (
        "from importlib.metadata import distributions\n"
        "from importlib.util import find_spec\n"
        "print(find_spec('accelerate'), find_spec('torch') is None)\n"
        "print('accelerate' in {each.metadata['Name'] for each in distributions()})\n"
        "import accelerate\n"
    )
    ran = scene.python(code, beyond("demo"))
    assert ran.out.split() == ["None", "False", "False"]
    assert "ModuleNotFoundError: No module named 'accelerate'" in ran.err


def test_documents_install_by_extras_that_exist() -> None:
    import tomllib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = tomllib.loads(text)["project"]["optional-dependencies"].keys()
    written = [each for each in (ROOT / "docs").glob("*.md") if each.stem != "architectures"]
    for path in (ROOT / "README.md", *written):
        lines = re.findall(r"pip install .*", path.read_text(encoding="utf-8"))
        for line in lines:
            extras = re.match(r"pip install -c constraints\.txt -e '\.\[([a-z,]+)\]'", line)
            assert extras, f"{path.name}: {line}"
            assert set(extras.group(1).split(",")) <= known, line
