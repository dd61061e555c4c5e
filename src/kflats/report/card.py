"""model_card: the README.md of a compressed checkpoint, complete as it is written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from kflats.storage.info import FolderInfo, TableInfo

_METHODS = {
    "flats": "affine subspaces of their own dimensions (kflats)",
    "codes": "packed codes (kflats)",
    "projective": "projective clustering (kflats)",
    "messi": "projective clustering, the paper's own procedure (MESSI)",
    "svd": "one singular value decomposition",
}
_LIBRARIES = {"SentenceTransformer": "sentence-transformers", "plain module": "kflats"}


def model_card(info: FolderInfo, name: str, base_model: str | None = None) -> str:
    """Return the card as Markdown with the metadata block of the Hub.

    Parameters
    ----------
    info : FolderInfo
        What the folder holds.
    name : str
        Folder or repository name, for the title and the example.
    base_model : str, optional
        Name on the Hub of the model that it was made from.
    """
    library = _LIBRARIES.get(info.architecture, "transformers")
    rows = "\n".join(_row(table) for table in info.tables)
    base = "" if base_model is None else f"base_model: {base_model}\n"
    return f"""---
library_name: {library}
{base}tags:
- kflats
- compression
- embedding-compression
---

# {name}

The token table of this {info.architecture} is compressed by kflats: {_stored(info)}. Compressing
changed no other weight.

| table | rows x columns | method | subspaces | rank | dense | now | relative error |
|---|---|---|---|---|---|---|---|
{rows}

Bytes count all that is stored for the table, in its storage type. The relative error is that of
the rows, ||A - A'||_F / ||A||_F, when the table was compressed; training afterwards changes it. All
tensors together: {info.tensor_bytes:,} bytes, with dense tables {info.dense_tensor_bytes:,}.

## Use

Loading it needs kflats. In a clone of its repository:

```
pip install -c constraints.txt -e '.{"" if library == "kflats" else "[hf]"}'
```

```python
{_example(info, name)}
```

{_abilities(info)}

## Method

Maalouf, Lang, Rus, Feldman, *Deep Learning Meets Projective Clustering*, ICLR 2021,
[arXiv:2010.04290](https://arxiv.org/abs/2010.04290). Format version {info.format_version}.
"""


def base_model(model: nn.Module) -> str | None:
    """Return the name on the Hub of the model that this was loaded as, if it came from there.

    A local folder is not told: it means nothing elsewhere.
    """
    from kflats.tables import transformers_roots

    for root in transformers_roots(model):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        name = str(root.config._name_or_path)
        with suppress(HFValidationError):
            if not Path(name).exists() and try_to_load_from_cache(name, "config.json"):
                return name
    return None


def _stored(info: FolderInfo) -> str:
    """Say how rows are stored; the tables of a folder are all of one form or of both."""
    forms = {
        True: "each row is stored as packed codes of few bits",
        False: "each row is stored as its\ncoefficients in one of a few subspaces",
    }
    return ", or ".join(forms[packed] for packed in sorted({t.is_packed for t in info.tables}))


def _abilities(info: FolderInfo) -> str:
    """Say what can be done with the model; each sentence holds for the form of its tables."""
    plain = info.architecture == "plain module"
    back = (
        "`kflats.to_dense_(model)` gives the dense table back"
        if plain
        else "`kflats restore FOLDER -o OUT` writes an ordinary dense checkpoint"
    ) + ", with the same outputs up to rounding"
    if any(table.is_packed for table in info.tables):
        return (
            "It runs and is saved like any model of its library. As it is, a packed table is not\n"
            f"trained, gets no new rows and has no ONNX form. {back}."
        )
    saved = "saved with `kflats.save`" if plain else "saved like any model of its library"
    return f"It trains like any model of its library and is {saved}. {back}."


def _row(table: TableInfo) -> str:
    shape = table.shape
    error = "not recorded" if table.relative_error is None else f"{table.relative_error:.4f}"
    kept = f" and {shape.n_exact} rows exact" if shape.n_exact else ""
    cells = (
        " = ".join(f"`{reader}`" for reader in table.readers),
        f"{shape.num_embeddings:,} x {shape.embedding_dim:,}",
        _METHODS.get(table.method, table.method),
        ("none" if table.is_packed else _subspaces(table)) + kept,
        "none" if table.is_packed else shape.rank_range,
        f"{table.dense_bytes:,} bytes",
        f"{table.num_bytes:,} bytes ({table.saving})",
        error,
    )
    return f"| {' | '.join(cells)} |"


def _subspaces(table: TableInfo) -> str:
    return f"{table.shape.n_clusters}{' affine' if table.shape.affine else ''}"


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
