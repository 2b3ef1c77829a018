"""The manifest: one digest for one content, and no manifest from elsewhere that could write or point outside its folder."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.manifest import MAX_FILE_BYTES, Manifest, canonical_json, digest_of
from configs.errors import UnsafeManifest

SHA, OTHER_SHA = "a" * 64, "b" * 64
PLAIN = "abcxyz019-_ äßж語"


def entry(path: str = "weights", size: int = 1, sha256: str = SHA) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": sha256}


def raw(*files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"version": 1, "kind": "fp16", "files": list(files or [entry()]), "parents": [], "recipe": {}} | changes


def refused(value: dict[str, Any], because: str) -> None:
    """`value` is canonical JSON, so that only the reason under test is left to refuse it."""
    with pytest.raises(UnsafeManifest, match=because):
        Manifest.from_bytes(canonical_json(value), where="test")


# A folder's name has no dot and a file's name has one: no generated path is both.
folders = st.text(PLAIN, min_size=1, max_size=8)
paths = st.tuples(st.lists(folders, max_size=3), folders).map(lambda parts: "/".join([*parts[0], f"{parts[1]}.bin"]))
shas = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)
recipes = st.dictionaries(st.text(), json_values, max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(paths, min_size=1, max_size=5, unique_by=str.casefold))
    parents = draw(st.lists(st.tuples(st.text(), shas), max_size=3, unique=True))
    return raw(*(entry(name, draw(st.integers(0, MAX_FILE_BYTES)), draw(shas)) for name in sorted(names)),
               kind=draw(st.sampled_from(["fp16", "w4a16", "texts", "evidence", "report"])),
               parents=[{"role": role, "digest": digest} for role, digest in sorted(parents)], recipe=draw(recipes))


@given(manifests())
def test_a_valid_manifest_comes_back_as_the_same_bytes(value: dict[str, Any]) -> None:
    data = canonical_json(value)
    assert Manifest.from_bytes(data, where="test").to_bytes() == data


def test_the_digest_is_the_sha256_of_the_documented_bytes() -> None:
    data = ('{"files":[{"path":"ä","sha256":"' + SHA + '","size":3}],'
            '"kind":"texts","parents":[],"recipe":{"a":[1,2.5],"b":null},"version":1}').encode()
    built = Manifest.model_validate({"recipe": {"b": None, "a": (1, 2.5)}, "kind": "texts", "files": [entry("ä", 3)]})
    assert built.digest == hashlib.sha256(data).hexdigest()


@given(recipes, st.randoms(use_true_random=False))
def test_the_order_of_insertion_does_not_change_the_digest(recipe: dict[str, Any], random: Any) -> None:
    items = list(recipe.items())
    random.shuffle(items)
    assert Manifest.model_validate(raw(recipe=dict(items))).digest == Manifest.model_validate(raw(recipe=recipe)).digest


@pytest.mark.parametrize("change", [
    {"kind": "w4a16"}, {"files": [entry("weight")]}, {"files": [entry(size=2)]}, {"files": [entry(sha256=OTHER_SHA)]},
    {"files": [entry("a"), entry()]}, {"parents": [{"role": "texts", "digest": SHA}]}, {"recipe": {"seed": 0}},
], ids=str)
def test_the_digest_changes_with_every_field(change: dict[str, Any]) -> None:
    assert Manifest.model_validate(raw(**change)).digest != Manifest.model_validate(raw()).digest


@pytest.mark.parametrize("field", ["role", "digest"])
def test_the_digest_changes_with_a_parent(field: str) -> None:
    parent = {"role": "a" * 64, "digest": SHA}
    other = parent | {field: OTHER_SHA}
    assert Manifest.model_validate(raw(parents=[parent])).digest != Manifest.model_validate(raw(parents=[other])).digest


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_recipe_with_a_number_that_json_lacks_has_no_digest(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Manifest.model_validate(raw(recipe={"deep": [number]})).digest


def test_digest_of_equal_values_is_equal() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": (2,), "a": 1}) != digest_of({"a": 1, "b": [3]})


@given(paths, st.sampled_from(["../{}", "{}/..", "x/../{}", "{}/../../x", "..", "/{}", "//{}", "./{}", "x/./{}", "x//{}", "{}/", ".", ""]))
def test_a_path_that_is_not_plain_and_relative_is_refused(path: str, shape: str) -> None:
    refused(raw(entry(shape.format(path))), r"files\.0\.path: .*not a plain relative path")


@given(paths, st.sampled_from(["\\", "..\\", "C:", "\0", "\n", "\x1f"]), st.integers(0, 40))
def test_a_path_with_a_character_that_some_system_reads_differently_is_refused(path: str, bad: str, where: int) -> None:
    refused(raw(entry(path[:where] + bad + path[where:])), r"files\.0\.path: ")


@pytest.mark.parametrize("path", ["a" * 256, "ä" * 128, "a/" * 512 + "a"])
def test_a_path_longer_than_file_systems_take_is_refused(path: str) -> None:
    refused(raw(entry(path)), r"files\.0\.path: .*length")


@given(paths, shas, shas)
def test_a_path_that_stands_twice_is_refused(path: str, one: str, two: str) -> None:
    refused(raw(entry(path, sha256=one), entry(path, sha256=two)), "each once")


def test_files_out_of_order_are_refused() -> None:
    refused(raw(entry("b"), entry("a")), "sorted by path")


@given(paths)
def test_paths_that_differ_only_by_case_are_refused(path: str) -> None:
    refused(raw(entry("A/" + path), entry("a/" + path)), "differ only by case")


@given(paths, paths, st.booleans())
def test_a_path_that_is_a_file_and_a_folder_is_refused(file: str, below: str, other_case: bool) -> None:
    folder = "x" + file
    inside = f"{folder.upper() if other_case and folder.upper().casefold() == folder.casefold() else folder}/{below}"
    refused(raw(*(entry(path) for path in sorted([folder, inside]))), "both a file and a folder")


@given(st.integers(max_value=-1) | st.integers(min_value=MAX_FILE_BYTES + 1, max_value=10**300))
def test_an_absurd_size_is_refused(size: int) -> None:
    refused(raw(entry(size=size)), r"files\.0\.size")


@given(st.text().filter(lambda text: not re.fullmatch("[0-9a-f]{64}", text))
       | st.sampled_from([SHA + "\n", SHA[:63], SHA + "a", "A" * 64, "../" + SHA]))
def test_a_sha256_that_is_not_64_hex_digits_is_refused(sha256: str) -> None:
    refused(raw(entry(sha256=sha256)), r"files\.0\.sha256")


@given(st.text(min_size=1), json_values)
def test_an_unknown_key_is_refused(key: str, value: Any) -> None:
    known = key in {*raw(), *entry()}
    refused(raw(**{key + "2" if known else key: value}), "Extra inputs")
    refused(raw(entry() | {key + "2" if known else key: value}), "Extra inputs")


@pytest.mark.parametrize("changes", [{"version": 2}, {"kind": "pickle"}, {"files": []}, {"parents": [{"role": "texts", "digest": "x"}]},
                                     {"recipe": []}], ids=lambda changes: next(iter(changes)))
def test_a_value_outside_the_schema_is_refused_by_its_key(changes: dict[str, Any]) -> None:
    refused(raw(**changes), next(iter(changes)))


@given(st.binary(max_size=64))
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(UnsafeManifest):
        Manifest.from_bytes(b"\xff" + data, where="test")
    with pytest.raises(UnsafeManifest):
        Manifest.from_bytes(data, where="test")


@given(manifests(), st.integers(min_value=1))
def test_a_manifest_cut_off_anywhere_is_refused(value: dict[str, Any], cut: int) -> None:
    data = canonical_json(value)
    with pytest.raises(UnsafeManifest, match="Invalid JSON"):
        Manifest.from_bytes(data[:-(cut % len(data) or 1)], where="test")


@pytest.mark.parametrize(("old", "new"), [(b'"size":1', b'"size": 1'), (b'"size":1', b'"size":1.0'), (b'"size":1', b'"size":"1"'),
                                          (b'"kind":"fp16"', b'"kind":"w4a16","kind":"fp16"'), (b',"version":1', b""),
                                          (b'"recipe":{}', b'"recipe":{"x":NaN}'), (b"weights", b"weight\\u0073")])
def test_other_spellings_of_a_manifest_are_refused(old: bytes, new: bytes) -> None:
    """Its digest would be that of the canonical bytes, not of these."""
    data = canonical_json(raw())
    assert old in data
    with pytest.raises(UnsafeManifest, match=r"not in canonical form|not JSON compliant"):
        Manifest.from_bytes(data.replace(old, new), where="test")
