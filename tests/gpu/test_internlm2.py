"""The tutorial's family on a GPU: the whole flow on real weights in InternLM2's shape, from its
files to a judged endpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from artifacts.store.files import sha256_file
from tests.gpu.conftest import pad_to
from tests.support.internlm2 import convert, remote_code


@pytest.fixture
def internlm2(smollm2: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """SmolLM2 as an InternLM2 checkpoint; `LMFLOWS_INTERNLM2_CODE` names its Python files where
    nothing can be fetched."""
    given = os.environ.get("LMFLOWS_INTERNLM2_CODE")
    code = Path(given) if given else remote_code(request.config.cache.mkdir("internlm2"))
    convert(pad_to(smollm2, 256, tmp_path / "padded"), tmp_path / "internlm2", code)
    return tmp_path / "internlm2"


def test_the_whole_flow(internlm2: Path, tmp_path: Path, home: Path, free_port: int) -> None:
    from flows.run import environment

    environment.prepare(quiet=True)
    from flows.quantize_and_deploy import quantize_and_deploy
    from tasks.serving import endpoints

    config = tmp_path / "internlm2.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "name": "internlm2-test",
                "source": {
                    "type": "local",
                    "path": str(internlm2),
                    "trusted_code": {
                        path.name: sha256_file(path)[1] for path in internlm2.glob("*.py")
                    },
                },
                "texts": {"source": {"type": "python_docs"}},
                "quantize": {
                    "samples": 16,
                    "sequence_length": 256,
                    "batch_size": 16,
                    "search_scale": True,
                    "device": "cuda",
                },
                "evaluate": {
                    "max_documents": 24,
                    "max_tokens_per_document": 256,
                    "max_perplexity_ratio": 2.0,
                },
                "engine": {"name": "turbomind", "cache_max_entry_count": 0.2},
                "deploy": {"port": free_port},
            }
        )
    )
    summary = quantize_and_deploy(str(config))
    assert summary.verdict.outcome == "PASS" and 1.0 < summary.evidence().perplexity_ratio < 2.0
    assert summary.deployed is not None and summary.deployed.score_difference < 0.02
    endpoint = endpoints.get("internlm2-test")
    answer = endpoint.call(
        "/v1/chat/completions",
        {
            "model": endpoint.model_name,
            "max_tokens": 32,
            "temperature": 0,
            "messages": [{"role": "user", "content": "hello"}],
        },
    )
    assert answer["choices"][0]["message"]["content"].strip()
