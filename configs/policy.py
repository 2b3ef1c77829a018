"""The policy of a place: what it takes there to reach a stage, and how long things are kept. One
YAML file beside no pipeline.

`$LMFLOWS_POLICY` names the file; else it is `policy.yaml` in the home folder; without either the
defaults hold. Paths in it are relative to the file. `configs/policy.example.yaml` has every key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from configs import paths
from configs.errors import ConfigError
from configs.location import S3, Location, absolute
from configs.reader import checked, read
from configs.section import Lax, Section

VARIABLE = "LMFLOWS_POLICY"


def _a_path(path: Path) -> Path:
    if "-----BEGIN" in str(path):
        raise ValueError(
            "is a key or certificate itself; write it to a file that only its owner can read, and"
            " give that file's path"
        )
    return path


PemFile = Annotated[Lax[Path], AfterValidator(_a_path)]


class TrustedKey(Section):
    """Signatures of the private key that belongs to this public key (PEM, elliptic curve) hold."""

    type: Literal["key"]
    public_key: PemFile


class TrustedCertificate(Section):
    """Signatures hold whose certificate leads up to one of these root certificates (PEM, one or
    several in the file)."""

    type: Literal["certificate"]
    certificate: PemFile
    names: Lax[tuple[str, ...]] = Field(
        default=(),
        description=(
            "common names that may sign; without any, everybody may whom the root has certified"
        ),
    )


class SigningKey(Section):
    """A private key: PEM, elliptic curve P-256, P-384 or P-521."""

    type: Literal["key"]
    private_key: PemFile
    password_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description=(
            "environment variable that holds the key's password; a password is never written to a"
            " file"
        ),
    )


class SigningCertificate(Section):
    """A private key without password, its certificate, and the certificates between that and the
    root, each PEM."""

    type: Literal["certificate"]
    private_key: PemFile
    certificate: PemFile
    chain: Lax[tuple[PemFile, ...]] = ()


Trusted = Annotated[TrustedKey | TrustedCertificate, Field(discriminator="type")]
Signer = Annotated[SigningKey | SigningCertificate, Field(discriminator="type")]


class Policy(Section):
    """What holds for every pipeline of a place.

    Attributes:
        sign: what a run signs with, once the verdict is PASS.
    """

    store: Location | None = Field(
        default=None,
        description=(
            "a folder or s3://BUCKET/PREFIX; what pipelines and commands use that name none"
        ),
    )
    require_signature: bool = Field(
        default=False, description="promotion and deployment refuse what no trusted key has signed"
    )
    trusted: Lax[tuple[Trusted, ...]] = Field(
        default=(), description="whose signatures hold; any one of them is enough"
    )
    sign: Signer | None = None
    approval_minutes: float = Field(
        default=24 * 60,
        gt=0,
        le=30 * 24 * 60,
        description=(
            "how long a promotion to production waits for somebody's approval before it is rejected"
        ),
    )
    keep_history: int = Field(
        default=10,
        ge=1,
        description="entries of each stage's history whose artifacts garbage collection keeps",
    )
    min_age_hours: float = Field(
        default=168, ge=0, description="garbage collection leaves alone what is younger"
    )

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> Self:
        if self.require_signature and not self.trusted:
            raise ValueError(
                "require_signature without anybody in `trusted` would refuse everything; name a"
                " public key or a root certificate there"
            )
        return self

    def store_for(self, named: str | None) -> str:
        """The store that is meant: the one that somebody has named, else this policy's, else this
        machine's."""
        return named or self.store or str(paths.default_store())


class Destination(Section):
    """Where the artifacts of a run go, and the policy that holds there."""

    store: Location
    policy: Policy = Policy()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders on this machine that the run writes to."""
        if self.store.startswith(S3):
            return (paths.workspace(),)
        return paths.workspace(), Path(self.store)

    @property
    def named_store(self) -> Location | None:
        """The store if commands mean another by themselves, so that it has to be named."""
        return None if self.store == self.policy.store_for(None) else self.store


def load_policy() -> Policy:
    """The policy of this place.

    Raises:
        ConfigError: one line for each mistake; or `$LMFLOWS_POLICY` names a file that is not there.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named).expanduser() if named else paths.home() / "policy.yaml"
    if named and not path.exists():
        raise ConfigError(
            "no such file",
            where=f"{VARIABLE}={named}",
            hint="correct the variable, or unset it; a missing policy is not an empty one",
        )
    if not named and not os.path.lexists(path):
        return Policy()
    folder = path.absolute().parent
    policy: Policy = _absolute(checked(read(path, Policy), Policy, path), folder)
    return (
        policy.model_copy(update={"store": absolute(policy.store, folder)})
        if policy.store
        else policy
    )


def _absolute(value: Any, folder: Path) -> Any:
    """The same value, with every path in it made absolute."""
    if isinstance(value, Path):
        return Path(absolute(str(value), folder))
    if isinstance(value, tuple):
        return tuple(_absolute(item, folder) for item in value)
    if isinstance(value, Section):
        return value.model_copy(update={name: _absolute(item, folder) for name, item in value})
    return value
