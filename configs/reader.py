"""Read a pipeline config; every mistake becomes one line: file, key path, value, and what is
allowed.

`read` and `checked` do the same for any other YAML file with a schema (`configs.policy`).
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.errors import ConfigError
from configs.location import absolute, absolute_path
from configs.schema import Pipeline
from configs.sources import LocalSource
from configs.texts import TextFile

Schema = TypeVar("Schema", bound=BaseModel)
# an unknown key of such a name may hold one, and messages go to logs
SECRET = re.compile("password|secret|token$|api_key$")


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence, and lets a ValueError for a date like
    2026-02-31 through."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, which has no value of its own
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load(
    path: Path, overrides: dict[str, Any] | None = None, *, check_files: bool = True
) -> Pipeline:
    """Read and check a pipeline config.

    Args:
        path: the YAML file.
        overrides: values that replace the file's, by dotted key path (`{"evaluate.documents": 8}`).
        check_files: also require that the files and folders it names exist.

    Raises:
        ConfigError: one line for each mistake.
    """
    data = read(path, Pipeline)
    for key, value in (overrides or {}).items():
        _override(data, key, value, path)
    pipeline = checked(data, Pipeline, path)
    pipeline = _resolve_paths(pipeline, path.absolute().parent)
    if check_files:
        _check_files(path, pipeline)
    return pipeline


def overrides_of(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of `KEY=VALUE` words, as a command line has them; a value is YAML.

    Raises:
        ConfigError: a word is something else.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{pair!r} is not KEY=VALUE",
                where="--set",
                hint="for example --set evaluate.documents=48",
            )
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{text!r} is not a YAML value", where=f"--set {key}") from None
    return values


def checked(data: dict[str, Any], root: type[Schema], path: Path) -> Schema:
    """The values of a file as its schema has them; ConfigError with one line for each mistake."""
    try:
        return root.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(path, detail, data, root) for detail in error.errors())
        ) from None


def read(path: Path, root: type[BaseModel]) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked.

    Raises:
        ConfigError: it is missing, not YAML, names a key twice, or holds something else.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), hint="`configs/` has examples") from None
    except IsADirectoryError:
        raise ConfigError("a folder, not a config file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"not YAML: {problem}", where=place) from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"is {'empty' if data is None else _brief(data)}, and must be a mapping with the keys"
            f" {', '.join(root.model_fields)}",
            where=str(path),
        )
    return data


def _override(data: dict[str, Any], key: str, value: Any, path: Path) -> None:
    *parents, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(parents):
        node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict):
            raise ConfigError(
                f"{'.'.join(parents[: depth + 1])} is {_brief(node)} and has no keys",
                where=f"{path}: {key}",
            )
    node[last] = value


def _resolve_paths(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Make paths absolute; after the checks, so that a message about a path has it as the user
    wrote it."""
    source, texts, store = pipeline.source, pipeline.texts, pipeline.upload.store
    changes: dict[str, BaseModel] = {}
    if isinstance(source, LocalSource):
        changes["source"] = source.model_copy(update={"path": absolute_path(source.path, folder)})
    if isinstance(texts.source, TextFile):
        text_file = texts.source.model_copy(
            update={"path": absolute_path(texts.source.path, folder)}
        )
        changes["texts"] = texts.model_copy(update={"source": text_file})
    if tasks := pipeline.evaluate.tasks:
        changes["evaluate"] = pipeline.evaluate.model_copy(
            update={"tasks": tuple(absolute_path(task, folder) for task in tasks)}
        )
    if store is not None:
        changes["upload"] = pipeline.upload.model_copy(update={"store": absolute(store, folder)})
    return pipeline.model_copy(update=changes)


def _check_files(path: Path, pipeline: Pipeline) -> None:
    source, texts = pipeline.source, pipeline.texts.source
    if isinstance(source, LocalSource) and not source.path.is_dir():
        raise ConfigError(
            f"{source.path} is not a folder",
            where=f"{path}: source.path",
            hint=(
                "give the folder that holds config.json and the weights, or link it there with"
                " `ln -s`"
            ),
        )
    if isinstance(texts, TextFile) and not texts.path.is_file():
        raise ConfigError(
            f"{texts.path} is not a file",
            where=f"{path}: texts.source.path",
            hint="give a .jsonl or text file",
        )
    for number, task in enumerate(pipeline.evaluate.tasks):
        if not task.is_file():
            raise ConfigError(
                f"{task} is not a file",
                where=f"{path}: evaluate.tasks[{number}]",
                hint="give a .jsonl file of task items",
            )


