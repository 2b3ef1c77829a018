"""The policy: where it is looked for, what it may say, and that a mistake in it is never taken for
a policy that asks for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from configs.errors import ConfigError
from configs.paths import PROJECT
from configs.policy import (
    Policy,
    SigningCertificate,
    SigningKey,
    TrustedCertificate,
    TrustedKey,
    load_policy,
)

Write = Callable[[Any], Path]
KEY, ROOT = (
    {"type": "key", "public_key": "keys/team.pub"},
    {
        "type": "certificate",
        "certificate": "/etc/root.pem",
    },
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a policy, as text or as a mapping, and names it in the environment."""

    def write(what: Any) -> Path:
        path = tmp_path / "policies" / "policy.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(what if isinstance(what, str) else yaml.safe_dump(what))
        monkeypatch.setenv("LMFLOWS_POLICY", str(path))
        return path

    return write


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_policy()
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)).removeprefix(": ") for line in lines]


def test_without_a_file_nothing_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMFLOWS_POLICY", raising=False)
    policy = load_policy()
    assert (
        policy == Policy()
        and not policy.require_signature
        and policy.sign is None
        and policy.store is None
    )


def test_the_file_in_the_home_folder_is_found_and_the_variable_goes_first(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "policy.yaml").write_text("keep_history: 3")
    monkeypatch.delenv("LMFLOWS_POLICY", raising=False)
    assert load_policy().keep_history == 3
    write({"keep_history": 4})
    assert load_policy().keep_history == 4


def test_a_named_file_that_is_missing_is_an_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMFLOWS_POLICY", str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match=r"LMFLOWS_POLICY=.*gone\.yaml: no such file"):
        load_policy()


def test_a_link_to_nowhere_in_the_home_folder_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has meant a policy to hold here."""
    home.mkdir()
    (home / "policy.yaml").symlink_to("gone.yaml")
    monkeypatch.delenv("LMFLOWS_POLICY", raising=False)
    with pytest.raises(ConfigError, match=r"policy\.yaml: no such file"):
        load_policy()


def test_paths_are_relative_to_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write(
        {
            "store": "models",
            "trusted": [KEY, ROOT],
            "sign": {
                "type": "certificate",
                "private_key": "~/bot.key",
                "certificate": "bot.crt",
                "chain": ["a.crt", "/b.crt"],
            },
        }
    ).parent
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir("/")
    policy = load_policy()
    assert policy.store == str(folder / "models")
    assert policy.trusted == (
        TrustedKey(type="key", public_key=folder / "keys" / "team.pub"),
        TrustedCertificate(type="certificate", certificate=Path("/etc/root.pem")),
    )
    assert policy.sign == SigningCertificate(
        type="certificate",
        private_key=tmp_path / "me" / "bot.key",
        certificate=folder / "bot.crt",
        chain=(folder / "a.crt", Path("/b.crt")),
    )


def test_a_store_on_s3_stays_as_it_is(write: Write) -> None:
    write({"store": "s3://models/team?region=eu-west-1"})
    assert load_policy().store == "s3://models/team?region=eu-west-1"


def test_the_example_has_every_key_and_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PROJECT / "configs" / "policy.example.yaml"
    monkeypatch.setenv("LMFLOWS_POLICY", str(path))
    policy = load_policy()
    assert yaml.safe_load(path.read_text()).keys() == Policy.model_fields.keys()
    assert (
        isinstance(policy.sign, SigningKey)
        and policy.sign.private_key == path.parent / "keys" / "release.pem"
    )
    plain = policy.model_copy(update={"store": None, "trusted": (), "sign": None})
    assert plain == Policy()  # the figures in it are the defaults, as it says


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        (
            {"require_signatures": True},
            (
                "require_signatures: unknown key (did you mean require_signature?), value True;"
                " allowed keys: approval_minutes, "
            ),
        ),
        (
            {"require_signature": "yes"},
            (
                "require_signature: 'yes' is not allowed: input should be a valid boolean;"
                " promotion and deployment refuse"
            ),
        ),
        (
            {"require_signature": True},
            (
                "require_signature without anybody in `trusted` would refuse everything; name a"
                " public key"
            ),
        ),
        (
            {"require_signature": True, "trusted": []},
            "require_signature without anybody in `trusted` would refuse everything",
        ),
        ({"trusted": [KEY, {"type": "key"}]}, "trusted.1.public_key: missing; "),
        (
            {"trusted": [KEY | {"password": "x"}]},
            "trusted.0.password: unknown key; allowed keys: public_key, type",
        ),
        (
            {"trusted": [{"type": "sigstore"}]},
            "trusted.0.type: 'sigstore' is not allowed; one of 'key', 'certificate'",
        ),
        (
            {"trusted": [{"public_key": "a"}]},
            "trusted.0.type: missing; one of 'key', 'certificate'",
        ),
        ({"trusted": ["team.pub"]}, "trusted.0: 'team.pub' is not allowed: must be "),
        (
            {"trusted": KEY},
            "trusted: {'public_key': 'keys/team.pub', 'type': 'key'} is not allowed: ",
        ),
        (
            {"sign": {"type": "key", "private_key": "a", "password_env": "not-a-name"}},
            "sign.password_env: 'not-a-name' is not allowed: ",
        ),
        (
            {"sign": {"type": "key", "private_key": "a", "password": "x"}},
            "sign.password: unknown key (did you mean password_env?)",
        ),
        ({"store": "http://models"}, "store: a store is a folder or s3://BUCKET/PREFIX"),
        (
            {"approval_minutes": 0},
            (
                "approval_minutes: 0 is not allowed: input should be greater than 0; how long a"
                " promotion"
            ),
        ),
        ({"keep_history": 0}, "keep_history: 0 is not allowed: "),
        ({"min_age_hours": -1}, "min_age_hours: -1 is not allowed: "),
        ("keep_history: 3\nkeep_history: 4", ":2:1: not YAML: key 'keep_history' stands twice"),
        ("", "is empty, and must be a mapping with the keys store, require_signature, "),
        ("- require_signature", "is ['require_signature'], and must be a mapping"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_names_it(write: Write, policy: Any, line: str) -> None:
    found = mistakes(write(policy))
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize(
    "sign",
    [
        {"type": "key", "private_key": "a", "password": "hunter2"},
        {
            "type": "key",
            "private_key": (
                "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\n"
            ),
        },
    ],
)
def test_a_secret_that_stands_where_it_must_not_is_not_repeated(
    write: Write, sign: dict[str, str]
) -> None:
    found = mistakes(write({"sign": sign}))
    assert len(found) == 1 and found[0].startswith("sign.") and "hunter2" not in found[0]


def test_every_mistake_is_told(write: Write) -> None:
    assert len(mistakes(write({"keep_history": 0, "trusted": [{"type": "key"}], "no": 1}))) == 3


def test_a_policy_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Policy().require_signature = True  # type: ignore[misc]
