"""The manifest: one digest for one content, and no manifest from elsewhere that could write or
point outside its folder."""

from __future__ import annotations

import hashlib
import json
import re
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import manifest as module
from artifacts.manifest import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_PARENTS,
    MAX_TOTAL_BYTES,
    Manifest,
    canonical_json,
    check_path,
    digest_of,
)
from configs.errors import UnsafeManifest

SHA, OTHER_SHA = "a" * 64, "b" * 64
PLAIN = "abcxyz019-_ äßж語"


def entry(path: str = "weights", size: int = 1, sha256: str = SHA) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": sha256}


def raw(*files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "kind": "fp16",
        "files": list(files or [entry()]),
        "parents": [],
        "recipe": {},
    } | changes


def refused(value: dict[str, Any], because: str) -> None:
    """`value` is canonical JSON, so that only the reason under test is left to refuse it."""
    with pytest.raises(UnsafeManifest, match=because):
        Manifest.from_bytes(canonical_json(value), where="test")


# A folder's name has no dot and a file's name has one: no generated path is both.
folders = st.text(PLAIN, min_size=1, max_size=8).filter(lambda name: not name.endswith(" "))
paths = st.tuples(st.lists(folders, max_size=3), folders).map(
    lambda parts: "/".join([*parts[0], f"{parts[1]}.bin"])
)
shas = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
roles = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", fullmatch=True)
recipes = st.dictionaries(st.text(), json_values, max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(
        st.lists(
            paths, min_size=1, max_size=5, unique_by=lambda path: path.partition("/")[0].casefold()
        )
    )
    parents = draw(st.lists(st.tuples(roles, shas), max_size=3, unique=True))
    known = {hashlib.sha256().hexdigest(): 0}
    chosen = [
        (
            name,
            sha256,
            known.setdefault(sha256, draw(st.integers(1, MAX_TOTAL_BYTES // 5)) % MAX_FILE_BYTES),
        )
        for name in sorted(names)
        for sha256 in [draw(shas)]
    ]
    return raw(
        *(entry(name, size, sha256) for name, sha256, size in chosen),
        kind=draw(st.sampled_from(["fp16", "w4a16", "texts", "evidence", "report"])),
        parents=[{"role": role, "digest": digest} for role, digest in sorted(parents)],
        recipe=draw(recipes),
    )


@given(manifests())
def test_a_valid_manifest_comes_back_as_the_same_bytes(value: dict[str, Any]) -> None:
    data = canonical_json(value)
    assert Manifest.from_bytes(data, where="test").to_bytes() == data


def test_the_digest_is_the_sha256_of_the_documented_bytes() -> None:
    data = (
        '{"files":[{"path":"ä","sha256":"'
        + SHA
        + '","size":3}],"kind":"texts","parents":[],"recipe":{"a":[1,2.5],"b":null},"version":1}'
    ).encode()
    built = Manifest.model_validate(
        {"recipe": {"b": None, "a": (1, 2.5)}, "kind": "texts", "files": [entry("ä", 3)]}
    )
    assert built.digest == hashlib.sha256(data).hexdigest()


@given(recipes, st.randoms(use_true_random=False))
def test_the_order_of_insertion_does_not_change_the_digest(
    recipe: dict[str, Any], random: Any
) -> None:
    items = list(recipe.items())
    random.shuffle(items)
    assert (
        Manifest.model_validate(raw(recipe=dict(items))).digest
        == Manifest.model_validate(raw(recipe=recipe)).digest
    )


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "w4a16"},
        {"files": [entry("weight")]},
        {"files": [entry(size=2)]},
        {"files": [entry(sha256=OTHER_SHA)]},
        {"files": [entry("a"), entry()]},
        {"parents": [{"role": "texts", "digest": SHA}]},
        {"recipe": {"seed": 0}},
    ],
    ids=str,
)
def test_the_digest_changes_with_every_field(change: dict[str, Any]) -> None:
    assert Manifest.model_validate(raw(**change)).digest != Manifest.model_validate(raw()).digest


@pytest.mark.parametrize("field", ["role", "digest"])
def test_the_digest_changes_with_a_parent(field: str) -> None:
    parent = {"role": "a" * 64, "digest": SHA}
    other = parent | {field: OTHER_SHA}
    assert (
        Manifest.model_validate(raw(parents=[parent])).digest
        != Manifest.model_validate(raw(parents=[other])).digest
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_recipe_with_a_number_that_json_lacks_has_no_digest(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Manifest.model_validate(raw(recipe={"deep": [number]})).digest


def test_digest_of_equal_values_is_equal() -> None:
    assert (
        digest_of({"a": 1, "b": [2]})
        == digest_of({"b": (2,), "a": 1})
        != digest_of({"a": 1, "b": [3]})
    )


@given(
    paths,
    st.sampled_from(
        [
            "../{}",
            "{}/..",
            "x/../{}",
            "{}/../../x",
            "..",
            "/{}",
            "//{}",
            "./{}",
            "x/./{}",
            "x//{}",
            "{}/",
            ".",
            "",
        ]
    ),
)
def test_a_path_that_is_not_plain_and_relative_is_refused(path: str, shape: str) -> None:
    refused(raw(entry(shape.format(path))), r"files\.0\.path: .*not a plain relative path")


@given(paths, st.sampled_from(["\\", "..\\", "C:", "\0", "\n", "\x1f"]), st.integers(0, 40))
def test_a_path_with_a_character_that_some_system_reads_differently_is_refused(
    path: str, bad: str, where: int
) -> None:
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
    refused(raw(entry("A" + path), entry("a" + path)), "differ only by case")


@given(paths, st.sampled_from(["é", "Å", "ǖ", "각", "が"]))
def test_paths_that_differ_only_by_how_an_accent_is_spelled_are_refused(
    path: str, accented: str
) -> None:
    """On macOS they are one file."""
    one, other = (unicodedata.normalize(form, f"{accented}{path}") for form in ("NFC", "NFD"))
    refused(raw(*(entry(name) for name in sorted([one, other]))), "how an accent is spelled")
    refused(
        raw(
            *(
                entry(name)
                for name in sorted(
                    [one, other.upper() if other.upper().casefold() == other.casefold() else other]
                )
            )
        ),
        "differ only",
    )
    refused(
        raw(*(entry(name) for name in sorted([f"{one}/a", f"{other}/b"]))),
        "how an accent is spelled",
    )


@given(paths, paths, st.booleans())
def test_a_path_that_is_a_file_and_a_folder_is_refused(
    file: str, below: str, other_case: bool
) -> None:
    folder = "x" + file
    upper = other_case and folder.upper().casefold() == folder.casefold()
    inside = f"{folder.upper() if upper else folder}/{below}"
    refused(raw(*(entry(path) for path in sorted([folder, inside]))), "both a file and a folder")


@given(st.integers(max_value=-1) | st.integers(min_value=MAX_FILE_BYTES + 1, max_value=10**300))
def test_an_absurd_size_is_refused(size: int) -> None:
    refused(raw(entry(size=size)), r"files\.0\.size")


@given(
    st.text().filter(lambda text: not re.fullmatch("[0-9a-f]{64}", text))
    | st.sampled_from([SHA + "\n", SHA[:63], SHA + "a", "A" * 64, "../" + SHA])
)
def test_a_sha256_that_is_not_64_hex_digits_is_refused(sha256: str) -> None:
    refused(raw(entry(sha256=sha256)), r"files\.0\.sha256")


@given(st.text(min_size=1), json_values)
def test_an_unknown_key_is_refused(key: str, value: Any) -> None:
    known = key in {*raw(), *entry()}
    refused(raw(**{key + "2" if known else key: value}), "Extra inputs")
    refused(raw(entry() | {key + "2" if known else key: value}), "Extra inputs")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"kind": "pickle"},
        {"files": []},
        {"parents": [{"role": "texts", "digest": "x"}]},
        {"recipe": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
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
        Manifest.from_bytes(data[: -(cut % len(data) or 1)], where="test")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size":1', b'"size": 1'),
        (b'"size":1', b'"size":1.0'),
        (b'"size":1', b'"size":"1"'),
        (b'"kind":"fp16"', b'"kind":"w4a16","kind":"fp16"'),
        (b',"version":1', b""),
        (b'"recipe":{}', b'"recipe":{"x":NaN}'),
        (b"weights", b"weight\\u0073"),
    ],
)
def test_other_spellings_of_a_manifest_are_refused(old: bytes, new: bytes) -> None:
    """Its digest would be that of the canonical bytes, not of these."""
    data = canonical_json(raw())
    assert old in data
    with pytest.raises(UnsafeManifest, match=r"not in canonical form|not JSON compliant"):
        Manifest.from_bytes(data.replace(old, new), where="test")


# -- from outside


@given(st.lists(folders, max_size=4), st.integers(0, 4), st.sampled_from(["..", ".", ""]))
def test_a_step_out_of_the_folder_is_refused_at_any_place(
    parts: list[str], place: int, step: str
) -> None:
    refused(
        raw(entry("/".join([*parts[:place], step, *parts[place:]]))), "not a plain relative path"
    )


@pytest.mark.parametrize(
    "path",
    [
        "C:/x",
        "c:x",
        "\\\\server\\share",
        "..\\x",
        "a\\..\\..\\x",
        "x:stream",
        "a?",
        "a*",
        "a<b",
        'a"',
        "a|b",
        "a\x7f",
        "a\x9b2J",
        "a\u202egpj.exe",
        "a\u200bb",
        "a\u2028b",
        "\ufeffa",
    ],
    ids=ascii,
)
def test_a_path_that_another_system_or_a_reader_takes_for_something_else_is_refused(
    path: str,
) -> None:
    refused(raw(entry(path)), r"files\.0\.path: .*character or length")
    refused(raw(entry(f"folder/{path}/file")), r"files\.0\.path: .*character or length")


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "NUL",
        "aux.json",
        "Com1.safetensors",
        "lpt¹",
        "PRN .txt",
        "CONIN$",
        "a.",
        "a ",
        "...",
        "a. .",
    ],
)
def test_a_name_that_is_a_device_or_another_file_on_windows_is_refused(name: str) -> None:
    refused(raw(entry(name)), "another file, or a device")
    refused(raw(entry(f"folder/{name}/file")), "another file, or a device")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model-00001-of-00002.safetensors",
        ".gitattributes",
        "console.txt",
        "nullable.py",
        "com10.bin",
        "a b",
        "~a",
        "-rf",
        "語.txt",
        "e\u0301.txt",
        "..a",
        "a..b",
        "tokenizer.model",
        "1_Pooling/config.json",
    ],
)
def test_ordinary_names_are_taken(name: str) -> None:
    assert check_path(name) == name


