"""Register the transformers plug-in when, and only when, transformers is used.

``import kflats`` must stay quick, so transformers is not imported for it; instead its model code
calls back once it is there (at once, if it is already).
"""

from __future__ import annotations

import warnings

import wrapt


def install() -> None:
    """Arrange for ``kflats.hf.register()`` after the import of ``transformers.modeling_utils``."""
    wrapt.register_post_import_hook(_register, "transformers.modeling_utils")


def _register(_: object) -> None:
    try:
        import kflats.hf  # noqa: F401  registers itself when it is complete
    except ImportError as error:
        # Raising here would break transformers for programs that do not use kflats with it.
        warnings.warn(
            f"kflats cannot plug itself into this transformers ({error}); models with factorised "
            "tables will not load. kflats needs transformers 5: pip install 'kflats[hf]'.",
            RuntimeWarning,
            stacklevel=2,
        )
