"""Inputs for the forward of any class: several sets, until the dense model takes one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.sweep.rules import is_token
from tests.sweep.special import LENGTH, special_inputs

Inputs = dict[str, Any]
_ALWAYS = ("bbox", "decoder_input_values", "speaker_embeddings")
"""Parameters that have a default, and are needed all the same."""


def input_sets(model: Any) -> Iterator[Inputs]:
    """Yield sets of inputs that the signature of the model suggests, likely ones first."""
    known = _Known(model)
    special = special_inputs(model, known.ids())
    if special is not None:
        yield special
    seen: set[str] = set()
    for text in _texts(known):
        for other in _others(known):
            found = {**text, **other}
            wanted = [*known.required, *sorted({*_ALWAYS} & known.names)]
            missing = [name for name in wanted if name not in found]
            extra = {name: known.by_name(name) for name in missing}
            found |= {name: value for name, value in extra.items() if value is not None}
            mark = str({name: _described(value) for name, value in sorted(found.items())})
            if found and mark not in seen:
                seen.add(mark)
                yield found


def _described(value: Any) -> Any:
    return (value.shape, value.dtype, int(value.sum())) if isinstance(value, Tensor) else value


def _texts(known: _Known) -> Iterator[Inputs]:
    ids, mask = known.ids(), torch.ones(2, LENGTH, dtype=torch.long)
    if "input_ids" not in known.names:
        yield known.decoder({})
        return
    padded, shorter = known.padded(ids), mask.clone()
    shorter[1, -2:] = 0
    if known.choices:
        yield {"input_ids": known.ids(2, 3, LENGTH)}
    if "attention_mask" in known.names:
        yield known.decoder({"input_ids": padded, "attention_mask": shorter})
        yield known.decoder({"input_ids": ids, "attention_mask": mask})
    yield known.decoder({"input_ids": ids})
    yield {"input_ids": ids}
    if "use_cache" in known.names:
        yield known.decoder({"input_ids": ids, "use_cache": False})
    for count in (1, 4, 5, 6):
        yield known.decoder({"input_ids": known.with_images(ids, count), "attention_mask": mask})
    yield known.decoder({"input_ids": ids[:1], "attention_mask": mask[:1]})
    for codes in known.code_counts():
        yield {"input_ids": known.ids(2, LENGTH, codes)}
        yield {"input_ids": known.ids(2, codes, LENGTH)}
    yield {}


def _others(known: _Known) -> Iterator[Inputs]:
    yield {}
    features = sorted({"input_features", "audio_features"} & known.names)
    waves = sorted({"input_values", "audio_values"} & known.names)
    for images in known.images():
        yield images
        for wave in waves[:1]:
            yield {**images, wave: torch.randn(2, 2000)}
    for name in features:
        for shape in known.feature_shapes():
            yield {name: torch.randn(*shape)}
    for name in waves:
        for shape in ((2, 2000), (2, 1, 2000), (2, 24, known.value("num_mel_bins", 16))):
            yield {name: torch.randn(*shape)}


class _Known:
    """What the signature and the config of a model say about its inputs."""

    def __init__(self, model: Any) -> None:
        parameters = inspect.signature(model.forward).parameters
        self.model = model
        self.names = set(parameters)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self.required = [
            name
            for name, each in parameters.items()
            if each.default is inspect.Parameter.empty and each.kind not in kinds
        ]
        self.configs = list(_configs(model.config))
        self.choices = type(model).__name__.endswith("MultipleChoice")
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
        own = self.value("vocab_size", 300)
        self.rows = min(max(tables, default=300), *(s for s in tables if s >= 200), own, 300)
        self.special = {
            value
            for config in self.configs
            for name, value in vars(config).items()
            if is_token(name) and type(value) is int
        }

    def value(self, name: str, default: Any = None) -> Any:
        """Return a field of the config or of the first part that has it."""
        for config in self.configs:
            if type(found := vars(config).get(name)) is int:
                return found
        return default

    def ids(self, *shape: int) -> Tensor:
        """Return ids of ordinary tokens."""
        usable = [n for n in range(7, max(8, min(200, self.rows - 1))) if n not in self.special]
        generator = torch.Generator().manual_seed(3)
        places = torch.randint(len(usable), shape or (2, LENGTH), generator=generator)
        return torch.tensor(usable)[places]

    def padded(self, ids: Tensor) -> Tensor:
        """Return ids whose second row ends with the padding token."""
        pad = self.value("pad_token_id", 0)
        ids = ids.clone()
        ids[1, -2:] = pad if 0 <= pad < self.rows else 0
        return ids

    def with_images(self, ids: Tensor, count: int) -> Tensor:
        """Return ids with image tokens at the start."""
        token = self.value("image_token_id", self.value("image_token_index", 7))
        ids = ids.clone()
        ids[:, :count] = token if 0 <= token < self.rows else 7
        return ids

    def decoder(self, found: Inputs) -> Inputs:
        """Add ids for the decoder where the model takes them."""
        if "decoder_input_ids" not in self.names:
            return found
        codes = self.value("num_codebooks", 0)
        shape = (2 * codes, LENGTH - 4) if codes and "input_ids" in self.names else (2, LENGTH - 4)
        return {**found, "decoder_input_ids": self.ids(*shape)}

    def code_counts(self) -> list[int]:
        """Return how many codes of audio may belong to a token."""
        names = ("num_codebooks", "num_channels", "n_codes_total", "num_code_groups", "n_codebooks")
        counts = {self.value(name) for name in names} - {None, 0}
        return sorted(counts | {count + 1 for count in counts})

    def images(self) -> Iterator[Inputs]:
        """Yield images in the shapes that models take."""
        name = next((n for n in ("pixel_values", "images", "image") if n in self.names), None)
        if name is None:
            return
        size, channels = self.value("image_size", 28), self.value("num_channels", 3)
        shapes = [(2, channels, size, size), (2, 1, channels, size, size)]
        shapes += [(2, self.value("num_frames", 2), channels, size, size)]
        for shape in shapes:
            generator = torch.Generator().manual_seed(4)
            yield {name: torch.randn(*shape, generator=generator)}

    def feature_shapes(self) -> list[tuple[int, ...]]:
        """Return shapes of spectrograms."""
        names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "n_mels",
                 "feature_projection_input_dim", "mel_dim")  # fmt: skip
        bins = [self.value(name) for name in names if self.value(name)] or [80]
        frames = [2 * self.value("max_source_positions", 0) or 64, 64, 16]
        return [s for b in bins for f in frames for s in ((2, b, f), (2, f, b))]

    def by_name(self, name: str) -> Any:
        """Return something for a parameter that must be given."""
        if name == "codebook_idx":
            return 1
        if name == "bbox":
            return torch.tensor([1, 2, 5, 7]).expand(2, LENGTH, 4).clone()
        if name.endswith(("ids", "codes", "labels")):
            return self.ids(2, LENGTH)
        if name.endswith("mask"):
            return torch.ones(2, LENGTH, dtype=torch.long)
        sizes = self.float_sizes().get(name)
        return None if sizes is None else torch.randn(*sizes)

    def float_sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of parameters that are floats, by name."""
        size, channels = self.value("image_size", 28), self.value("num_channels", 3)
        wide = (2, LENGTH, self.value("hidden_size", self.value("d_model", 32)))
        names = ("encoder_outputs", "inputs_embeds", "hidden_states", "encoder_hidden_states")
        return {
            "decoder_input_values": (2, 8, self.value("num_mel_bins", 16)),
            "speaker_embeddings": (2, self.value("speaker_embedding_dim", 32)),
            "pixel_values": (2, channels, size, size),
            "images": (2, channels, size, size),
            "image": (2, 3, 224, 224),
            **dict.fromkeys(names, wide),
        }


def _configs(config: Any) -> Iterator[Any]:
    yield config
    parts = [part for part in vars(config).values() if hasattr(part, "to_dict")]
    yield from (each for part in sorted(parts, key=_text_first) for each in _configs(part))


def _text_first(config: Any) -> bool:
    return "text" not in str(getattr(config, "model_type", ""))