@given(st.text(max_size=300))
def test_whatever_a_path_is_it_is_taken_or_refused_with_a_reason_that_can_be_printed(
    path: str,
) -> None:
    try:
        check_path(path)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 1200
    else:
        assert not path.startswith("/") and ".." not in path.split("/") and "\\" not in path
        assert not {"Cc", "Cf", "Zl"} & {unicodedata.category(character) for character in path}


def test_folders_in_folders_without_end_are_refused() -> None:
    Manifest.model_validate(raw(entry("a/" * (MAX_DEPTH - 1) + "a")))
    refused(raw(entry("a/" * MAX_DEPTH + "a")), "character or length")


@pytest.mark.parametrize(
    ("files", "because"),
    [
        ([entry("a", 1), entry("b", 2)], "the same sha256 stands with two sizes"),
        ([entry("a", 1, hashlib.sha256().hexdigest())], "the same sha256 stands with two sizes"),
        (
            [entry(f"{number:02}", MAX_FILE_BYTES, f"{number:064}") for number in range(5)],
            "more than anybody has",
        ),
        ([entry("a", 10**15)], r"files\.0\.size"),
        ([entry("a", 2**63)], r"files\.0\.size"),
        ([entry("a", 10**4000)], r"files\.0\.size"),
    ],
    ids=["two sizes", "empty and not", "together", "a petabyte", "2**63", "4000 digits"],
)
def test_sizes_that_cannot_be_are_refused(files: list[dict[str, Any]], because: str) -> None:
    refused(raw(*files), because)


