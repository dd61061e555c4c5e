"""Checksums: the optional field of a description that tells damage from what was saved."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from kflats.errors import InputError
from kflats.factors.shape import check_fields

FIELD = "checksums"
_FIELDS = ["tables", "tensors", "config"]


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """CRC-32 of the parts of a compressed folder, as 8 hexadecimal digits.

    Attributes
    ----------
    tables : dict
        For every table that of its description, its readers and all bytes of its tensors.
    tensors : str
        Of all other tensors: name, dtype, shape, and the bytes at both ends.
    config : str
        Of what else says how the folder is read: the class of the model, or the aliases.
    """

    tables: dict[str, str]
    tensors: str
    config: str

    @classmethod
    def from_dict(cls, data: Any, tables: list[str]) -> Self:
        """Return the checksums a JSON object describes.

        Raises
        ------
        InputError
            If they are not one for each of the ``tables`` and two more.
        """
        check_fields(data, _FIELDS, f"the object {FIELD!r}")
        check_fields(data["tables"], tables, f"the object 'tables' of {FIELD!r}")
        for text in [*data["tables"].values(), data["tensors"], data["config"]]:
            if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{8}", text):
                raise InputError(
                    f"{FIELD} holds {str(text)[:40]!r}; checksums have 8 hexadecimal digits."
                )
        return cls(**data)
