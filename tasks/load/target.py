"""Which server is put under load: an endpoint of this machine, or any OpenAI-compatible URL."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from artifacts.records.load_results import Load, Target
from configs.errors import ConfigError, EndpointError
from tasks.load.stream import Service
from tasks.runner import runtimes
from tasks.serving import endpoints
from tasks.serving.endpoints import Endpoint

NAME_SECONDS = 20.0
LIBRARIES = ("lmdeploy", "torch", "transformers", "python")


@dataclass(frozen=True)
class Server:
    """A server, how to speak to it, and what is known of it.

    Attributes:
        engine: what it runs, with versions; empty if that cannot be known.
        gpus: UUIDs of those that it uses; empty for all visible ones.
    """

    target: Target
    key: str
    engine: dict[str, str]
    gpus: tuple[str, ...] = ()

    def service(self, load: Load) -> Service:
        return Service(
            url=self.target.url,
            model=self.target.model,
            key=self.key,
            api=load.api,
            new_tokens=load.new_tokens,
            timeout_s=load.request_timeout_seconds,
        )


def of_endpoint(endpoint: Endpoint) -> Server:
    """An endpoint of this machine."""
    keys = endpoint.keys()
    engine = {
        "engine": endpoint.engine.name,
        "runtime": endpoint.engine.runtime,
        "variant": endpoint.options.variant,
        "artifact": endpoint.artifact.digest,
    }
    return Server(
        Target(url=endpoint.url, model=endpoint.model_name),
        keys[0] if keys else "",
        engine | _versions(endpoint.engine.runtime),
        endpoint.gpus,
    )


def of_temporary(endpoint: Endpoint, digest: str) -> Server:
    """An endpoint that serves the folder of an artifact for as long as it is tested: it knows
    neither the artifact's digest nor keys."""
    server = of_endpoint(endpoint)
    return replace(server, key="", engine=server.engine | {"artifact": digest})


def at_url(url: str, *, model: str | None = None, api_keys_env: str | None = None) -> Server:
    """Any OpenAI-compatible server.

    Args:
        url: its root, with or without /v1.
        model: default is the first that it names.
        api_keys_env: the environment variable that holds an API key.

    Raises:
        ConfigError: that is no URL.
        EndpointError: it does not say which models it has.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(
            f"{url!r} is no URL", where="--url", hint="for example http://127.0.0.1:23333"
        )
    root = url.rstrip("/").removesuffix("/v1").rstrip("/")
    key = next(iter(endpoints.given_keys(api_keys_env)), "")
    return Server(Target(url=root, model=model or _first_model(root, key)), key, {})


def named(
    place: str | None, *, model: str | None = None, api_keys_env: str | None = None
) -> Server:
    """A URL, or the name of an endpoint of this machine; None for the only one."""
    if place is not None and "://" in place:
        return at_url(place, model=model, api_keys_env=api_keys_env)
    return of_endpoint(endpoints.get(place))


def _first_model(root: str, key: str) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(root + "/v1/models", headers=headers)
    # as the load generator itself: what is measured is not a proxy
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=NAME_SECONDS) as response:
            return str(json.loads(response.read())["data"][0]["id"])
    except (OSError, urllib.error.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            f"/v1/models does not say which model it serves: {error}",
            where=root,
            hint="check the address and the API key (--api-keys-env), or name the model (--model)",
        ) from None


def _versions(runtime: str) -> dict[str, str]:
    """The engine's libraries in its runtime, as far as they are installed here."""
    return {
        library: version
        for known in runtimes.list_all()
        if known.name == runtime
        for library, version in known.versions.items()
        if library in LIBRARIES
    }
