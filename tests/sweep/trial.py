"""What one class does, dense and compressed, up to the folders that fresh processes load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.sweep.classes import model_class
from tests.sweep.compare import CLOSE, difference, gradient_difference
from tests.sweep.dense import (
    CannotError,
    NoTableError,
    build,
    outputs,
    said,
    token_rows,
    usable_inputs,
)
from tests.sweep.forms import FORMS
from tests.sweep.inputs import Inputs

Record = dict[str, Any]


class Notes:
    """Collects what went wrong, step by step."""

    def __init__(self) -> None:
        self.problems: list[dict[str, str]] = []

    def add(self, kind: str, step: str, message: str) -> None:
        """Note a problem."""
        self.problems.append({"kind": kind, "step": step, "message": message})

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note an exception as the error of a step."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  the sweep goes on
            self.add("error", name, said(error))

    def differs(self, step: str, found: str | None) -> None:
        """Note a difference, if there is one."""
        if found is not None:
            self.add("silent difference", step, found)

    @property
    def steps(self) -> set[str]:
        """Steps with a problem."""
        return {problem["step"] for problem in self.problems}


def run_class(name: str, folder: Path) -> Record:
    """Try a class; write what is to be loaded into ``folder`` and return what is known so far."""
    record: Record = {"class": name.split(":")[1], "module": name.split(":")[0]}
    try:
        kind = model_class(name)
    except ImportError as error:
        return {**record, "model_type": None, "dense cannot": {"import": said(error)}}
    if kind is None:
        return {**record, "skipped": "no model"}
    record["model_type"] = kind.config_class.model_type
    try:
        dense = build(kind)
    except NoTableError:
        return {**record, "skipped": "no table"}
    except Exception as error:  # noqa: BLE001
        return {**record, "dense cannot": {"build": said(error)}}
    try:
        inputs, record["sensitive"] = usable_inputs(dense)
        expected = outputs(dense, inputs)
        if difference(outputs(dense, inputs), expected, CLOSE):
            raise CannotError("the same outputs twice")
    except Exception as error:  # noqa: BLE001
        return {**record, "dense cannot": {"forward": said(error)}}
    record["inputs"] = sorted(inputs)
    torch.save(inputs, folder / "inputs.pt")
    failed = _dense_steps(dense, inputs, expected, folder)
    record["dense cannot"] = failed
    record["forms"] = {form: _form(form, dense, inputs, failed, folder) for form in FORMS}
    return record


def _dense_steps(
    dense: Any, inputs: Inputs, expected: dict[str, Tensor], folder: Path
) -> dict[str, str]:
    notes = Notes()
    with notes.step("copy"):
        copy.deepcopy(dense)
    with notes.step("backward"):
        gradients(dense, inputs)
    with notes.step("training"):
        _train(dense, inputs)
    with notes.step("save"):
        _save(dense, folder / "dense", expected)
    return {each["step"]: each["message"] for each in notes.problems}


def gradients(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Return the gradients of a loss of all float outputs."""
    model.zero_grad()
    found = [each for each in outputs(model, inputs, grad=True).values() if each.requires_grad]
    if not found:
        raise CannotError("no output has a gradient")
    loss = sum(torch.nan_to_num(each, 0.0, 0.0, 0.0).square().mean() for each in found)
    loss.backward()  # type: ignore[union-attr]
    result = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def _train(model: Any, inputs: Inputs) -> None:
    """Forward and backward in training mode, with a copy."""
    gradients(copy.deepcopy(model).train(), inputs)


