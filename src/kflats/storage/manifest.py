"""The description of factorised tables in a checkpoint: what a skeleton needs before weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn

from kflats.errors import CheckpointError, InputError
from kflats.factors.shape import FactorShape, check_fields
from kflats.layers import (
    FactorizedEmbedding,
    FactorizedEmbeddingBag,
    FactorizedLinear,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantizedLinear,
    StoredTable,
    TableBag,
    TableEmbedding,
    TableLinear,
)
from kflats.layers.bag import MODES
from kflats.layers.stored import FILE_NAMES
from kflats.quantization.entropy import decompress_codes
from kflats.quantization.shape import CodeShape
from kflats.storage.checksums import FIELD, Checksums
from kflats.storage.json_files import check_depth

MANIFEST = "kflats.json"
FORMAT_VERSION = 4
NAMES = "names"
CODES, ENTROPY = "codes", "entropy"
_CLASSES: dict[str, tuple[type[StoredTable], type[StoredTable]]] = {
    "embedding": (FactorizedEmbedding, QuantizedEmbedding),
    "linear": (FactorizedLinear, QuantizedLinear),
    "bag": (FactorizedEmbeddingBag, QuantizedEmbeddingBag),
}
_LARGEST = 2.0**1000
_FIELDS = ("kind", "table", "padding_idx", "scale")
_OF_BAGS = ("mode", "include_last_offset")


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One factorised table: its tensors lie under the name of the first module that reads it.

    Attributes
    ----------
    shape : FactorShape or CodeShape
        Rows, columns, and the groups of rows with their bases and their ranks or bits.
    storage : dict
        How each tensor is stored: factors as 'float', the pivots of an echelon form as 'bits', one
        per column; packed coefficients as 'codes', or as 'entropy' if they are entropy-coded in
        the file, and their bases as 'int8' or 'int16'.
    origin : dict
        How the factors were found (method, relative error); empty if unknown.
    """

    shape: FactorShape | CodeShape
    storage: dict[str, str]
    origin: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the spec a JSON object describes; what is unknown or missing is refused."""
        check_fields(data, ["shape", "storage", "origin"], "a factorised table")
        storage = data["storage"]
        form = storage.get("coefficients") if isinstance(storage, dict) else None
        coded = form in (CODES, ENTROPY)
        shape = (CodeShape if coded else FactorShape).from_dict(data["shape"])
        expected = _storage(shape) | ({"coefficients": ENTROPY} if form == ENTROPY else {})
        if data["storage"] != expected:
            raise InputError(
                f"storage is {data['storage']}, this kflats reads {expected}: install a newer one."
            )
        _check_origin(data["origin"])
        return cls(shape=shape, storage=data["storage"], origin=data["origin"])

    @property
    def is_entropy_coded(self) -> bool:
        """Whether the tensor of the coefficients in the file is that of ``compress_codes``."""
        return self.storage["coefficients"] == ENTROPY

    def coefficients(self, stored: Tensor) -> Tensor:
        """Return the coefficients as layers have them.

        Raises
        ------
        CheckpointError
            If they are entropy-coded and damaged.
        """
        if self.is_entropy_coded and isinstance(self.shape, CodeShape):
            return decompress_codes(stored, self.shape)
        return stored


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """One module that reads a factorised table.

    Attributes
    ----------
    kind : {'embedding', 'linear', 'bag'}
        An embedding, an output head or an embedding bag; the table says whether of factors or of
        codes.
    table : str
        Name of the table.
    padding_idx : int or None
        As in ``nn.Embedding`` and ``nn.EmbeddingBag``; None for heads.
    scale : float
        Factor on the output of an embedding.
    mode : {'mean', 'sum', 'max'} or None
        How a bag makes one row of several; None for other kinds, which do not write it.
    include_last_offset : bool
        As in ``nn.EmbeddingBag``; only bags write it.
    """

    kind: str
    table: str
    padding_idx: int | None = None
    scale: float = 1.0
    mode: str | None = None
    include_last_offset: bool = False

    @classmethod
    def of(cls, layer: StoredTable, table: str) -> Self:
        """Return the spec of a layer that reads the table of that name."""
        if isinstance(layer, TableLinear):
            return cls(kind="linear", table=table)
        if isinstance(layer, TableBag):
            return cls(
                kind="bag",
                table=table,
                padding_idx=layer.padding_idx,
                mode=layer.mode,
                include_last_offset=layer.include_last_offset,
            )
        if isinstance(layer, TableEmbedding):
            return cls(
                kind="embedding", table=table, padding_idx=layer.padding_idx, scale=layer.scale
            )
        raise InputError(f"{type(layer).__name__} is no layer that kflats writes.")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        data = asdict(self)
        return data if self.kind == "bag" else {key: data[key] for key in _FIELDS}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Return the spec a JSON object describes; what is unknown or missing is refused."""
        is_bag = isinstance(data, dict) and data.get("kind") == "bag"
        check_fields(data, [*_FIELDS, *(_OF_BAGS if is_bag else ())], "a factorised module")
        spec = cls(**data)
        if not all(isinstance(data.get(key, ""), str) for key in ("kind", "mode")):
            raise InputError(f"kind={spec.kind!r} and mode={spec.mode!r} must be texts.")
        if not isinstance(spec.table, str):
            raise InputError(f"table={spec.table!r} must be a name.")
        if spec.kind not in _CLASSES:
            raise InputError(f"kind={spec.kind!r} must be 'embedding', 'linear' or 'bag'.")
        if is_bag and (spec.mode not in MODES or type(spec.include_last_offset) is not bool):
            raise InputError(
                f"mode={spec.mode!r} and include_last_offset={spec.include_last_offset!r} of a bag "
                f"must be one of {MODES}, and true or false."
            )
        if type(spec.scale) not in (int, float) or not abs(spec.scale) < _LARGEST:
            raise InputError(f"scale={spec.scale!r} must be a number, and finite.")
        if spec.padding_idx is not None and type(spec.padding_idx) is not int:
            raise InputError(f"padding_idx={spec.padding_idx!r} must be a whole number or null.")
        return spec

    def empty_layer(self, shape: FactorShape | CodeShape) -> StoredTable:
        """Return a layer of these sizes without storage."""
        make: Callable[..., StoredTable] = _CLASSES[self.kind][isinstance(shape, CodeShape)]
        settings: dict[str, Any] = {}
        if self.kind != "linear":
            settings["padding_idx"] = self.padding_idx
        if self.kind == "embedding":
            settings["scale"] = self.scale
        elif self.kind == "bag":
            settings |= {name: getattr(self, name) for name in _OF_BAGS}
        return make(shape, **settings, device="meta")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All factorised tables of a model by name, and the modules that read them.

    ``checksums`` are those of the files that it was read from, if they say, and ``names`` the names
    in the files of tensors that could not be found otherwise; a manifest that is written has none,
    see :func:`kflats.storage.seal.seal`.
    """

    tables: dict[str, TableSpec] = field(default_factory=dict)
    modules: dict[str, ModuleSpec] = field(default_factory=dict)
    checksums: Checksums | None = field(default=None, compare=False)
    names: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the manifest of a model."""
        tables: dict[str, TableSpec] = {}
        modules: dict[str, ModuleSpec] = {}
        layers = factor_layers(model)
        owners = owner_names(layers)
        for name, module in layers.items():
            table = owners[module.table_id]
            if table == name:
                storage = _storage(module.shape)
                tables[name] = TableSpec(
                    shape=module.shape, storage=storage, origin=dict(module.origin)
                )
            modules[name] = ModuleSpec.of(module, table)
        return cls(tables=tables, modules=modules)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        tables = {
            name: {**asdict(spec), "shape": spec.shape.to_dict()}
            for name, spec in self.tables.items()
        }
        return {
            "tables": tables,
            "modules": {name: spec.to_dict() for name, spec in self.modules.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the manifest a JSON object describes.

        Raises
        ------
        InputError
            If a field is unknown, missing or makes no sense.
        """
        check_fields(data, ["tables", "modules"], "the description of factorised layers")
        for key in ("tables", "modules"):
            if not isinstance(data[key], dict):
                raise InputError(f"{key} must be an object, got {data[key]!r}.")
        tables = {name: TableSpec.from_dict(each) for name, each in data["tables"].items()}
        modules = {name: ModuleSpec.from_dict(each) for name, each in data["modules"].items()}
        for name, module in modules.items():
            if module.table not in tables:
                raise InputError(
                    f"{name!r} reads the table {module.table!r}, which is not described."
                )
            rows = tables[module.table].shape.num_embeddings
            if module.padding_idx is not None and not 0 <= module.padding_idx < rows:
                raise InputError(
                    f"padding_idx={module.padding_idx} of {name!r} must be from 0 to {rows - 1}."
                )
        for name in tables:
            if name not in modules or modules[name].table != name:
                raise InputError(f"the table {name!r} is not read by the module of its name.")
        if not tables:
            raise InputError("tables describes no table: the folder is not compressed.")
        return cls(tables=tables, modules=modules)

    @property
    def blobs(self) -> set[str]:
        """Names of the entropy-coded tensors: flat, and of any length in a file."""
        coded = (name for name, spec in self.tables.items() if spec.is_entropy_coded)
        return {f"{name}.{FILE_NAMES['coefficients']}" for name in coded}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that the tables have in a file by name, without storage.

        Those of :attr:`blobs` as they are after loading.
        """
        return dict(self._tensors)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, spec in self.tables.items():
            for key, tensor in self.modules[name].empty_layer(spec.shape).state_dict().items():
                tensors[f"{name}.{FILE_NAMES[key]}"] = tensor
        return tensors

    def build(
        self, fill: Callable[[str, StoredTable], None] | None = None
    ) -> dict[str, StoredTable]:
        """Return a layer for every module; those with one table share its tensors.

        ``fill`` is called with name and layer of every table before its tensors are shared.
        """
        layers = {}
        for name, spec in self.modules.items():
            layers[name] = spec.empty_layer(self.tables[spec.table].shape)
            layers[name].origin = dict(self.tables[spec.table].origin)
        for name in self.tables:
            if fill is not None:
                fill(name, layers[name])
        for name, spec in self.modules.items():
            if spec.table != name:
                layers[name].share_with(layers[spec.table])
        return layers


def _check_origin(origin: Any) -> None:
    """Raise InputError unless reports can say how the factors were found."""
    if not isinstance(origin, dict):
        raise InputError(f"origin must be an object, got {origin!r}.")
    for key, value in origin.items():
        if key == "method":
            is_sound = isinstance(value, str)
        else:
            is_sound = value is None or isinstance(value, int | float | str)
            is_sound &= key != "relative_error" or not isinstance(value, bool | str)
        if not is_sound:
            raise InputError(
                f"origin has {key}={value!r}; method must be a text, relative_error a number or "
                "null, and anything else a number, a text or null."
            )


def _storage(shape: FactorShape | CodeShape) -> dict[str, str]:
    if isinstance(shape, CodeShape):
        kinds = {"coefficients": CODES, "bases": f"int{shape.basis_bits}"}
        return kinds | dict.fromkeys(["scales", "books", "exact"], "float")
    storage = {"coefficients": "float", "bases": "float"}
    if shape.affine:
        storage["means"] = "float"
    if shape.echelon:
        storage["pivots"] = "bits"
    return storage


def factor_layers(model: nn.Module) -> dict[str, StoredTable]:
    """Return every factorised layer of a model under each of its names."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, StoredTable)
    }


def owner_names(layers: dict[str, StoredTable]) -> dict[int, str]:
    """Return the name of the module that owns each table, by its ``table_id``.

    The owner is the one that shares from no other; of several, an embedding before a head.
    """
    order = sorted(layers, key=lambda name: _seniority(layers[name]))
    owners: dict[int, str] = {}
    for name in order:
        owners.setdefault(layers[name].table_id, name)
    return owners


def _seniority(layer: StoredTable) -> tuple[bool, bool]:
    return layer.is_shared, isinstance(layer, TableLinear)


def _names(data: Any, manifest: Manifest) -> dict[str, str]:
    """Return the names in files of some tensors of the tables, each a text and used once."""
    known = manifest.tensors()
    texts = isinstance(data, dict) and all(isinstance(key, str) for key in data.values())
    if not texts or not data.keys() <= known.keys() or len(set(data.values())) < len(data):
        raise InputError(
            f"{NAMES} must give one name in the files for some of {sorted(known)}, got "
            f"{str(data)[:80]}."
        )
    return dict(data)


def manifest_of_block(block: dict[str, Any], where: str) -> Manifest:
    """Return the manifest in a ``quantization_config`` or ``kflats.json``.

    Raises
    ------
    CheckpointError
        Naming ``where``, if the version is not the one this kflats reads, a field is unknown or
        missing, or a value makes no sense.
    """
    version = block.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format_version={version}; this kflats reads {FORMAT_VERSION}: install "
            "the kflats that wrote it, or a newer one."
        )
    check_depth(block, where)
    known = ["quant_method", "format_version", "layers"]
    try:
        optional = [name for name in (FIELD, NAMES) if name in block]
        check_fields(block, known + optional, "the description")
        manifest = Manifest.from_dict(block["layers"])
        if NAMES in block:
            manifest = replace(manifest, names=_names(block[NAMES], manifest))
        if FIELD in block:
            checksums = Checksums.from_dict(block[FIELD], list(manifest.tables))
            manifest = replace(manifest, checksums=checksums)
        return manifest
    except InputError as error:
        raise CheckpointError(f"{where}: {error}") from error
