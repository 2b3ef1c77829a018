"""The texts step: the user's own documents, split into calibration and held-out parts that share no
passage.

Hands on an artifact of kind `texts`. Knows nothing of tokens: each model's tokenizer turns a
document into ids where it is used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from artifacts.manifest import ModelArtifact
from artifacts.records.texts import CALIBRATION, HELD_OUT, documents_to_bytes
from configs.texts import HubDataset, Texts
from tasks.quality.documents import place_of, read_source
from tasks.quality.passages import SHARED_WORDS, split, unique
from tasks.runner.step import Context, Request, Result, step, versions


class TextsRequest(Request):
    config: Texts

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class TextsResult(Result):
    """Number of documents in each part, and the artifact that holds them."""

    texts: ModelArtifact
    calibration_documents: Annotated[int, Field(ge=1)]
    held_out_documents: Annotated[int, Field(ge=1)]


@step(cached=False)  # cheap to read again, and a text file's content is not known before it is read
def texts(request: TextsRequest, context: Context) -> TextsResult:
    """Read the user's documents and split them so that no passage is on both sides."""
    config = request.config
    source = config.source
    documents = list(unique(read_source(source)))
    calibration, held_out = split(
        documents, config.held_out_documents, config.seed, where=place_of(source)
    )
    recipe = {
        "seed": config.seed,
        "held_out_documents": config.held_out_documents,
        "shared_words": SHARED_WORDS,
        # not where a file lies: the same text is the same artifact
        "source": source.model_dump(mode="json", exclude={"path"}),
        "versions": versions(("datasets",) if isinstance(source, HubDataset) else ()),
    }
    with context.store.staging() as staging:
        staging.write(CALIBRATION, documents_to_bytes(calibration))
        staging.write(HELD_OUT, documents_to_bytes(held_out))
        artifact = context.store.commit(staging, "texts", recipe=recipe)
    context.log(
        f"{len(documents)} documents: {len(calibration)} to calibrate with,"
        f" {len(held_out)} held out"
    )
    return TextsResult(
        texts=artifact, calibration_documents=len(calibration), held_out_documents=len(held_out)
    )
