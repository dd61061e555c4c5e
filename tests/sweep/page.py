"""``python -m tests.sweep.page [ROWS]``: write docs/architectures.md from the committed results.

With a file that ``python -m tests.sweep --out ROWS`` wrote, its families replace those of the
results first.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sweep.forms import FORMS
from tests.sweep.outcome import CANNOT, ERROR, REFUSED, SAME, SILENT
from tests.sweep.results import ROOT, Families, gather, read, write

PAGE = ROOT / "docs" / "architectures.md"
_INTRO = """# Model classes of transformers

Every text, speech and vision-language class of transformers {transformers} that a tiny random
model can be built of, tried with both forms of compression: `flats` at `compression=0.4`, and
packed `codes` of `bits=4`. *Same* means that all of this holds:

- the forward, and the gradients of all other weights, equal those of the dense model that holds the
  compressed table as a matrix; factors get finite gradients, in training mode too;
- a zero padding row stays zero;
- `save_pretrained`, and `from_pretrained` of the class in a fresh process, give the same outputs,
  and `AutoModel.from_pretrained`, where that is another class, the same rows of tokens;
- after `kflats.to_dense_`, a process that never imports kflats loads the saved folder and gives
  the same outputs.

Each step is asked of the dense model first; what that cannot do is not asked of the compressed one.
*Dense cannot* also counts classes for which the sweep knows no tiny config or no inputs. *Refused*
means that `compress_` raised an error that names the reason, and changed nothing.

    python -m tests.sweep --only bert,clip     # families are the folders of transformers.models
    python -m tests.sweep --write              # all of them: writes the results and this page

Seed {seed}, one thread, kflats {kflats}, torch {torch}, {date}.
"""


def render(results: dict[str, Any]) -> str:
    """Return the page."""
    families: Families = results["result"]
    parts = [_INTRO.format(**results["provenance"]), *_counts(families), *_table(families)]
    parts += _reasons(families)
    return "\n".join(parts) + "\n"


def kind_of(outcome: str) -> str:
    """Return the outcome without its step and reason."""
    return next(kind for kind in (SAME, REFUSED, SILENT, ERROR, CANNOT) if outcome.startswith(kind))


def outcomes(families: Families) -> Iterator[tuple[str, str, str, str]]:
    """Yield family, class, form and outcome."""
    for family, classes in families.items():
        for name, entry in classes.items():
            for form in ("all", *FORMS):
                if form in entry:
                    yield family, name, form, entry[form]


def _counts(families: Families) -> list[str]:
    counts = {form: Counter[str]() for form in FORMS}
    for _, _, form, outcome in outcomes(families):
        for each in FORMS if form == "all" else (form,):
            counts[each][kind_of(outcome)] += 1
    classes = sum(map(len, families.values()))
    lines = [f"{classes} classes of {len(families)} families:", ""]
    lines += [f"| | {' | '.join(FORMS)} |", f"|---|{'---|' * len(FORMS)}"]
    for kind in (SAME, REFUSED, SILENT, ERROR, CANNOT):
        lines.append(f"| {kind} | {' | '.join(str(counts[form][kind]) for form in FORMS)} |")
    return lines


def _table(families: Families) -> list[str]:
    lines = ["", "## By family", "", f"| family | classes | {' | '.join(FORMS)} |"]
    lines.append(f"|---|---|{'---|' * len(FORMS)}")
    for family, classes in families.items():
        cells = [_cell(classes, form) for form in FORMS]
        lines.append(f"| {family} | {', '.join(classes)} | {' | '.join(cells)} |")
    return lines


def _cell(classes: dict[str, dict[str, Any]], form: str) -> str:
    found: dict[str, list[str]] = {}
    for name, entry in classes.items():
        found.setdefault(kind_of(entry.get("all") or entry[form]), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{kind}: {len(names)}" for kind, names in found.items())


def _reasons(families: Families) -> list[str]:
    lines: list[str] = []
    for kind in (SILENT, ERROR, REFUSED, CANNOT):
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}
        for family, name, form, outcome in outcomes(families):
            if kind_of(outcome) == kind:
                reason = outcome.removeprefix(kind).removeprefix(": ").strip()
                found = groups.setdefault((family, _short(reason)), {})
                found.setdefault(name, []).append(form)
        if groups:
            lines += ["", f"## {kind.capitalize()}", ""]
        lines += [
            f"- {family}: {', '.join(map(_label, names.items()))}: {reason}"
            for (family, reason), names in groups.items()
        ]
    return lines + _partly(families)


def _label(found: tuple[str, list[str]]) -> str:
    name, forms = found
    return f"{name} ({forms[0]})" if forms[0] in FORMS and len(forms) < len(FORMS) else name


def _partly(families: Families) -> list[str]:
    lines = []
    for classes in families.values():
        for name, entry in classes.items():
            for step, reason in entry.get(CANNOT, {}).items():
                lines.append(f"- {name}, {step}: {_short(reason)}")
    title = ["", "## Steps that the dense model cannot do", "", "All other steps were tried.", ""]
    return title + lines if lines else []


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 200 else text[:199] + "…"


if __name__ == "__main__":
    for file in sys.argv[1:]:
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        write(gather(rows), {row["family"] for row in rows})
    PAGE.write_text(render(read()), encoding="utf-8")
