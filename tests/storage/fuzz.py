"""Change folders in every way that comes to mind, load them, and count what happens.

``python -m tests.storage.fuzz --count 100000 --seed 0`` prints the counts. Every mutant follows
from the seed and its number: ``--start NUMBER --count 1 --trace`` repeats one with what was raised.

A folder is loaded by ``kflats.load`` or by the library itself, and then asked. What can happen:

- refused: a CheckpointError, or that ``model=`` is needed; from a library that was called itself,
  any error of its own;
- same: it answers like the original;
- number: it answers differently, because a number of a tensor that belongs to no compressed table
  was changed; only both ends of these count in the checksum;
- library: it answers differently, because a field that only transformers or sentence-transformers
  read was changed (the number of layers, the pooling);
- other: an old folder, without checksums, that now describes another table or other layers that are
  as sound, or whose other layers, by the dtype of their tensors, do not work together;
- SILENT: anything else that loads and answers differently;
- CRASH: any other exception, while loading or in the first answer;
- LARGE: more memory than twice the folder and a constant was asked for.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import kflats
from kflats import CheckpointError, InputError
from tests.storage.fuzzing.forms import Form, all_forms, info, signature
from tests.storage.fuzzing.mutants import Files, Mutant, mutate, without_checksums

OUTCOMES = ("refused", "same", "number", "library", "other", "SILENT", "CRASH", "LARGE")
BAD = ("SILENT", "CRASH", "LARGE")
ROOM = 64 << 20
SOURCE = str(Path(kflats.__file__).parent)
_NO_MEMORY = (
    "can't allocate",
    "cannot allocate",
    "out of memory",
    "not enough memory",
    "bad_alloc",
)
TRACE = False


class Original:
    """A form with its folder, and what the models in it say."""

    def __init__(self, form: Form, folder: Path) -> None:
        self.form = form
        form.write(folder)
        self.files = read_folder(folder)
        self.old = without_checksums(self.files)
        self.said: list[tuple[list[Any], list[Tensor]]] = []
        self.said += [self.ask(way, folder) for way in range(len(form.ways))]

    def ask(self, way: int, folder: Path) -> tuple[list[Any], list[Tensor]]:
        """Load a folder; return what the model is and, if it is of the class, what it answers."""
        self.is_loaded = False
        model = self.form.ways[way](folder)
        found = signature(model)
        self.is_loaded = True
        is_known = way >= len(self.said) or found[0] == self.said[way][0][0]
        return found, self.form.answer(model) if is_known else []


def read_folder(folder: Path) -> Files:
    """Return the contents of a folder, but for the model card."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.name != "README.md"}


def write_folder(folder: Path, files: Files, before: Files) -> None:
    """Make a folder that had the contents ``before`` have these and no others."""
    if (
        any("/" in name and name not in before for name in files)
        or not before.keys() <= files.keys()
    ):
        shutil.rmtree(folder, ignore_errors=True)
        before = {}
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if before.get(name) == content and not name.endswith("/"):
            continue
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let this process ask for no more than so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def outcome(original: Original, mutant: Mutant, way: int, folder: Path, *, old: bool) -> str:
    """Return what happens when a mutant, which was written, is loaded and asked."""
    size = sum(map(len, mutant.files.values()))
    own = way == 0 and "module" not in original.form.name
    try:
        with limited(2 * size + ROOM):
            found = original.ask(way, folder)
            if mutant.asks_sizes:
                info(folder)
    except CheckpointError as error:
        _trace(error)
        return "LARGE" if _lacked_memory(error) else "refused"
    except Exception as error:  # noqa: BLE001  whatever it is, it is counted
        _trace(error)
        # Without modules.json a static embedding model is a plain module, which needs model=.
        asks = isinstance(error, InputError) and "pass model=" in str(error)
        if asks or (not own and _is_of_library(error)):
            return "refused"
        if mutant.kind == "library" and original.is_loaded:
            return "library"  # such as a tokenizer of more words than there are rows
        if old and mutant.kind == "dense" and not _is_ours(error):
            return "other"
        return "LARGE" if _lacked_memory(error) else "CRASH"
    if _alike(found, original.said[way]):
        return "same"
    if mutant.kind in ("library", "numbers"):
        return mutant.kind.removesuffix("s")
    return "other" if old else "SILENT"


