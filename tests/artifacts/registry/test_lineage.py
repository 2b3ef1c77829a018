"""The tree of an artifact: every ancestor once, with what is known of it, and no store from
elsewhere that could break it."""

# covers artifacts/registry/facts.py

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import Kind, Parent, canonical_json
from artifacts.registry.lineage import DEEPEST, Node, about, tree
from artifacts.store.local import LocalStore
from configs.errors import ArtifactMissing


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def commit(
    store: LocalStore,
    kind: Kind,
    *parents: tuple[str, str],
    recipe: dict[str, Any] | None = None,
    name: str = "file",
    content: Any = None,
) -> str:
    with store.staging() as staging:
        staging.write(name, content if isinstance(content, bytes) else canonical_json(content))
        return store.commit(
            staging,
            kind,
            recipe=recipe,
            parents=[Parent(role=role, digest=digest) for role, digest in parents],
        ).digest


class Run:
    """What a run leaves: a source, texts, a candidate, a measurement of each, evidence, a report
    and a load test."""

    def __init__(self, store: LocalStore) -> None:
        self.model = commit(
            store,
            "fp16",
            recipe={"source": {"type": "hub", "repo": "a/b"}, "trusted_code": {}, "license": None},
            content="model",
        )
        self.texts = commit(
            store, "texts", recipe={"seed": 0, "versions": {"python": "3.11"}}, content="texts"
        )
        self.candidate = commit(
            store,
            "w4a16",
            ("model", self.model),
            ("texts", self.texts),
            content="awq",
            recipe={"group_size": 128, "versions": {"lmdeploy": "0.17.0"}},
        )
        self.baseline, self.measured = (
            commit(
                store,
                "measurement",
                ("model", model),
                ("texts", self.texts),
                name="measurement.json",
                content={
                    "variant": variant,
                    "versions": {"torch": "2.8"},
                    "hardware": {"gpu": "H200"},
                },
            )
            for model, variant in ((self.model, "fp16"), (self.candidate, "w4a16"))
        )
        self.evidence = commit(
            store,
            "evidence",
            ("candidate", self.candidate),
            ("measurement", self.measured),
            ("parent", self.model),
            ("baseline", self.baseline),
            recipe={"versions": {"numpy": "2.0"}},
            name="evidence.json",
            content={"variant": "w4a16", "versions": {"torch": "2.8"}},
        )
        self.report = commit(
            store,
            "report",
            ("candidate", self.candidate),
            ("evidence", self.evidence),
            ("parent", self.model),
            recipe={"versions": {"scipy": "1.17"}},
            name="verdict.json",
            content={"outcome": "PASS", "reasons": ["within the margin"], "variant": "w4a16"},
        )
        self.load = commit(
            store,
            "measurement",
            ("model", self.candidate),
            name="load.json",
            content={
                "variant": "w4a16",
                "results": [
                    {
                        "environment": {
                            "fingerprint": {"gpu": "H200"},
                            "engine": {"lmdeploy": "0.17.0", "session_len": "8"},
                            "client": {"aiohttp": "3.14"},
                        }
                    }
                ],
            },
        )


def lines(node: Node) -> list[str]:
    return [
        f"{'  ' * depth}{one.role} {one.kind}{' again' if one.again else ''}".strip("\n")
        for depth, one in node.walk()
    ]


def test_a_report_leads_back_to_the_source(store: LocalStore) -> None:
    assert lines(tree(store, Run(store).report)) == [
        " report",
        "  candidate w4a16",
        "    model fp16",
        "    texts texts",
        "  evidence evidence",
        "    baseline measurement",
        "      model fp16 again",
        "      texts texts again",
        "    candidate w4a16 again",
        "    measurement measurement",
        "      model w4a16 again",
        "      texts texts again",
        "    parent fp16 again",
        "  parent fp16 again",
    ]


def test_every_node_says_what_is_known_of_it(store: LocalStore) -> None:
    run = Run(store)
    nodes = {one.digest: one for _, one in tree(store, run.report).walk() if not one.again}
    model, candidate, report = nodes[run.model], nodes[run.candidate], nodes[run.report]
    assert (model.recipe, model.facts.versions, model.facts.hardware) == (
        {"source.type": "hub", "source.repo": "a/b"},
        {},
        {},
    )
    assert (candidate.recipe, candidate.facts.versions, candidate.facts.hardware) == (
        {"group_size": "128"},
        {"lmdeploy": "0.17.0"},
        {},
    )
    assert candidate.size == store.manifest(run.candidate).size and candidate.files == 1
    assert (nodes[run.measured].facts.hardware, nodes[run.measured].facts.variant) == (
        {"gpu": "H200"},
        "w4a16",
    )
    assert (nodes[run.evidence].facts.hardware, nodes[run.evidence].facts.versions) == (
        {"gpu": "H200"},
        {"numpy": "2.0", "torch": "2.8"},
    )
    assert (report.facts.verdict, report.facts.reasons, report.facts.hardware) == (
        "PASS",
        ("within the margin",),
        {"gpu": "H200"},
    )
    load = tree(store, run.load).facts
    assert (load.hardware, load.versions, load.variant) == (
        {"gpu": "H200"},
        {"aiohttp": "3.14", "lmdeploy": "0.17.0"},
        "w4a16",
    )


