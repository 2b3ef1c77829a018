"""How a model is quantized: the recipe, and what is changed in it while candidates fail."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.section import Lax, Minutes, Section

Format = Literal["awq", "compressed-tensors"]  # of the quantized weights


class Quantize(Section):
    """AWQ W4A16 by LMDeploy: everything here is part of the recipe."""

    method: Literal["awq"] = "awq"
    bits: Literal[4] = 4
    symmetric: Literal[False] = Field(
        default=False, description="LMDeploy's --w-sym fails after the whole calibration"
    )
    group_size: int = Field(default=128, ge=16, le=1024)
    format: Format = Field(
        default="awq",
        description=(
            "compressed-tensors: the same numbers repacked, which TurboMind also serves with group"
            " size 32"
        ),
    )
    search_scale: bool = Field(
        default=False,
        description="search the smoothing ratio per layer: slower, and better for small models",
    )
    samples: int = Field(default=128, ge=1, le=65_536)
    sequence_length: int = Field(default=2048, ge=16, le=131_072, description="tokens")
    batch_size: int = Field(default=1, ge=1)
    keep_layers: int = Field(
        default=0,
        ge=0,
        description=(
            "this many decoder layers, those that quantization damages most, stay in fp16; not with"
            " engine pytorch"
        ),
    )
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float16", "bfloat16"] = "float16"
    timeout_minutes: Minutes = 720

    @model_validator(mode="after")
    def _dtype_fits_device(self) -> Self:
        if self.device == "cpu" and self.dtype == "bfloat16":
            raise ValueError(
                "dtype bfloat16 does not work with device cpu in LMDeploy; use float16"
            )
        return self


class RecipeChange(Section):
    """A change of the recipe, on top of those before it. One that changes nothing, or that the
    engine cannot serve, is left out."""

    search_scale: bool = Field(default=False, description="search the smoothing ratio per layer")
    samples_times: int = Field(
        default=1, ge=1, le=64, description="calibrate with so many times the samples"
    )
    keep_layers: int = Field(
        default=0, ge=0, description="leave this many of the most damaged decoder layers in fp16"
    )

    def apply(self, recipe: Quantize) -> Quantize:
        return recipe.model_copy(
            update={
                "search_scale": recipe.search_scale or self.search_scale,
                "samples": min(65_536, recipe.samples * self.samples_times),
                "keep_layers": max(recipe.keep_layers, self.keep_layers),
            }
        )


class Repair(Section):
    """What is tried when a candidate is not as good as its parent."""

    changes: Lax[tuple[RecipeChange, ...]] = Field(
        default=(
            RecipeChange(search_scale=True),
            RecipeChange(samples_times=4),
            RecipeChange(keep_layers=4),
        ),
        description="recipes, one after the other, until one passes; [] tries none",
    )
    try_all: bool = Field(
        default=False, description="try every recipe and take the smallest model that passes"
    )
