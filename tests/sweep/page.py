"""``python -m tests.sweep.page``: write docs/architectures.md from the committed results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.sweep.forms import FORMS
from tests.sweep.outcome import CANNOT, ERROR, REFUSED, SAME, SILENT
from tests.sweep.results import ROOT, Families, read

PAGE = ROOT / "docs" / "architectures.md"
_INTRO = """# Model classes of transformers

Every text, speech and vision-language class of transformers {transformers} that a tiny random
model can be built of, tried with both forms of compression: `flats` at `compression=0.4`, and
packed `codes` of `bits=4`. *Same* means that all of this holds:

- the forward, and the gradients of all other weights, equal those of the dense model that holds the
  compressed table as a matrix; factors get finite gradients, in training mode too;
- a zero padding row stays zero;
- `save_pretrained`, and `from_pretrained` of the class in a fresh process, give the same outputs;
- after `kflats.to_dense_`, a process that never imports kflats loads the saved folder and gives
  the same outputs.

Each step is asked of the dense model first; what that cannot do is not asked of the compressed one.
*Refused* means that `compress_` raised an error that names the reason, and changed nothing.

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
    lines = ["", f"{classes} classes of {len(families)} families:", ""]
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
        groups: dict[tuple[str, str], list[str]] = {}
        for family, name, form, outcome in outcomes(families):
            if kind_of(outcome) == kind:
                reason = outcome.removeprefix(kind).removeprefix(": ").strip()
                found = groups.setdefault((family, _short(reason)), [])
                label = name if form == "all" else f"{name} ({form})"
                found.append(label)
        if groups:
            lines += ["", f"## {kind.capitalize()}", ""]
        lines += [
            f"- {family}: {', '.join(names)}: {reason}"
            for (family, reason), names in groups.items()
        ]
    return lines + _partly(families)


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
    PAGE.write_text(render(read()), encoding="utf-8")
