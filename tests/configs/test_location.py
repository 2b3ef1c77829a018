"""Where a store is: what can be read is written the same way, and nothing secret can stand in
it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.location import S3Location, absolute, normal, parse_s3

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{1,20}[A-Za-z0-9]", fullmatch=True)
prefixes = st.lists(
    st.from_regex(r"[A-Za-z0-9._=-]{1,12}", fullmatch=True).filter(
        lambda part: part not in (".", "..")
    ),
    max_size=4,
).map("/".join)
endpoints = st.none() | st.builds(
    "{}://{}{}".format,
    st.sampled_from(["http", "https"]),
    st.from_regex(r"[a-z][a-z0-9.-]{0,15}", fullmatch=True),
    st.just("") | st.integers(1, 65535).map(":{}".format),
)


@given(
    st.builds(
        S3Location,
        names,
        prefixes,
        endpoints,
        st.none() | st.booleans(),
        st.none() | st.sampled_from(["eu-central-1", "us-east-1"]),
    )
)
def test_what_is_written_is_read_back(location: S3Location) -> None:
    assert parse_s3(str(location)) == location
    assert normal(str(location)) == str(location)


def test_the_parts_of_a_url() -> None:
    assert parse_s3(
        "s3://models/team/a?endpoint_url=http://minio:9000&path_style=true&region=eu-west-1"
    ) == S3Location("models", "team/a", "http://minio:9000", True, "eu-west-1")
    assert parse_s3("s3://models/") == S3Location("models")


def test_equal_places_have_one_spelling() -> None:
    assert normal("s3://models/a/?region=x&path_style=false") == normal(
        "s3://models/a?path_style=false&region=x"
    )


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@models/a",
        f"s3://models/a?secret_key={SECRET}",
        f"s3://models/a?aws_secret_access_key={SECRET}",
        f"s3://models/a?endpoint_url=http://key:{SECRET}@minio:9000",
        f"s3://models/a#{SECRET}",
        f"s3://models/a?endpoint_url=http://minio:9000?token={SECRET}",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError) as error:
        normal(url)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///a",
        "s3://ab",
        "s3://models/a//b",
        "s3://models/../a",
        "s3://models/a/./b",
        "s3://models/a b",
        "s3://models?region=a&region=b",
        "s3://models?endpoint_url=minio:9000",
        "s3://models?endpoint_url=ftp://minio",
        "s3://models?path_style=yes",
        "s3://models?color=red",
        "gs://models/a",
        "http://models/a",
        "",
    ],
)
def test_what_is_no_location_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        normal(url)


def test_a_folder_is_a_folder(tmp_path: Path) -> None:
    assert normal("/srv/models") == "/srv/models"
    assert absolute("models", tmp_path) == str(tmp_path / "models")
    assert absolute("/srv/models", tmp_path) == "/srv/models"
    assert absolute("s3://models/a", tmp_path) == "s3://models/a"
    assert absolute("~/models", tmp_path) == str(Path.home() / "models")