def _explain(path: Path, detail: ErrorDetails, data: Any, root: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    keys = list(_keys(detail["loc"], root))
    place = f"{path}: {'.'.join(keys)}" if keys else str(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{place}: {message}"
    if detail["type"] == "extra_forbidden":
        allowed = _allowed_keys(keys[:-1], data, root)
        close = difflib.get_close_matches(keys[-1], allowed, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        value = "" if SECRET.search(keys[-1]) else f", value {_brief(detail['input'])}"
        return f"{place}: unknown key{meant}{value}; allowed keys: {', '.join(allowed)}"
    if detail["type"] == "missing":
        return f"{place}: missing; {_describe(keys, data, root)}"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = detail["ctx"]["discriminator"].strip("'")
        what = (
            f"{_brief(detail['input'][tag])} is not allowed"
            if tag in detail["input"]
            else "missing"
        )
        return f"{place}.{tag}: {what}; one of {', '.join(_tags(keys, tag, data, root))}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return (
            f"{place}: {_brief(detail['input'])} is not allowed: must be"
            f" {_describe(keys, data, root)}"
        )
    field = _field(keys, data, root)
    reason = f"; {field.description}" if field and field.description else ""
    return (
        f"{place}: {_brief(detail['input'])} is not allowed:"
        f" {message[0].lower()}{message[1:]}{reason}"
    )


def _keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> Iterator[str]:
    """The key path as the user wrote it: pydantic's `loc` also has the tag of a union's member, and
    marks a bad key."""
    classes: list[type[BaseModel]] = [root]
    parts = list(loc[:-1] if loc[-1:] == ("[key]",) else loc)
    while parts:
        part = parts.pop(0)
        yield str(part)
        # a number is an item's of a list, which has the classes of the list
        if isinstance(part, str):
            classes = [
                found
                for cls in classes
                if part in cls.model_fields
                for found in _classes(cls.model_fields[part].annotation)
            ]
        if len(classes) > 1 and not isinstance(next(iter(parts), None), int):
            parts = parts[1:]


def _models(keys: list[str], data: Any, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The schema classes that may stand at a key path (the one of the union that the data
    chose)."""
    models: list[type[BaseModel]] = [root]
    node = data
    for key in keys:
        if isinstance(node, list) and key.isdigit():
            node, found = node[int(key)], models
        else:
            node = node.get(key, {}) if isinstance(node, dict) else {}
            found = [
                cls
                for model in models
                if key in model.model_fields
                for cls in _classes(model.model_fields[key].annotation)
            ]
        chosen = [
            cls
            for cls in found
            for tag in ("type", "name")
            if tag in cls.model_fields
            and isinstance(node, dict)
            and node.get(tag) in get_args(cls.model_fields[tag].annotation)
        ]
        models = chosen or found
    return models


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple) or hasattr(
        annotation, "__metadata__"
    ):
        return [cls for arg in get_args(annotation) for cls in _classes(arg)]
    return []


def _allowed_keys(keys: list[str], data: Any, root: type[BaseModel]) -> list[str]:
    return sorted({name for model in _models(keys, data, root) for name in model.model_fields})


def _tags(keys: list[str], tag: str, data: Any, root: type[BaseModel]) -> list[str]:
    return [
        repr(name)
        for model in _models(keys, data, root)
        for name in get_args(model.model_fields[tag].annotation)
    ]


def _field(keys: list[str], data: Any, root: type[BaseModel]) -> FieldInfo | None:
    return next(
        (
            model.model_fields[keys[-1]]
            for model in _models(keys[:-1], data, root)
            if keys[-1] in model.model_fields
        ),
        None,
    )


def _describe(keys: list[str], data: Any, root: type[BaseModel]) -> str:
    field = _field(keys, data, root)
    if field is None:
        return "required"
    if classes := _classes(field.annotation):
        return (
            "a section with the keys"
            f" {', '.join(sorted({name for cls in classes for name in cls.model_fields}))}"
        )
    return (
        field.description
        or f"a value of type {getattr(field.annotation, '__name__', field.annotation)}"
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
