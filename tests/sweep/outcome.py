"""From what three processes found to one outcome for every class and form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sweep.forms import FORMS

SAME, REFUSED, SILENT, ERROR = "same", "refused", "silent difference", "error"
CANNOT, SKIPPED = "dense cannot", "no table"


def rows_of(write: Any, compressed: Any, plain: Any) -> Iterator[dict[str, Any]]:
    """Yield the outcome of every form of a class; nothing for what is no model."""
    for fault in ("crashed", "too long", "fault"):
        if fault in write:
            yield {"form": "all", "outcome": ERROR, "reason": f"{fault}: {write[fault]}"}
            return
    if write.get("skipped") == "no model":
        return
    facts = {"model_type": write["model_type"]}
    if "skipped" in write:
        yield {**facts, "form": "all", "outcome": SKIPPED}
        return
    if "forms" not in write:
        ((step, reason),) = write["dense cannot"].items()
        yield {**facts, "form": "all", "outcome": CANNOT, "step": step, "reason": reason}
        return
    cannot = dict(write["dense cannot"])
    if "save" not in cannot:
        cannot |= _dense_load(plain)
    for form in FORMS:
        facts |= {"sensitive": write["sensitive"], "dense cannot": cannot}
        yield {
            **facts,
            "form": form,
            **_outcome(form, write["forms"][form], cannot, compressed, plain),
        }


def _dense_load(plain: Any) -> dict[str, str]:
    if bad := _fault(plain):
        return {"load": bad}
    problems = plain.get("dense", [{"step": "load", "message": "nothing was loaded"}])
    return {each["step"]: each["message"] for each in problems}


def _fault(found: Any) -> str | None:
    for fault in ("crashed", "too long", "fault"):
        if fault in found:
            return f"{fault}: {found[fault]}"
    return None


def _outcome(form: str, found: Any, cannot: dict[str, str], compressed: Any, plain: Any) -> Any:
    problems = list(found["problems"])
    if "refused" in found:
        if problems:
            return _worst(problems, {})
        return {"outcome": REFUSED, "reason": found["refused"]}
    if "load" not in cannot and "save" not in cannot:
        for step, key, result in (
            ("load", form, compressed),
            ("load dense", f"{form}-dense", plain),
        ):
            if bad := _fault(result):
                problems.append({"kind": ERROR, "step": step, "message": bad})
            else:
                problems += [e for e in result.get(key, []) if e["step"] not in cannot]
    return _worst(problems, {"tables": found.get("tables", [])})


def _worst(problems: list[dict[str, str]], facts: dict[str, Any]) -> dict[str, Any]:
    if not problems:
        return {"outcome": SAME, **facts}
    first = sorted(problems, key=_harm)[0]
    return {
        "outcome": first["kind"],
        "step": first["step"],
        "reason": first["message"],
        "problems": problems,
        **facts,
    }


def _harm(problem: dict[str, str]) -> tuple[bool, bool]:
    return problem["step"] == "padding", problem["kind"] != SILENT
