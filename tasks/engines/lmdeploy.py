"""What LMDeploy's engines (TurboMind and PyTorch) have in common: a model loaded in this process,
through the parts of its pipeline that 0.12 to 0.18 share, and its api_server.

Requests go to the engine as token ids and come back as token ids: chat templates, detokenizing and
default sampling are where LMDeploy's versions differ, and would measure Python instead of the
engine.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from artifacts.records.measurement import Scores
from configs.engines import LmdeployOptions
from configs.errors import EngineError
from tasks.checkpoints import files
from tasks.engines.protocol import EngineSpec, Generation, ServerSpec, Tokenized

LIBRARIES = ("lmdeploy", "torch", "transformers")
SCORING_SERVER = (0, 14)  # the first LMDeploy whose api_server has /get_ppl
T = TypeVar("T")


class LmdeployEngine(Tokenized):
    """A model in an LMDeploy engine, with the KV cache in the bits that the spec asks for.

    Args:
        backend_config: LMDeploy's config of the engine.

    Raises:
        EngineError: the engine refuses the model, or LMDeploy has taken another one in silence.
    """

    def __init__(self, spec: EngineSpec, backend_config: Any) -> None:
        from transformers import AutoTokenizer

        self.name = spec.engine.name
        self.tokenizer = AutoTokenizer.from_pretrained(
            spec.folder, trust_remote_code=spec.trust_remote_code
        )
        self.vocabulary = int(files.inspect(spec.folder).config["vocab_size"])
        self.end_ids = files.end_ids(spec.folder, self.tokenizer.eos_token_id)
        import lmdeploy

        started = time.monotonic()
        extra = {"trust_remote_code": spec.trust_remote_code} if _asks_for_trust() else {}
        self.pipe: Any = lmdeploy.pipeline(
            str(spec.folder), backend_config=backend_config, log_level="WARNING", **extra
        )
        backend = self.pipe.async_engine.backend
        if backend != self.name:
            raise EngineError(
                f"LMDeploy fell back to its {backend} engine",
                where=f"engine {self.name}",
                hint="the model or this machine does not suit the engine that was asked for",
            )
        self.load_seconds = time.monotonic() - started

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, exact: bool = False
    ) -> list[Generation]:
        from lmdeploy import GenerationConfig

        # greedy, and nothing taken over from the model's own sampling defaults
        how = GenerationConfig(
            max_new_tokens=max_new_tokens,
            top_k=1,
            top_p=1.0,
            temperature=1.0,
            ignore_eos=exact,
            stop_token_ids=None if exact else sorted(self.end_ids),
        )

        async def ask_all() -> list[list[int]]:
            return await asyncio.gather(*(self._ask(list(prompt), how) for prompt in prompts))

        started = time.monotonic()
        answers = self._run(ask_all())
        seconds = time.monotonic() - started
        return [
            Generation(
                text=self.tokenizer.decode(new, skip_special_tokens=True).strip(),
                tokens=len(new),
                finite=None,
                seconds=seconds,
                finish_reason="stop" if new and new[-1] in self.end_ids and not exact else "length",
            )
            for new in answers
        ]

    async def _ask(self, prompt: list[int], how: Any) -> list[int]:
        """One request; the new token ids."""
        engine, new, status = self.pipe.async_engine, [], None
        session = engine.session_mgr.get()
        # sequence_start and sequence_end: what LMDeploy before 0.14 wants to hear for a request
        # that stands alone
        async with session.request_handle() as handle:
            stream = engine.safe_run(
                handle,
                session=session,
                input_ids=prompt,
                gen_config=how,
                stream_output=False,
                sequence_start=True,
                sequence_end=True,
            )
            async with stream as outputs:
                async for output in outputs:
                    status = output.status.name
                    new += output.token_ids
        if hasattr(session, "async_close") and self.name == "pytorch":
            await session.async_close()
        engine.session_mgr.remove(session)
        if status not in ("SUCCESS", "FINISH"):
            raise EngineError(
                f"answered a prompt of {len(prompt)} tokens with {status}",
                where=f"engine {self.name}",
                hint="see the engine's log; engine.session_len limits prompt and answer together",
            )
        return new

    def score(
        self, sequences: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
    ) -> list[Scores]:
        from tasks.engines.scoring import scores

        logits = self._run(
            self.pipe.async_engine.async_get_logits(
                input_ids=[list(sequence) for sequence in sequences]
            )
        )
        if any(rows is None for rows in logits):
            raise EngineError(
                "gave no logits",
                where=f"engine {self.name}",
                hint="see its log; is a document longer than engine.session_len?",
            )
        return [
            scores(rows[:, : self.vocabulary], sequence, None if at is None else at[number])
            for number, (rows, sequence) in enumerate(zip(logits, sequences, strict=True))
        ]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the pipeline's own event loop, where its engine lives."""
        return asyncio.run_coroutine_threadsafe(work, self.pipe.internal_thread.loop).result()

    def close(self) -> None:
        self.pipe.close()


def model_format(folder: Path) -> str | None:
    """LMDeploy's word for a quantized folder's weights; None for fp16."""
    quantization = files.read_config(folder).get("quantization_config")
    return None if quantization is None else str(quantization["quant_method"])


def refuses_deployment(runtime: str, versions: Mapping[str, str]) -> str | None:
    """Why this LMDeploy's api_server cannot be proven to serve what was judged, or None."""
    version = versions["lmdeploy"]
    if tuple(int(part) for part in version.split(".")[:2]) >= SCORING_SERVER:
        return None
    return (
        f"the api_server of LMDeploy {version} (runtime {runtime}) has no /get_ppl, by which a"
        " deployment is proven to serve what was judged -> use a runtime with LMDeploy 0.14 or"
        " later; `lmflows engines compare` measures older ones without a server"
    )


def server_command(server: ServerSpec) -> list[str]:
    """The words of the `lmdeploy` program that serve a model: `lmdeploy serve api_server ...`."""
    model = server.model
    options = model.engine
    assert isinstance(options, LmdeployOptions)
    words = [
        *("lmdeploy", "serve", "api_server", str(model.folder)),
        *("--backend", options.name),
        *("--model-name", server.model_name),
        *("--server-name", server.host),
        *("--server-port", str(server.port)),
        *("--tp", str(options.tp)),
        *("--cache-max-entry-count", str(options.cache_max_entry_count)),
        *("--quant-policy", str(model.kv_bits)),
    ]
    weights = model_format(model.folder)
    if weights is not None:
        words += ["--model-format", weights]
    if options.session_len is not None:
        words += ["--session-len", str(options.session_len)]
    if model.trust_remote_code:
        words += ["--trust-remote-code"]
    if server.api_keys:
        words += ["--api-keys", *server.api_keys]
    return words


def become_server(command: Sequence[str]) -> None:
    """Run LMDeploy's program in this process: on a command line everybody could read the API
    keys."""
    from lmdeploy.cli import run

    trust = _asks_for_trust()
    sys.argv = [word for word in command if trust or word != "--trust-remote-code"]
    run()


def _asks_for_trust() -> bool:
    """Whether this LMDeploy runs remote code only if it is told to; before 0.13 it does so by
    itself."""
    import lmdeploy

    return "trust_remote_code" in inspect.signature(lmdeploy.pipeline).parameters