def _alike(one: tuple[list[Any], list[Tensor]], two: tuple[list[Any], list[Tensor]]) -> bool:
    if repr(one[0]) != repr(two[0]):
        return False
    pairs = list(zip(one[1], two[1], strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _trace(error: BaseException) -> None:
    if TRACE:
        traceback.print_exception(error)


def _is_of_library(error: BaseException) -> bool:
    """Return whether kflats has no part in an error while a library loads a folder."""
    frames = traceback.extract_tb(error.__traceback__)
    loading = any("from_pretrained" in f.name or "__init__" in f.name for f in frames)
    return loading and not _is_ours(error)


def _is_ours(error: BaseException | None) -> bool:
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        # What reads a config is wrapped, and hands on what transformers raises.
        own = [f for f in frames if f.name != "get_config_dict"]
        if any(f.filename.startswith(SOURCE) for f in own):
            return True
        error = error.__cause__ or error.__context__
    return False


def choice(forms: tuple[Form, ...], number: int, seed: int) -> int:
    """Return the form of a mutant; those that take long to load come up less often."""
    weights = [form.weight for form in forms]
    return Random(f"form {seed}:{number}").choices(range(len(forms)), weights)[0]


def run(
    forms: tuple[Form, ...], numbers: range, seed: int, report: Callable[[str], None]
) -> dict[str, Counter[str]]:
    """Return for every kind of change how often each outcome came; bad ones are reported."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place, quiet():
        needed = {choice(forms, number, seed) for number in numbers}
        originals = {i: Original(forms[i], Path(place) / str(i)) for i in sorted(needed)}
        folder, before = Path(place) / "mutant", Files()
        for number in numbers:
            random = Random(f"{seed}:{number}")
            original = originals[choice(forms, number, seed)]
            old = random.random() < 0.2
            mutant = mutate(random, original.old if old else original.files)
            way = random.randrange(len(original.form.ways)) if random.random() < 0.4 else 0
            write_folder(folder, mutant.files, before)
            before = mutant.files
            result = outcome(original, mutant, way, folder, old=old)
            kind = f"{mutant.kind}, old" if old else mutant.kind
            counts.setdefault(kind, Counter())[result] += 1
            if result in BAD:
                report(
                    f"{result} {number}: {original.form.name}, way {way}, {kind}: {mutant.change}"
                )
            if number % 1000 == 999:
                report(f"{number + 1} done")
    return counts


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries say about damaged folders."""
    import logging

    from transformers.utils import logging as library

    level = library.get_verbosity()
    library.set_verbosity(50)
    library.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        library.set_verbosity(level)


def show(counts: dict[str, Counter[str]]) -> str:
    """Return the counts as a table."""
    total: Counter[str] = sum(counts.values(), Counter())
    lines = ["".join([f"{'change':18}", *(f"{name:>9}" for name in ("mutants", *OUTCOMES))])]
    for kind, row in [*sorted(counts.items()), ("all", total)]:
        cells = (row.total(), *(row[name] for name in OUTCOMES))
        lines.append("".join([f"{kind:18}", *(f"{cell:9}" for cell in cells)]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--trace", action="store_true")
    chosen = parser.parse_args()
    globals()["TRACE"] = chosen.trace
    torch.set_num_threads(1)

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    numbers = range(chosen.start, chosen.start + chosen.count)
    counts = run(all_forms(), numbers, chosen.seed, report)
    print(show(counts))  # noqa: T201
    sys.exit(any(row[name] for row in counts.values() for name in BAD))


if __name__ == "__main__":
    main()