@pytest.mark.parametrize(
    "size",
    [
        b"1e400",
        b"-0",
        b"1e3",
        b"1.5",
        b"NaN",
        b"Infinity",
        b"true",
        b"null",
        b'"1"',
        b"0x10",
        b"01",
        b"1" * 5000,
    ],
)
def test_a_size_in_another_spelling_is_refused(size: bytes) -> None:
    with pytest.raises(UnsafeManifest):
        Manifest.from_bytes(
            canonical_json(raw()).replace(b'"size":1', b'"size":' + size), where="test"
        )


def test_one_file_more_than_there_may_be_is_refused_and_so_many_are_read_in_seconds() -> None:
    files = [entry(f"{'a' * 80}/{'b' * 80}/{number:06}") for number in range(MAX_FILES + 1)]
    started = time.monotonic()
    assert (
        len(Manifest.from_bytes(canonical_json(raw(*files[:-1])), where="test").files) == MAX_FILES
    )
    assert time.monotonic() - started < 20  # about 2 s; quadratic would be hours
    refused(raw(*files), "files")


def test_the_worst_that_fits_is_read_in_seconds() -> None:
    """Names as long and folders as deep as may be, in letters that must be looked at one by one."""
    deep = "/".join("語" * 10 for _ in range(MAX_DEPTH - 2))
    data = canonical_json(raw(*(entry(f"{number:05}/{deep}/x") for number in range(20_000))))
    assert len(data) > 20_000_000
    started = time.monotonic()
    Manifest.from_bytes(data, where="test")
    assert time.monotonic() - started < 60


