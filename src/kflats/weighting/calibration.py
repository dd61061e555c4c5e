"""What a network does with its embeddings, from a pass over some text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.tables import find_tables

_TEXTS = 512
_BATCH = 16


def feature_moments(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    modules: tuple[str, ...] | None = None,
    max_texts: int = _TEXTS,
    max_length: int = 128,
    random_state: int = 0,
) -> Tensor:
    """Return the matrix that says which directions of the rows matter, for ``FeatureMetric.of``.

    For an output head it is E[h hT] of its inputs: the error of a logit is ``error of the row @
    h``. For an embedding it is E[g gT] of the gradients of random projections of the model's
    output by the embedded tokens: to first order the squared change of the output. A table that
    both read gets the mean of the two, each scaled to the same trace.

    Parameters
    ----------
    model : nn.Module
        A transformers or sentence-transformers model; its weights are not changed.
    tokenizer : transformers tokenizer
        Of the model.
    texts : iterable of str
        Text of the kind the model will see.
    modules : tuple of str, optional
        Embeddings to look at, as in :class:`kflats.CompressionConfig`.
    max_texts, max_length : int
        How many texts are used, and tokens of each.
    random_state : int, default=0
        Seed of the projections.

    Returns
    -------
    Tensor of shape (embedding_dim, embedding_dim), float64

    Raises
    ------
    InputError
        If there is no text.
    UnsupportedModelError
        If an embedding bag reads the table.
    """
    table = find_tables(model, modules)[0]
    if any(isinstance(module, nn.EmbeddingBag) for module in table.modules):
        raise UnsupportedModelError(
            f"{table.name!r} is read by an nn.EmbeddingBag, which gives no single rows to "
            "calibrate with: compress without a metric."
        )
    d = table.weight.shape[1]
    sums = {id(each): torch.zeros(d, d, dtype=torch.float64) for each in table.modules}
    generator = torch.Generator().manual_seed(random_state)
    stream = iter(texts)
    was_training, used = model.training, 0
    model.eval()
    try:
        with _watched(table.modules) as seen:
            while used < max_texts and (batch := list(islice(stream, _BATCH))):
                used += len(batch)
                _pass(model, _encoded(model, tokenizer, batch, max_length), generator, seen, sums)
    finally:
        model.train(was_training)
    if not used:
        raise InputError("there is no text to calibrate with.")
    found = [each / each.trace() for each in sums.values() if float(each.trace()) > 0]
    if not found:
        raise InputError(f"{table.name!r} was not used by the model on these texts.")
    return torch.stack(found).mean(0)


def _encoded(
    model: nn.Module, tokenizer: Any, batch: list[str], max_length: int
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked out, so any token does
    encoded = tokenizer(
        batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    return dict(encoded.to(device))


def _pass(
    model: nn.Module,
    features: dict[str, Tensor],
    generator: torch.Generator,
    seen: list[tuple[nn.Module, Tensor]],
    sums: dict[int, Tensor],
) -> None:
    """Add the moments of one batch to the sums."""
    seen.clear()
    with torch.enable_grad():
        output = _output(model, features)
        direction = torch.randn(output.shape, generator=generator).to(output)
        mask = features.get("attention_mask")
        if mask is not None and output.shape[:2] == mask.shape and output.ndim == 3:
            direction *= mask[..., None].to(output)
        inner = [rows for module, rows in seen if not isinstance(module, nn.Linear)]
        gradients = iter(torch.autograd.grad((output * direction).sum(), inner, allow_unused=True))
    for module, rows in seen:
        found = rows if isinstance(module, nn.Linear) else next(gradients)
        if found is not None:
            flat = found.detach().reshape(-1, found.shape[-1]).double().cpu()
            sums[id(module)] += flat.T @ flat


def _output(model: nn.Module, features: dict[str, Any]) -> Tensor:
    """Return what the model is used for: an embedding of the text, hidden states or logits."""
    is_sentence_model = hasattr(model, "get_sentence_embedding_dimension")
    outputs = model(features) if is_sentence_model else model(**features)
    if is_sentence_model:
        return outputs["sentence_embedding"]  # type: ignore[no-any-return]
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[0]  # type: ignore[no-any-return]


@contextmanager
def _watched(modules: tuple[nn.Module, ...]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect what goes into heads and what comes out of embeddings."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def on_head(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        seen.append((module, inputs[0]))

    def on_embedding(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        rows = output if output.requires_grad else output.detach().requires_grad_()
        seen.append((module, rows))
        return rows

    hooks = [
        each.register_forward_hook(on_head if isinstance(each, nn.Linear) else on_embedding)
        for each in modules
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
