"""Read a pipeline config; every mistake becomes one line: file, key path, value, and what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.errors import ConfigError
from configs.schema import LocalSource, Pipeline, TextFile


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load(path: Path, overrides: dict[str, Any] | None = None, *, check_files: bool = True) -> Pipeline:
    """Read and check a pipeline config.

    Args:
        path: the YAML file.
        overrides: values that replace the file's, by dotted key path (`{"evaluate.documents": 8}`).
        check_files: also require that the files and folders it names exist.

    Raises:
        ConfigError: one line for each mistake.
    """
    data = _read(path)
    for key, value in (overrides or {}).items():
        _override(data, key, value, path)
    _resolve_paths(data, path.absolute().parent)
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, detail, data) for detail in error.errors())) from None
    if check_files:
        _check_files(path, pipeline)
    return pipeline


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), hint="`configs/` has examples") from None
    except IsADirectoryError:
        raise ConfigError("a folder, not a config file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"not YAML: {getattr(error, 'problem', None) or error}", where=place) from None
    if not isinstance(data, dict):
        raise ConfigError(f"is {_brief(data)}, and must be a mapping with the keys {', '.join(Pipeline.model_fields)}",
                          where=str(path))
    return data


def _override(data: dict[str, Any], key: str, value: Any, path: Path) -> None:
    *parents, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(parents):
        node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict):
            raise ConfigError(f"{'.'.join(parents[:depth + 1])} is {_brief(node)} and has no keys", where=f"{path}: {key}")
    node[last] = value


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    for keys in (("source", "path"), ("texts", "source", "path"), ("upload", "store")):
        node: Any = data
        for part in keys[:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(keys[-1]), str):
            node[keys[-1]] = str(folder / Path(node[keys[-1]]).expanduser())


def _check_files(path: Path, pipeline: Pipeline) -> None:
    source, texts = pipeline.source, pipeline.texts.source
    if isinstance(source, LocalSource) and not source.path.is_dir():
        raise ConfigError(f"{source.path} is not a folder", where=f"{path}: source.path",
                          hint="give the folder that holds config.json and the weights, or link it there with `ln -s`")
    if isinstance(texts, TextFile) and not texts.path.is_file():
        raise ConfigError(f"{texts.path} is not a file", where=f"{path}: texts.source.path",
                          hint="give a .jsonl or text file")


def _explain(path: Path, detail: ErrorDetails, data: Any) -> str:
    """One line for one of pydantic's errors."""
    keys = list(_keys(detail["loc"], data))
    place = f"{path}: {'.'.join(keys)}" if keys else str(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{place}: {message}"
    if detail["type"] == "extra_forbidden":
        allowed = _allowed_keys(keys[:-1], data)
        close = difflib.get_close_matches(keys[-1], allowed, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return f"{place}: unknown key{meant}, value {_brief(detail['input'])}; allowed keys: {', '.join(allowed)}"
    if detail["type"] == "missing":
        return f"{place}: missing; {_describe(keys, data)}"
    return f"{place}: {_brief(detail['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _keys(loc: tuple[int | str, ...], data: Any) -> Iterator[str]:
    """The key path as the user wrote it: pydantic's `loc` also names the chosen member of a union."""
    node = data
    for index, part in enumerate(loc):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part]
        elif index < len(loc) - 1:
            continue
        yield str(part)


def _models(keys: list[str], data: Any) -> list[type[BaseModel]]:
    """The schema classes that may stand at a key path (the one of the union that the data chose)."""
    models: list[type[BaseModel]] = [Pipeline]
    node = data
    for key in keys:
        node = node.get(key, {}) if isinstance(node, dict) else {}
        found = [cls for model in models if key in model.model_fields for cls in _classes(model.model_fields[key].annotation)]
        chosen = [cls for cls in found for tag in ("type", "engine")
                  if tag in cls.model_fields and isinstance(node, dict)
                  and node.get(tag) in get_args(cls.model_fields[tag].annotation)]
        models = chosen or found
    return models


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType) or hasattr(annotation, "__metadata__"):
        return [cls for arg in get_args(annotation) for cls in _classes(arg)]
    return []


def _allowed_keys(keys: list[str], data: Any) -> list[str]:
    return sorted({name for model in _models(keys, data) for name in model.model_fields})


def _describe(keys: list[str], data: Any) -> str:
    for model in _models(keys[:-1], data):
        if field := model.model_fields.get(keys[-1]):
            if classes := _classes(field.annotation):
                return f"a section with the keys {', '.join(sorted({n for cls in classes for n in cls.model_fields}))}"
            return field.description or f"a value of type {getattr(field.annotation, '__name__', field.annotation)}"
    return "required"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