def _save(model: Any, folder: Path, expected: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    torch.save({name: each.detach() for name, each in expected.items()}, folder / "outputs.pt")
    torch.save(token_rows(model), folder / "rows.pt")
    model.save_pretrained(folder / "model")


def _form(form: str, dense: Any, inputs: Inputs, failed: dict[str, str], folder: Path) -> Record:
    import kflats

    notes = Notes()
    model = copied(dense)
    before = outputs(model, inputs)
    try:
        report = kflats.compress_(model, kflats.CompressionConfig(**FORMS[form]))
    except (kflats.InputError, kflats.UnsupportedModelError) as error:
        _check_untouched(model, inputs, before, notes)
        return {"refused": said(error), "problems": notes.problems}
    except Exception as error:  # noqa: BLE001
        notes.add("error", "compress", said(error))
        return {"problems": notes.problems}
    return {
        "tables": [list(table.readers) for table in report.tables],
        **_use(form, model, dense, inputs, failed, folder, notes),
    }


def _check_untouched(model: Any, inputs: Inputs, before: dict[str, Tensor], notes: Notes) -> None:
    from kflats.layers import StoredTable

    if any(isinstance(module, StoredTable) for module in model.modules()):
        notes.add("error", "compress", "refused, but a layer was replaced")
    with notes.step("compress"):
        notes.differs("compress", difference(outputs(model, inputs), before, 0.0))


def _use(
    form: str, model: Any, dense: Any, inputs: Inputs, failed: dict[str, str], folder: Path,
    notes: Notes,
) -> Record:  # fmt: skip
    import kflats

    reference: Any = None
    with notes.step("reconstruct"):
        reference = reconstructed(dense, model, notes)
    got: dict[str, Tensor] = {}
    with notes.step("forward"):
        got = outputs(model, inputs)
        notes.differs("forward", difference(got, outputs(reference, inputs), CLOSE))
    if "backward" not in failed:
        with notes.step("backward"):
            _backward(form, model, reference, inputs, notes)
    if "training" not in failed and form == "flats":
        with notes.step("training"):
            _train(model, inputs)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("save", lambda: _save(model, folder / form, got)),
        ("to_dense", lambda: _to_dense(model, inputs, got, notes)),
        ("save dense", lambda: _save(model, folder / f"{form}-dense", got)),
    ]
    for step, run in steps if got and "save" not in failed else steps[1:2]:
        with notes.step(step):
            run()
        if step in notes.steps and step == "to_dense":
            break
    del kflats
    return {"problems": notes.problems}


def _to_dense(model: Any, inputs: Inputs, got: dict[str, Tensor], notes: Notes) -> None:
    import kflats

    kflats.to_dense_(model)
    if got:
        notes.differs("to_dense", difference(outputs(model, inputs), got, CLOSE))


def copied(dense: Any) -> Any:
    """Return a copy, built anew where a model keeps what cannot be copied after a forward."""
    try:
        return copy.deepcopy(dense)
    except RuntimeError:
        return build(type(dense))


def reconstructed(dense: Any, model: nn.Module, notes: Notes) -> Any:
    """Return a copy of the dense model whose tables are those that the compressed one gives."""
    from kflats.layers import StoredTable

    copy_of = copied(dense)
    for name, layer in model.named_modules():
        if not isinstance(layer, StoredTable):
            continue
        old = copy_of.get_submodule(name)
        rows = layer.dense_rows()
        padding = getattr(old, "padding_idx", None)
        if padding is not None and not old.weight[padding].any() and rows[padding].any():
            size = float(rows[padding].abs().max())
            notes.add("silent difference", "padding", f"{name}: the zero row has {size:.1e}")
        with torch.no_grad():
            old.weight.copy_(rows)
    return copy_of


def _backward(form: str, model: Any, reference: Any, inputs: Inputs, notes: Notes) -> None:
    from kflats.layers import StoredTable

    want = gradients(reference, inputs)
    stored = {n for n, m in model.named_modules() if isinstance(m, StoredTable)}
    tables = {id(p) for n in stored for p in reference.get_submodule(n).parameters()}
    names = {n: p for n, p in reference.named_parameters(remove_duplicate=False) if id(p) in tables}
    others = {name: each for name, each in want.items() if name not in names}
    if form == "codes" and not others:
        return
    got = gradients(model, inputs)
    notes.differs("backward", gradient_difference(got, others))
    if form == "codes":
        return
    ours = {n: g for n, g in got.items() if n.rpartition(".")[0] in stored}
    if any(name in want and want[name].any() for name in names) and not ours:
        notes.add("error", "backward", "the factors have no gradient")
    # Splinter masks logits with the least number there is: no loss of them has finite gradients.
    finite = all(bool(want[name].isfinite().all()) for name in names if name in want)
    for name, each in ours.items():
        if finite and not bool(each.isfinite().all()):
            notes.add("error", "backward", f"the gradient of {name} is not finite")