def test_parents_without_end_are_refused() -> None:
    parents = [{"role": "model", "digest": f"{number:064}"} for number in range(MAX_PARENTS + 1)]
    Manifest.model_validate(raw(parents=parents[:-1]))
    refused(raw(parents=parents), "parents")


@pytest.mark.parametrize("role", ["", " ", "\x1b[2J", "a\nb", "a" * 65, "../a", "rôle"])
def test_a_role_is_a_plain_word(role: str) -> None:
    refused(raw(parents=[{"role": role, "digest": SHA}]), r"parents\.0\.role")


def test_a_manifest_larger_than_any_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(UnsafeManifest, match="has 1001 bytes, more than 1000"):
        Manifest.from_bytes(b"{" * 1001, where="test")


def test_a_manifest_that_nobody_could_read_again_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = Manifest.model_validate(raw(recipe={"note": "x" * 1000}))
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(UnsafeManifest, match=r"more than 1000.*leave files out"):
        _ = large.digest


@pytest.mark.parametrize("depth", [*range(180, 260, 4), 1000, 10_000, 1_000_000])
@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "mappings"]
)
def test_a_recipe_nested_however_deep_is_taken_or_refused(
    depth: int, opening: bytes, closing: bytes
) -> None:
    nested = opening * depth + b"0" + closing * depth
    data = canonical_json(raw()).replace(b'"recipe":{}', b'"recipe":{"x":' + nested + b"}")
    try:
        manifest = Manifest.from_bytes(data, where="test")
    except UnsafeManifest:
        assert depth > 180
    else:
        assert manifest.to_bytes() == data and depth < 260
        json.dumps(manifest.recipe)


GOOD = canonical_json(raw())


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD + b"\n",
        GOOD * 2,
        b"",
        b"null",
        b"[]",
        b"0",
        GOOD.decode().encode("utf-16"),
        GOOD.replace(b"weights", b"\\ud800"),
        GOOD.replace(b"weights", b"\xed\xa0\x80"),
        GOOD.replace(b'"files"', b'"files":[],"files"'),
        GOOD.replace(b"{}", b'{"a":1,"a":2}'),
        GOOD.replace(b'"recipe":{}', b'"recipe":{"x":{}},"recipe":{}'),
    ],
    ids=range(13),
)
def test_bytes_that_two_readers_could_read_differently_are_refused(data: bytes) -> None:
    with pytest.raises(UnsafeManifest):
        Manifest.from_bytes(data, where="test")


@given(manifests(), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_gives_another_digest_or_is_refused(
    value: dict[str, Any], place: int, difference: int
) -> None:
    data = bytearray(canonical_json(value))
    data[place % len(data)] ^= difference
    try:
        changed = Manifest.from_bytes(bytes(data), where="test")
    except UnsafeManifest:
        return
    assert (
        changed.digest == hashlib.sha256(data).hexdigest() != Manifest.model_validate(value).digest
    )
