from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest

from kflats import CompressionConfig, InputError


def test_method_follows_from_the_size_where_none_is_chosen() -> None:
    assert CompressionConfig(bits=2).method == "codes"
    assert CompressionConfig(compression=0.4).method == "flats"
    assert CompressionConfig(target_bytes=1000).method == "flats"


@pytest.mark.parametrize("method", ["flats", "svd", "projective", "messi"])
def test_bits_with_a_chosen_method_other_than_codes_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=rf"method='{method}' takes no bits, got bits=2: leave"):
        CompressionConfig(bits=2, method=method)
    with pytest.raises(InputError, match="takes no bits"):
        replace(CompressionConfig(compression=0.4, method=method), compression=None, bits=2)
    assert CompressionConfig(bits=2, method="codes").method == "codes"


def test_replace_keeps_what_was_chosen_and_finds_the_rest_anew() -> None:
    by_bits = CompressionConfig(bits=2)
    assert replace(by_bits, random_state=1).method == "codes"
    assert replace(by_bits, bits=None, compression=0.4).method == "flats"
    by_parameters = CompressionConfig(compression=0.4)
    assert replace(by_parameters, random_state=1).method == "flats"
    assert replace(by_parameters, compression=None, bits=2).method == "codes"
    assert replace(CompressionConfig(compression=0.4, method="svd"), affine=True).method == "svd"


def test_method_is_text_to_everyone() -> None:
    config = CompressionConfig(bits=2)
    assert isinstance(config.method, str)
    assert json.dumps(config.method) == '"codes"'
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same.method == "codes"
        assert replace(same, bits=None, compression=0.4).method == "flats"
