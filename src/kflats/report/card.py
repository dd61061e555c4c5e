"""model_card: the README.md of a compressed checkpoint, complete as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kflats.storage.info import FolderInfo, TableInfo

_METHODS = {
    "flats": "affine subspaces of their own dimensions (kflats)",
    "codes": "packed codes (kflats)",
    "projective": "projective clustering (kflats)",
    "messi": "projective clustering, the paper's own procedure (MESSI)",
    "svd": "one singular value decomposition",
}
_LIBRARIES = {"SentenceTransformer": "sentence-transformers", "plain module": "kflats"}


def model_card(info: FolderInfo, name: str) -> str:
    """Return the card as Markdown with the metadata block of the Hub.

    Parameters
    ----------
    info : FolderInfo
        What the folder holds.
    name : str
        Folder or repository name, for the title and the example.
    """
    library = _LIBRARIES.get(info.architecture, "transformers")
    rows = "\n".join(_row(table) for table in info.tables)
    return f"""---
library_name: {library}
tags:
- kflats
- compression
- embedding-compression
---

# {name}

The token table of this {info.architecture} is compressed by kflats: each row is stored as its
coefficients in one of a few subspaces, or as packed codes of few bits. All other weights are as
they were in the model it was made from.

| table | rows x columns | method | subspaces | rank | dense | now | relative error |
|---|---|---|---|---|---|---|---|
{rows}

Bytes count all that is stored for the table, in its storage type. The relative error is
that of the rows, ||A - A'||_F / ||A||_F, when the factors were found; training afterwards changes
it. All tensors together: {info.tensor_bytes:,} bytes, with dense tables
{info.dense_tensor_bytes:,}.

## Use

```
pip install 'kflats[hf]'
```

```python
{_example(info, name)}
```

Without `import kflats` loading stops with an error about the shape of the table. It saves, trains
and exports like any model of its library. `kflats restore FOLDER -o OUT` writes an ordinary dense
checkpoint with the same outputs up to rounding.

## Method

Maalouf, Lang, Rus, Feldman, *Deep Learning Meets Projective Clustering*, ICLR 2021,
[arXiv:2010.04290](https://arxiv.org/abs/2010.04290). Format version {info.format_version}.
"""


def _row(table: TableInfo) -> str:
    shape = table.shape
    error = "not recorded" if table.relative_error is None else f"{table.relative_error:.4f}"
    kept = f" and {shape.n_exact} rows exact" if shape.n_exact else ""
    cells = (
        " = ".join(f"`{reader}`" for reader in table.readers),
        f"{shape.num_embeddings:,} x {shape.embedding_dim:,}",
        _METHODS.get(table.method, table.method),
        f"{shape.n_clusters}{' affine' if shape.affine else ''}{kept}",
        shape.rank_range,
        f"{table.dense_bytes:,} bytes",
        f"{table.num_bytes:,} bytes ({table.saving})",
        error,
    )
    return f"| {' | '.join(cells)} |"


def _example(info: FolderInfo, name: str) -> str:
    if info.architecture == "SentenceTransformer":
        return (
            "import kflats\nfrom sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")\n'
            'print(model.encode(["The ferry leaves at seven."]).shape)'
        )
    if info.architecture == "plain module":
        return f'import kflats\n\nmodel = kflats.load("{name}", model=the_dense_model)'
    return (
        f"import kflats\nfrom transformers import {info.architecture}\n\n"
        f'model = {info.architecture}.from_pretrained("{name}")'
    )
