from __future__ import annotations

import pytest
import torch
from torch import nn

from kflats import (
    BudgetError,
    CompressionConfig,
    FactorizedEmbedding,
    FactorizedLinear,
    compress_,
)
from tests.conftest import spectral_table, tiny_bert
from tests.test_tables import Speaking

HALF = CompressionConfig(compression=0.5, n_clusters=2)
DECODER = "cls.predictions.decoder"
WORDS = "bert.embeddings.word_embeddings"
IDS = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))


def test_tied_head_shares_the_factors_and_keeps_its_bias() -> None:
    model = tiny_bert("BertForMaskedLM")
    bias = model.get_output_embeddings().bias
    report = compress_(model, HALF)
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (type(words), type(head)) == (FactorizedEmbedding, FactorizedLinear)
    assert head.coefficients is words.coefficients
    assert head.bias is bias
    (table,) = report.tables
    assert (table.name, table.readers) == (WORDS, (WORDS, DECODER))
    assert table.bytes_after == words.num_bytes
    assert report.model_bytes_before - report.model_bytes_after == (
        table.bytes_before - table.bytes_after
    )
    assert f"{WORDS} = {DECODER}: 200 x 16" in str(report)
    assert report.to_dict()["tables"][0]["readers"] == [WORDS, DECODER]


def test_tied_model_computes_with_the_reconstructed_table() -> None:
    model, twin = tiny_bert("BertForMaskedLM"), tiny_bert("BertForMaskedLM")
    config = CompressionConfig(compression=0.4, n_clusters=2, affine=True, exact_ids=(0, 7))
    compress_(model, config)
    twin.get_input_embeddings().weight.data = model.get_input_embeddings().dense_rows()
    twin.tie_weights()
    torch.testing.assert_close(model(IDS).logits, twin(IDS).logits, rtol=1e-4, atol=1e-5)


def test_both_readers_of_a_tied_table_train_it() -> None:
    model = tiny_bert("BertForMaskedLM", pad_token_id=None)
    compress_(model, HALF)
    model(IDS, labels=IDS).loss.backward()
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
    unread = torch.ones(200, dtype=torch.bool)
    unread[IDS.flatten()] = False
    # Only the head gives a gradient to rows that are not in the text.
    places = words.places[unread].long()
    assert words.coefficients.grad.view(200, -1)[places].any(1).all()


def test_untied_head_gets_factors_of_its_own() -> None:
    model = tiny_bert("BertForMaskedLM", tie_word_embeddings=False)
    dense = model.get_output_embeddings().weight.detach().clone()
    report = compress_(model, HALF)
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert type(head) is FactorizedLinear
    assert head.coefficients is not words.coefficients
    assert [(t.name, t.readers) for t in report.tables] == [
        (WORDS, (WORDS,)),
        (DECODER, (DECODER,)),
    ]
    error = float((head.dense_rows() - dense).norm() / dense.norm())
    assert report.tables[1].relative_error == pytest.approx(error, rel=1e-5)
    assert all(table.compression >= 0.5 for table in report.tables)


def test_named_table_alone_leaves_an_untied_head() -> None:
    model = tiny_bert("BertForMaskedLM", tie_word_embeddings=False)
    head = model.get_output_embeddings()
    compress_(model, CompressionConfig(compression=0.5, n_clusters=2, modules=(WORDS,)))
    assert model.get_output_embeddings() is head


def test_head_of_a_plain_model_may_be_named() -> None:
    head = nn.Linear(24, 400)
    head.weight.data.copy_(spectral_table()[:, :6] @ torch.randn(6, 24))
    model = nn.Sequential(nn.ReLU(), head)
    hidden = torch.randn(3, 24)
    compress_(model, CompressionConfig(rank=6, n_clusters=1, modules=("1",), exact_ids=(3,)))
    assert isinstance(model[1], FactorizedLinear)
    torch.testing.assert_close(model(hidden), head(hidden.relu()), rtol=1e-3, atol=1e-3)


def test_target_size_is_that_of_all_tables_together() -> None:
    model = Speaking()
    model.words = nn.Embedding.from_pretrained(spectral_table(300, 8))
    model.head = nn.Linear(16, 300)
    model.head.weight.data.copy_(spectral_table(300, 16))
    report = compress_(model, CompressionConfig(target_bytes=15_000, n_clusters=2))
    words, head = (table.bytes_after for table in report.tables)
    assert 4000 < words <= 5000
    assert 9000 < head <= 10_000


def test_target_size_too_small_for_one_of_the_tables_changes_nothing() -> None:
    model = Speaking()
    with pytest.raises(BudgetError, match="while compressing 'words'"):
        compress_(model, CompressionConfig(target_bytes=300, n_clusters=1))
    assert (type(model.words), type(model.head)) == (nn.Embedding, nn.Linear)


def test_frozen_table_of_an_embedding_and_a_head_stays_frozen() -> None:
    model = Speaking()
    model.head.weight = model.words.weight
    model.words.requires_grad_(False)
    compress_(model, CompressionConfig(rank=2, n_clusters=2))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["places.weight", "head.bias"]
