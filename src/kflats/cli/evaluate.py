"""``kflats evaluate``: what a model scores on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kflats.cli.console import JsonOption, ModelArgument, emit, errors, output, quiet_libraries


def evaluate(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="The task; sts is the only one so far.")] = "sts",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file or folder with sentence1, sentence2, score; the Hub's STS-B if "
            "left out."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "test",
    json: JsonOption = False,
) -> None:
    """Score MODEL as a sentence encoder: Spearman correlation of cosines with people's scores."""
    from kflats.evaluation.sts import load_pairs, sts_spearman
    from kflats.models import open_sentence_model

    if task != "sts":
        raise typer.BadParameter(f"task={task!r} is not known; allowed: sts.")
    pairs = load_pairs(data, split)
    quiet_libraries()
    with errors.status("loading the model"):
        encoder = open_sentence_model(model)
    with errors.status(f"encoding {len(pairs.scores)} pairs"):
        score = sts_spearman(encoder, pairs)
    line = f"{model}: Spearman x 100 = {score:.2f} on {len(pairs.scores)} pairs"
    output.print(line, markup=False, highlight=False, soft_wrap=True)
    emit(
        {
            "model": model,
            "task": task,
            "metric": "cosine_spearman_x100",
            "score": score,
            "pairs": len(pairs.scores),
            "data": pairs.source,
        },
        json,
    )
