"""The schema of a pipeline config: one YAML file names a model and decides everything that happens
to it.

Each section stands in a module of its own beside this one; here they come together. Traps that the
config alone shows are refused here; those that need the model or the machine are in
`tasks.preflight`. Paths in a file are relative to that file.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.deployment import Deploy, Promote, Upload
from configs.engines import Engine, names_of
from configs.evaluation import Benchmark, Evaluate, SmokeTest
from configs.load_testing import LoadTest
from configs.quantization import Quantize, Repair
from configs.section import Lax, Section
from configs.sources import Source
from configs.texts import Texts
from configs.variants import Variant, weights_and_kv


class Pipeline(Section):
    """A whole pipeline."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        description="the model's name in the registry and the API",
    )
    source: Source
    texts: Texts
    smoke_test: SmokeTest = SmokeTest()
    quantize: Quantize = Quantize()
    repair: Repair = Repair()
    evaluate: Evaluate
    upload: Upload = Upload()
    promote: Promote = Promote()
    engine: Engine
    variants: Lax[tuple[Variant, ...]] = Field(
        default=("fp16", "w4a16"), description="what is measured side by side; fp16 is the baseline"
    )
    benchmark: Benchmark | None = None
    load: LoadTest | None = Field(
        default=None, description="a load test of each variant, behind a server of its own"
    )
    objective: Literal["memory", "latency", "throughput"] | None = Field(
        default=None,
        description=(
            "serve the best of the variants that pass, fp16 included, instead of deploy.variant"
        ),
    )
    deploy: Deploy | None = None
    gpus: Lax[tuple[Annotated[int, Field(ge=0)], ...]] | None = Field(
        default=None,
        min_length=1,
        description=(
            "GPUs that the run may use, counted among the visible ones; default: all of them"
        ),
    )

    @property
    def served_variant(self) -> Variant:
        """What the verdict is about: the variant that is deployed, or the last quantized one."""
        if self.deploy is not None:
            return self.deploy.variant
        return next(name for name in reversed(self.variants) if name.startswith("w4a16"))

    @property
    def recipes(self) -> tuple[Quantize, ...]:
        """The recipe, and those of the repair that differ from the one before and that the engine
        can serve."""
        recipes = [self.quantize]
        for change in self.repair.changes:
            recipe = change.apply(recipes[-1])
            if recipe != recipes[-1] and self.engine.refuses_recipe(recipe) is None:
                recipes.append(recipe)
        return tuple(recipes)

    @property
    def evaluate_each_attempt(self) -> Evaluate:
        """How each attempt is judged: all attempts share the chance of an error, or trying often
        enough would pass anything."""
        return self.evaluate.model_copy(
            update={"confidence": 1 - (1 - self.evaluate.confidence) / len(self.recipes)}
        )

    @field_validator("name")
    @classmethod
    def _more_than_dots(cls, name: str) -> str:
        if set(name) <= {"."}:
            raise ValueError("a name needs more than dots")
        return name

    @model_validator(mode="after")
    def _the_engine_serves_the_recipe(self) -> Self:
        problem = self.engine.refuses_recipe(self.quantize)
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _the_engine_has_the_kv_caches(self) -> Self:
        refused = [name for name in self.variants if self.engine.refuses_kv(name)]
        if refused:
            bits = {weights_and_kv(name)[1] for name in refused}
            others = names_of(lambda engine: bits <= set(engine.kv_bits))
            raise ValueError(
                f"variants {', '.join(refused)} need engine {others}:"
                f" {self.engine.refuses_kv(*refused)}"
            )
        return self

    @model_validator(mode="after")
    def _the_objective_has_figures(self) -> Self:
        if self.objective in ("latency", "throughput") and self.benchmark is None:
            raise ValueError(
                f"objective {self.objective} needs figures of the speed: add a benchmark section,"
                " or set objective: memory"
            )
        return self

    @model_validator(mode="after")
    def _the_baseline_comes_first(self) -> Self:
        if (
            self.variants[:1] != ("fp16",)
            or len(set(self.variants)) < len(self.variants)
            or not any("w4a16" in name for name in self.variants)
        ):
            raise ValueError(
                f"variants {list(self.variants)}: the first must be fp16, the baseline, then w4a16"
                " variants, each once"
            )
        return self

    @model_validator(mode="after")
    def _what_is_served_is_measured(self) -> Self:
        if self.served_variant.startswith("fp16"):
            raise ValueError(
                f"deploy.variant {self.served_variant}: a pipeline serves what it has quantized;"
                " use w4a16, w4a16-kv8 or w4a16-kv4 (an objective may choose fp16 all the same)"
            )
        if self.served_variant not in self.variants:
            raise ValueError(
                f"deploy.variant {self.served_variant} is not among variants {list(self.variants)}:"
                " what is served must be measured"
            )
        return self

    @model_validator(mode="after")
    def _sessions_are_long_enough(self) -> Self:
        longest = self.engine.session_len
        if longest is None:
            return self
        if longest < self.evaluate.max_tokens_per_document:
            raise ValueError(
                f"engine.session_len {longest} is less than evaluate.max_tokens_per_document"
                f" {self.evaluate.max_tokens_per_document}, and the engine is asked to score such a"
                " document; raise the first"
            )
        for section, asked in (("benchmark", self.benchmark), ("load", self.load)):
            if asked is not None and longest < asked.prompt_tokens + asked.new_tokens:
                raise ValueError(
                    f"engine.session_len {longest} is less than {section}.prompt_tokens +"
                    " new_tokens; raise the first"
                )
        return self

    @model_validator(mode="after")
    def _there_is_text_for_every_look(self) -> Self:
        most = self.evaluate.looks[-1]
        if most > self.texts.held_out_documents:
            raise ValueError(
                f"evaluate scores up to {most} (documents {self.evaluate.documents}, max_documents"
                f" {self.evaluate.max_documents}) and texts.held_out_documents is"
                f" {self.texts.held_out_documents}; lower the first or raise the second"
            )
        return self
