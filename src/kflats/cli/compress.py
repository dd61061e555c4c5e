"""``kflats compress``: replace the token table of a model and save the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kflats.cli.console import (
    JsonOption,
    ModelArgument,
    OutputOption,
    SeedOption,
    emit,
    errors,
    fitting,
    output,
    parse_size,
    quiet_libraries,
    tokenizer_saver,
)
from kflats.cli.planning import planning

if TYPE_CHECKING:
    from torch import nn

    from kflats.config import CompressionConfig


def compress(
    model: ModelArgument,
    out: OutputOption,
    compression: Annotated[
        float | None,
        typer.Option(help="Fraction of the table's parameters to remove, e.g. 0.4."),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(help="Most bytes of the table on disk, e.g. 5MB.")
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(help="Most bits on disk per parameter of the table, all counted, e.g. 2."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Smallest size at which --metric falls by no more than this, e.g. 0.5."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What the best plans are tried on: sts=FILE, pairs with scores."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Dimension of the subspaces; needs --clusters.")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Number of subspaces; chosen by trial if left out.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="flats (best geometry for the size), projective (the paper's geometry, best "
            "known start), messi (the paper's own procedure), svd or codes (few bits). Left out, "
            "flats for a compression or rank; for bytes or bits all are compared and the best is "
            "taken."
        ),
    ] = None,
    effort: Annotated[
        str, typer.Option(help="How long flats search: thorough or fast.")
    ] = "thorough",
    affine: Annotated[
        bool | None,
        typer.Option("--affine/--linear", help="Whether subspaces have means; flats do."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weight rows by token counts: a text file, a parquet file or JSON of counts."
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Text column of parquet files.")] = "text",
    smoothing: Annotated[float, typer.Option(help="Added to every count.")] = 10.0,
    power: Annotated[float, typer.Option(help="Power of the smoothed counts.")] = 0.5,
    relative: Annotated[
        float | None,
        typer.Option(
            help="1 minimises errors relative to each row, 0 absolute ones; by method if left out."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Measure errors in the directions the model uses on this text."),
    ] = None,
    keep_special: Annotated[
        bool, typer.Option("--keep-special", help="Store the special tokens exactly.")
    ] = False,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Embedding to compress instead of the token table; repeatable."),
    ] = None,
    base_model: Annotated[
        bool, typer.Option("--base-model", help="Load the model without its head.")
    ] = False,
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy", help="Entropy-code packed codes: a smaller file, the same in memory."
        ),
    ] = False,
    seed: SeedOption = 0,
    device: Annotated[str | None, typer.Option(help="Where to cluster, e.g. cuda.")] = None,
    json: JsonOption = False,
) -> None:
    """Replace the embedding table of MODEL by a small one and save it to a new folder."""
    from kflats.compress import compress_
    from kflats.extras import need
    from kflats.models import open_model
    from kflats.storage.folder import check_new_folder, save
    from kflats.weighting.weights import check_texts

    counting = None
    if weights is not None:
        counting = {"source": weights, "column": column, "smoothing": smoothing, "power": power}
    sized = (compression, rank, clusters, affine, calibrate)
    planned = method is None and all(each is None for each in sized)
    if not planned and (metric is not None or max_drop is not None):
        raise typer.BadParameter(
            "--metric and --max-drop compare methods: leave out --method, --compression, --rank, "
            "--clusters, --affine and --calibrate."
        )
    if max_drop is not None and metric is None:
        raise typer.BadParameter("--max-drop needs --metric, e.g. --metric sts=FILE.")
    config = _config(
        compression=compression,
        target_bytes=None if target_size is None else parse_size(target_size),
        bits=8.0 if max_drop is not None and bits is None and target_size is None else bits,
        rank=rank,
        n_clusters=clusters,
        **_method(method, planned and target_size is not None),
        effort=effort,
        affine=affine,
        relative=relative,
        modules=tuple(module) if module else None,
        random_state=seed,
        device=device,
    )
    if entropy:
        _check_entropy(config, planned)
    check_texts(weights)
    check_texts(calibrate)
    if metric is not None:
        need("demo", "pandas", "pyarrow")
    check_new_folder(out)
    quiet_libraries()
    with errors.status("loading the model"):
        opened = open_model(model, base_model=base_model)
    config = _with_tokens(config, opened, model, counting, keep_special)
    config = _with_metric(config, opened, model, calibrate, column)
    if planned:
        config = planning(opened, config, metric, max_drop)
    with fitting("compressing") as callback:
        report = compress_(opened, config, callback=callback)
    coded = entropy and config.method == "codes"
    save(opened, out, report=report, extras=tokenizer_saver(opened, model), entropy=coded)
    text = (
        f"{report}\nsaved to {out}; load it with kflats.load({str(out)!r}), or after import kflats "
        f"as any model{_sizes(out, coded) if entropy else ''}"
    )
    output.print(text, markup=False, highlight=False, soft_wrap=True)
    emit({"output": str(out), **report.to_dict()}, json)


def _check_entropy(config: CompressionConfig, planned: bool) -> None:
    """Stop before long work if no table can be entropy-coded."""
    from kflats.quantization.entropy import coders

    if config.method != "codes" and not planned:
        raise typer.BadParameter(
            f"--entropy is for packed codes, not for method {config.method}: give --bits, or "
            "--method codes with --target-size."
        )
    coders()


def _sizes(folder: Path, coded: bool) -> str:
    """Say what tables take on disk and in memory."""
    from kflats.storage.info import folder_info

    if not coded:
        return "\nthe best plan has no packed codes: --entropy changes nothing"
    return "".join(
        f"\n{table.name}: {table.num_bytes:,} bytes on disk, {table.resident_bytes:,} in memory"
        for table in folder_info(folder).tables
    )


def _method(method: str | None, by_bytes: bool) -> dict[str, str]:
    """Return the method where one is chosen; a plan for bytes starts from codes."""
    chosen = method or ("codes" if by_bytes else None)
    return {} if chosen is None else {"method": chosen}


def _config(**settings: Any) -> CompressionConfig:
    """Return the checked config; a wrong setting is wrong usage."""
    from kflats.config import CompressionConfig
    from kflats.errors import InputError

    try:
        return CompressionConfig(**settings)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _with_tokens(
    config: CompressionConfig,
    opened: nn.Module,
    name: str,
    counting: dict[str, Any] | None,
    keep_special: bool,
) -> CompressionConfig:
    """Add what needs the tokenizer: row weights and the ids of special tokens."""
    if counting is None and not keep_special:
        return config
    from dataclasses import replace

    from kflats.models import tokenizer_of
    from kflats.tables import find_tables
    from kflats.weighting.weights import token_weights

    tokenizer = tokenizer_of(opened, name)
    if keep_special:
        config = replace(config, exact_ids=tuple(sorted(set(tokenizer.all_special_ids))))
    if counting is not None:
        rows = find_tables(opened, config.modules)[0].weight.shape[0]
        settings = dict(counting)
        source = settings.pop("source")
        with errors.status("counting tokens"):
            weights = token_weights(source, tokenizer, rows, **settings)
        config = replace(config, sample_weight=weights)
    return config


def _with_metric(
    config: CompressionConfig, opened: nn.Module, name: str, calibrate: Path | None, column: str
) -> CompressionConfig:
    """Add the directions that the model uses on a text."""
    if calibrate is None:
        return config
    from dataclasses import replace

    from kflats.models import tokenizer_of
    from kflats.weighting.calibration import feature_moments
    from kflats.weighting.weights import read_texts

    tokenizer = tokenizer_of(opened, name)
    with errors.status("calibrating"):
        texts = read_texts(calibrate, column)
        metric = feature_moments(opened, tokenizer, texts, modules=config.modules)
    return replace(config, metric=metric)
