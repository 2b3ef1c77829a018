"""Whether a model's own Python files may run. It is decided here and nowhere else."""

from __future__ import annotations

from artifacts.manifest import Manifest

TRUSTED_CODE = "trusted_code"  # in a recipe: the reviewed files, name -> sha256


def may_run_code(manifest: Manifest | None, *, asked: bool = False) -> bool:
    """An artifact's code may run exactly if its recipe names the files that somebody has reviewed;
    that of a bare folder, if the user says so.

    Args:
        manifest: of the artifact; None for a bare folder.
        asked: the user has said --trust-remote-code.
    """
    if manifest is None:
        return asked
    return bool(manifest.recipe.get(TRUSTED_CODE))
