"""Endpoints on this machine: their records, and talking to them over HTTP.

An endpoint is a folder below `paths.endpoints()`: `endpoint.json` (this record), `program.conf`
(for the supervisor), `server.log`, and `api_keys` (mode 0600) if it has any.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.manifest import ModelArtifact
from artifacts.registry import serving
from artifacts.registry.refs import ModelName
from artifacts.store.files import write_atomic
from artifacts.store.open import open_store
from configs import paths
from configs.deployment import Deploy
from configs.engines import Engine
from configs.errors import ConfigError, EndpointError, LmflowsError
from configs.location import Location

RECORD = "endpoint.json"
KEYS = "api_keys"
LOG = "server.log"
PROGRAM = "program.conf"
# an endpoint is on this machine, where the proxy that the environment may name does not find it
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Endpoint(BaseModel):
    """A served variant: where it listens, what it serves, and the options it was started with.

    Attributes:
        stores: that were told of it (`artifacts.registry.serving`): the one that the artifact was
            uploaded to, and the one that its folder is in.
        gpus: their UUIDs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName
    model_name: str
    artifact: ModelArtifact
    engine: Engine
    options: Deploy
    stores: tuple[Location, ...] = ()
    gpus: tuple[str, ...] = ()
    trust_remote_code: bool = False
    since: datetime

    @property
    def folder(self) -> Path:
        return paths.endpoints() / self.name

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it: no address is reachable at 0.0.0.0."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.options.host, self.options.host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.options.port}"

    def same_service(self, other: Endpoint | None) -> bool:
        """Whether two records describe the same thing, whenever they were started."""
        return other is not None and self == other.model_copy(update={"since": self.since})

    def keys(self) -> list[str]:
        """The API keys, or none."""
        try:
            return (self.folder / KEYS).read_text().splitlines()
        except FileNotFoundError:
            return []

    def save(self, keys: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / KEYS).unlink(missing_ok=True)
        if keys:
            (self.folder / KEYS).touch(mode=0o600)
            (self.folder / KEYS).write_text("\n".join(keys))
        write_atomic(self.folder / RECORD, self.model_dump_json(indent=2).encode())

    def forget(self, *, keep_log: bool = False) -> None:
        """Remove the record and all that belongs to it; the log can stay for whoever asks why it
        failed."""
        if keep_log:
            for name in (RECORD, KEYS, PROGRAM):
                (self.folder / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def announce(self) -> None:
        """Tell its stores what it is about to serve."""
        for location in self.stores:
            serving.announce(open_store(location), self.name, self.artifact.digest)

    def withdraw(self, *, but: Endpoint | None = None) -> list[LmflowsError]:
        """Take back what its stores were told, except of `but`, which serves in its place; returns
        what kept some of them from hearing it.

        A store that still believes in an endpoint keeps more than it must, and no less.
        """
        problems = []
        for location in self.stores:
            kept = but.artifact.digest if but and location in but.stores else None
            try:
                serving.withdraw(open_store(location), self.name, but=kept)
            except LmflowsError as error:
                problems.append(error)
        return problems

    def call(self, path: str, body: dict[str, Any] | None = None, timeout_s: float = 60) -> Any:
        """One JSON request; EndpointError with the server's own words if it fails."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | self._authorization(),
        )
        try:
            with _OPENER.open(request, timeout=timeout_s) as response:
                text = response.read()
            return json.loads(text) if text.strip() else {}
        except urllib.error.HTTPError as error:
            raise EndpointError(
                f"{path} answered {error.code}: {error.read(500).decode(errors='replace')}",
                where=f"endpoint {self.name}",
                hint=f"its log: {self.folder / LOG}",
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EndpointError(
                f"{path} did not answer: {error}",
                where=f"endpoint {self.name}",
                hint=f"`lmflows status` tells whether it runs; its log: {self.folder / LOG}",
            ) from error

    def _authorization(self) -> dict[str, str]:
        keys = self.keys()
        return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def given_keys(variable: str | None) -> list[str]:
    """The API keys in an environment variable, separated by commas; none if no variable is named or
    it is empty."""
    return [key.strip() for key in os.environ.get(variable or "", "").split(",") if key.strip()]


def api_keys(variable: str | None) -> list[str]:
    """The API keys that a new endpoint shall have; none if `deploy.api_keys_env` names no
    variable.

    Raises:
        ConfigError: the variable is empty: whoever names one does not want an open server.
    """
    keys = given_keys(variable)
    if variable is not None and not keys:
        raise ConfigError(
            f"the environment variable {variable} is empty",
            where="deploy.api_keys_env",
            hint=f"export {variable}=KEY[,KEY...]",
        )
    return keys


def read(name: str) -> Endpoint | None:
    """The record of an endpoint, or None."""
    try:
        return from_file(paths.endpoints() / name / RECORD)
    except FileNotFoundError:
        return None


def from_file(record: Path) -> Endpoint:
    """The endpoint that a record describes; FileNotFoundError if it is not there.

    Raises:
        EndpointError: it is not a record of this version.
    """
    try:
        return Endpoint.model_validate_json(record.read_bytes())
    except ValidationError as error:
        raise EndpointError(
            f"unreadable record: {error.errors()[0]['msg']}",
            where=str(record),
            hint="stop its server, then remove the folder",
        ) from None


def list_all() -> list[Endpoint]:
    """All endpoints on this machine, by name."""
    found = (read(path.parent.name) for path in sorted(paths.endpoints().glob(f"*/{RECORD}")))
    return [endpoint for endpoint in found if endpoint is not None]


def get(name: str | None) -> Endpoint:
    """The endpoint of that name, or the only one there is.

    Raises:
        EndpointError: there is none, or there are several and no name was given.
    """
    known = {endpoint.name: endpoint for endpoint in list_all()}
    where = f"endpoints: {', '.join(known) or 'none'}"
    if name in known:
        return known[name]
    if name is not None:
        raise EndpointError(
            f"no endpoint {name!r}", where=where, hint="`lmflows status` lists them"
        )
    if not known:
        raise EndpointError(
            "no endpoint is deployed",
            where=where,
            hint="`lmflows run configs/demo.yaml` deploys one",
        )
    if len(known) > 1:
        raise EndpointError("which endpoint?", where=where, hint="give its name")
    return next(iter(known.values()))
