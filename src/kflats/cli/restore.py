"""``kflats restore``: write the dense model back."""

from __future__ import annotations

from typing import Annotated

import typer

from kflats.cli.console import (
    JsonOption,
    OutputOption,
    emit,
    errors,
    output,
    quiet_libraries,
    tokenizer_saver,
)


def restore(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Compressed model.", show_default=False)
    ],
    out: OutputOption,
    json: JsonOption = False,
) -> None:
    """Write the model in FOLDER with ordinary dense tables, for programs without kflats."""
    from kflats.models import open_model
    from kflats.restore import to_dense_
    from kflats.storage.folder import check_new_folder, save_dense

    check_new_folder(out)
    quiet_libraries()
    with errors.status("loading the model"):
        model = open_model(folder)
    save_dense(to_dense_(model), out, extras=tokenizer_saver(model, folder))
    line = f"saved to {out}; its tables are the approximations, any program can load it"
    output.print(line, markup=False, highlight=False, soft_wrap=True)
    emit({"output": str(out)}, json)
