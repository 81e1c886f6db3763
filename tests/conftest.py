"""What has to happen before any test module is imported."""

import warnings

with warnings.catch_warnings():
    # Flower holds typer below 0.21, which imports names that click 8.5 calls deprecated. Warnings
    # are errors in these tests; this one is not ours to mend, and it is given once, on import.
    warnings.filterwarnings("ignore", message="'click", category=DeprecationWarning)
    import typer  # noqa: F401