@pytest.mark.parametrize("key", ["repacked_with", "kept_with", "padded_with"])
def test_a_rewritten_artifact_has_the_versions_that_rewrote_it_the_others_stay_in_the_recipe(
    store: LocalStore, key: str
) -> None:
    digest = commit(store, "w4a16", recipe={"versions": {"lmdeploy": "1"}, key: {"torch": "2"}})
    node = tree(store, digest)
    assert node.facts.versions == {"torch": "2"} and node.recipe == {"versions.lmdeploy": "1"}


def test_what_names_an_artifact_is_found_newest_first(store: LocalStore) -> None:
    run = Run(store)
    found = about(store, run.candidate)
    assert {(one.kind, one.role, one.digest) for one in found} == {
        ("report", "candidate", run.report),
        ("evidence", "candidate", run.evidence),
        ("measurement", "model", run.measured),
        ("measurement", "model", run.load),
    }
    assert next(one for one in found if one.kind == "report").facts.verdict == "PASS"
    assert [one.digest for one in found] == [
        digest for digest in reversed(store.digests()) if digest in {one.digest for one in found}
    ]
    assert about(store, run.report) == []


def test_a_tree_is_json(store: LocalStore) -> None:
    run = Run(store)
    value = json.loads(json.dumps(tree(store, run.report).to_dict()))
    assert (
        value["parents"][1]["parents"][2]["facts"]["hardware"] == {"gpu": "H200"}
        and value["facts"]["verdict"] == "PASS"
    )
    assert json.loads(json.dumps([one.to_dict() for one in about(store, run.candidate)]))


# -- what may lie in a store


def test_an_artifact_that_is_not_there_is_an_error_and_a_parent_that_is_not_there_is_shown(
    store: LocalStore,
) -> None:
    with pytest.raises(ArtifactMissing):
        tree(store, "a" * 64)
    node = tree(store, commit(store, "w4a16", ("model", "a" * 64)))
    assert (node.parents[0].kind, node.parents[0].missing, node.parents[0].digest) == (
        None,
        "not in this store",
        "a" * 64,
    )


def test_a_damaged_parent_is_shown_with_its_damage(store: LocalStore) -> None:
    parent = commit(store, "fp16")
    child = commit(store, "w4a16", ("model", parent))
    store.manifest_path(parent).write_bytes(b"{}")
    missing = tree(store, child).parents[0].missing
    assert missing is not None and "does not hash to its name" in missing
    assert about(store, parent)[0].digest == child


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"versions":5,"hardware":[1],"reasons":3}',
        b'{"results":{}}',
        b'{"results":[]}',
        b'{"results":[{"environment":[]}]}',
        b'{"versions":{"a":{"b":1}},"variant":7}',
    ],
    ids=range(10),
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("measurement", "measurement.json"),
        ("measurement", "load.json"),
        ("evidence", "evidence.json"),
        ("report", "verdict.json"),
    ],
)
def test_a_file_of_facts_that_is_none_is_said_and_is_no_error(
    store: LocalStore, kind: Kind, name: str, content: bytes
) -> None:
    node = tree(store, commit(store, kind, name=name, content=content))
    known = node.facts
    assert known.damage == f"{name} is not what a {kind} has" or (
        known.hardware == {} and all(isinstance(x, str) for x in known.versions.values())
    )
    if content in (b"", b"[]", b"null", b"\xff"):
        assert known.damage


def test_facts_whose_file_is_gone_are_said_to_be(store: LocalStore) -> None:
    run = Run(store)
    store.blob(store.manifest(run.measured).files[0].sha256).unlink()
    node = next(one for _, one in tree(store, run.report).walk() if one.digest == run.measured)
    assert node.facts.damage is not None and "missing: measurement.json" in node.facts.damage


def test_a_model_with_a_file_of_such_a_name_says_nothing_of_hardware(store: LocalStore) -> None:
    digest = commit(store, "fp16", name="measurement.json", content={"hardware": {"gpu": "H200"}})
    assert tree(store, digest).facts.hardware == {}


def chain(store: LocalStore, length: int) -> list[str]:
    """Artifacts, each the parent of the next; the content is the same, and only the parents
    differ."""
    digests: list[str] = []
    for _ in range(length):
        digests.append(commit(store, "fp16", *([("model", digests[-1])] if digests else [])))
    return digests


def test_a_lineage_without_end_is_cut(store: LocalStore) -> None:
    digests = chain(store, DEEPEST + 20)
    nodes = [one for _, one in tree(store, digests[-1]).walk()]
    assert [one.digest for one in nodes] == digests[::-1][: DEEPEST + 1] and [
        one.cut for one in nodes
    ] == [False] * DEEPEST + [True]
    assert json.dumps(tree(store, digests[-1]).to_dict())


def test_what_was_cut_deep_down_is_expanded_where_it_stands_higher(store: LocalStore) -> None:
    digests = chain(store, DEEPEST + 5)
    node = tree(store, commit(store, "w4a16", ("a", digests[-1]), ("b", digests[4])))
    assert [one.digest for _, one in node.parents[1].walk()] == digests[4::-1] and not node.parents[
        1
    ].again


def test_a_lineage_with_many_ways_is_walked_once(store: LocalStore) -> None:
    """Two parents of two parents of two ...: 2 ** 40 ways to the first one."""
    layer: Sequence[str] = [commit(store, "fp16", content=number) for number in range(2)]
    for _ in range(40):
        layer = [
            commit(store, "fp16", ("a", layer[0]), ("b", layer[1]), content=number)
            for number in range(2)
        ]
    nodes = [one for _, one in tree(store, layer[0]).walk()]
    assert len(nodes) < 200 and len({one.digest for one in nodes}) == 81
