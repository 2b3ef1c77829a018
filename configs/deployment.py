"""Where a finished model goes: the store, the stage, the endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.location import Location
from configs.section import Minutes, Port, Section
from configs.variants import Variant


class Upload(Section):
    """Where finished artifacts go."""

    store: Location | None = Field(
        default=None,
        description=(
            "a folder, or s3://BUCKET/PREFIX[?endpoint_url=URL&path_style=true&region=NAME] with"
            " credentials by the normal AWS chain; default: the policy's, else `store` below the"
            " home folder"
        ),
    )


class Promote(Section):
    """Which stage the candidate enters when its verdict is PASS."""

    stage: Literal["dev"] = "dev"


class Deploy(Section):
    """The endpoint: which variant is served, and where."""

    variant: Variant = Field(
        default="w4a16",
        description="weights and KV cache; LMDeploy's quant_policy 8 is -kv8, 4 is -kv4",
    )
    host: str = "127.0.0.1"
    port: Port = 23333
    model_name: str | None = Field(
        default=None, description="name in the API; default: the pipeline's name"
    )
    api_keys_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description=(
            "environment variable that holds the API keys, separated by commas; keys are never"
            " written to a config"
        ),
    )
    ready_timeout_minutes: Minutes = 10
    score_tolerance: float = Field(
        default=0.02,
        gt=0,
        description=(
            "how far the live endpoint's mean NLL per token may be from the evidence, in nats"
        ),
    )
