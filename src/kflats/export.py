"""export_onnx: a compressed model as an ONNX graph that needs neither kflats nor PyTorch."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kflats.errors import ExportError, InputError, MissingExtraError, UnsupportedModelError
from kflats.extras import need
from kflats.layers import CodedTable
from kflats.storage.folder import new_folder
from kflats.storage.manifest import factor_layers
from kflats.tables import transformers_roots

_SHAPES = ((2, 11), (1, 3), (3, 24))
"""Batch and length of the tracing and of the checks."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes
    ----------
    folder : Path
        Holds ``model.onnx``, its weights in ``model.onnx.data``, and the configs.
    num_bytes : int
        Bytes of the graph and its weights on disk.
    inputs, outputs : tuple of str
        Names in the graph; batch and length are free.
    max_difference : float
        Largest absolute difference to PyTorch in the first output, ONNX Runtime on the CPU.
    """

    folder: Path
    num_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "folder": str(self.folder),
            "num_bytes": self.num_bytes,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "max_difference": self.max_difference,
        }


def export_onnx(
    model: nn.Module, folder: str | Path, *, extras: Callable[[Path], None] | None = None
) -> ExportReport:
    """Write a model as ONNX and check it with ONNX Runtime against PyTorch.

    The look-ups and logits are plain ONNX operators on the factors; no dense table is in the
    graph, and no note of where or by which lines of code it was made. The conversion is that of
    ``transformers.exporters``. Of a SentenceTransformer the
    encoder is exported: pooling is left to the program that runs it.

    Parameters
    ----------
    model : PreTrainedModel or SentenceTransformer
        Dense or compressed, on the CPU. It is put into evaluation mode.
    folder : path
        Must not exist; it appears only if the check passed.
    extras : callable, optional
        Called with the unfinished folder to add files, such as a tokenizer.

    Returns
    -------
    ExportReport
        Sizes, names and the difference found.

    Raises
    ------
    InputError
        If it is no transformers model with ``input_ids``, or in bfloat16, which ONNX Runtime does
        not compute in on the CPU.
    ExportError
        If the conversion fails, or the results differ by more than rounding.
    MissingExtraError
        If onnx, onnxscript or onnxruntime is not installed, or transformers is older than 5.16.
    CheckpointError
        If the folder exists or cannot be written.
    """
    converter, config_class = exporter()
    encoder = _encoder(model).eval()
    inputs = _sample(encoder, *_SHAPES[0])
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    config = config_class(dynamic_shapes=dict.fromkeys(inputs, free))
    target = Path(folder)
    with new_folder(target) as partial:
        with _quiet(), _no_cache(encoder):
            try:
                exported = converter.export(encoder, dict(inputs), config=config)
                exported.config = _plain_config(encoder)
                exported.save_pretrained(partial)
                _strip(partial / "model.onnx")
            except Exception as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ExportError(
                    f"{type(encoder).__name__} cannot be converted to ONNX: {first}"
                ) from error
        names, outputs, difference = _check(encoder, partial / "model.onnx")
        num_bytes = sum(path.stat().st_size for path in partial.glob("model.onnx*"))
        if extras is not None:
            extras(partial)
    return ExportReport(
        folder=target,
        num_bytes=num_bytes,
        inputs=names,
        outputs=outputs,
        max_difference=difference,
    )


def _strip(path: Path) -> None:
    """Take the notes of the converters out of a graph: stack traces with paths of this machine."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    _clear(model)
    onnx.save(model, path)


def _clear(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _clear(each)


def exporter() -> tuple[Any, Any]:
    """Return the exporter of transformers and the class of its settings.

    Raises
    ------
    MissingExtraError
        If a package that it needs is not installed, or transformers is older than 5.16.
    """
    need("onnx", "transformers", "onnx", "onnxruntime", "onnxscript")
    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise MissingExtraError("transformers 5.16 or newer", "onnx") from error
    return OnnxExporter(), OnnxConfig


def _encoder(model: nn.Module) -> Any:
    roots = list(transformers_roots(model))
    if len(roots) != 1 or roots[0].main_input_name != "input_ids":
        raise InputError(
            f"{type(model).__name__} holds {len(roots)} transformers models that take input_ids; "
            "exactly one can be exported."
        )
    if any(isinstance(layer, CodedTable) for layer in factor_layers(roots[0]).values()):
        raise UnsupportedModelError(
            "tables in packed codes have no ONNX form: compress with method='flats', or give the "
            "dense table back first with kflats.to_dense_(model)."
        )
    if roots[0].dtype == torch.bfloat16:
        raise InputError(
            "ONNX Runtime does not compute in bfloat16 on the CPU, so the graph could not be "
            "checked: convert with model.float() or model.half() first."
        )
    return roots[0]


def _sample(encoder: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Return inputs that use many rows of the table."""
    generator = torch.Generator().manual_seed(0)
    rows = min(
        [layer.shape.num_embeddings for layer in factor_layers(encoder).values()]
        or [encoder.config.get_text_config().vocab_size]
    )
    ids = torch.randint(0, rows, (batch, length), generator=generator)
    accepted = inspect.signature(encoder.forward).parameters
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(encoder.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if encoder.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    return {name: value for name, value in inputs.items() if name in accepted}


def _plain_config(encoder: Any) -> Any:
    """Return the config without the description of factors: the graph needs none."""
    config = copy.deepcopy(encoder.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


@contextmanager
def _no_cache(encoder: nn.Module) -> Iterator[None]:
    """Switch the cache of keys and values off: its tensors would be outputs of the graph."""
    parts: list[Any] = [getattr(module, "config", None) for module in encoder.modules()]
    configs = {id(each): each for each in parts if hasattr(each, "use_cache")}.values()
    before = [each.use_cache for each in configs]
    for each in configs:
        each.use_cache = False
    try:
        yield
    finally:
        for each, value in zip(configs, before, strict=True):
            each.use_cache = value


def _check(encoder: Any, path: Path) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """Return input and output names, and the largest difference to PyTorch."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise ExportError(f"ONNX Runtime cannot load the graph: {error}") from error
    names = tuple(each.name for each in session.get_inputs())
    outputs = tuple(each.name for each in session.get_outputs())
    worst = 0.0
    for batch, length in _SHAPES:
        inputs = _sample(encoder, batch, length)
        with torch.no_grad():
            expected = encoder(**inputs)[outputs[0]].float()
        feed = {name: inputs[name].numpy() for name in names}
        found = torch.from_numpy(session.run([outputs[0]], feed)[0]).float()
        difference = float((found - expected).abs().max())
        worst = max(worst, difference)
        # Rounding of the dtype, over some dozens of layers.
        allowed = 2e3 * torch.finfo(encoder.dtype).eps * max(1.0, float(expected.abs().max()))
        if found.shape != expected.shape or not difference <= allowed:
            raise ExportError(
                f"ONNX Runtime and PyTorch differ by {difference:.3g} in {outputs[0]} for a batch "
                f"of {batch} x {length}; {allowed:.3g} would be rounding. Nothing was written."
            )
    return names, outputs, worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notices of the converters to themselves; errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
