"""``kflats export``: a model as ONNX."""

from __future__ import annotations

from typing import Annotated

import typer

from kflats.cli.console import (
    JsonOption,
    ModelArgument,
    OutputOption,
    emit,
    errors,
    output,
    quiet_libraries,
    tokenizer_saver,
)


def export(
    model: ModelArgument,
    out: OutputOption,
    format: Annotated[str, typer.Option(help="onnx is the only one so far.")] = "onnx",  # noqa: A002
    json: JsonOption = False,
) -> None:
    """Convert MODEL, compressed or dense, to ONNX and check it with ONNX Runtime."""
    from kflats.export import export_onnx, exporter
    from kflats.models import open_model
    from kflats.storage.folder import check_new_folder

    if format != "onnx":
        raise typer.BadParameter(f"format={format!r} is not known; allowed: onnx.")
    check_new_folder(out)
    quiet_libraries()
    exporter()
    with errors.status("loading the model"):
        opened = open_model(model)
    with errors.status("converting and checking"):
        report = export_onnx(opened, out, extras=tokenizer_saver(opened, model, always=True))
    line = (
        f"saved to {out}: {report.num_bytes:,} bytes, {', '.join(report.inputs)} -> "
        f"{', '.join(report.outputs)}; largest difference to PyTorch {report.max_difference:.1e}"
    )
    output.print(line, markup=False, highlight=False, soft_wrap=True)
    emit(report.to_dict(), json)
