"""Register the plug-ins for other libraries when, and only when, those are used.

``import kflats`` must stay quick, so neither transformers nor sentence-transformers is imported
for it; instead their model code calls back once it is there (at once, if it is already).
"""

from __future__ import annotations

import warnings
from types import ModuleType

import wrapt

_STATIC = "sentence_transformers.sentence_transformer.modules.static_embedding"


def install() -> None:
    """Arrange for the plug-ins to be put in place after the import of what they extend."""
    wrapt.register_post_import_hook(_register, "transformers.modeling_utils")
    wrapt.register_post_import_hook(_register_static, _STATIC)
    wrapt.register_post_import_hook(_register_prompts, "peft.peft_model")
    wrapt.register_post_import_hook(_register_ties, "peft.utils.other")


def _register(_: object) -> None:
    try:
        import kflats.hf  # noqa: F401  registers itself when it is complete
    except ImportError as error:
        _warn("transformers", error)


def _register_static(module: ModuleType) -> None:
    try:
        from kflats.hf import static
    except ImportError as error:
        _warn("sentence-transformers", error)
    else:
        static.install(module)


def _register_prompts(module: ModuleType) -> None:
    from kflats.hf import adapters

    adapters.install_prompts(module)


def _register_ties(module: ModuleType) -> None:
    from kflats.hf import adapters

    adapters.install_ties(module)


def _warn(library: str, error: ImportError) -> None:
    # Raising would break the library for programs that do not use kflats with it.
    warnings.warn(
        f"kflats cannot plug itself into this {library} ({error}); models with factorised tables "
        "will not load. kflats needs transformers 5: it comes with the extra 'hf'.",
        RuntimeWarning,
        stacklevel=3,
    )
