"""lm-evaluation-harness against one of our endpoints: `python -m tasks.quality.harness_host REQUEST
ANSWER`, in the runtime `lm-eval`.

Its own clients of OpenAI's API want the log-probabilities of a prompt (`echo`), which neither
LMDeploy's api_server nor the reference server gives. Both give `/get_ppl`, the mean NLL of token
ids, and two of those make a log-likelihood: that of question and answer together, less that of the
question. Imports nothing of this project, which is not installed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-not-found]
from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-not-found]
from transformers import AutoTokenizer

KEY = "LMFLOWS_HARNESS_KEY"
# how a line of progress begins, and how often there is one
PROGRESS, PROGRESS_SECONDS = "answered", 10.0
LOG = logging.getLogger("lmflows")
# an endpoint is asked itself, whatever proxy there is
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Settings:
    """The served model, as the request names it.

    Attributes:
        url: of the server, without /v1.
        tokenizer: the folder of the served model's tokenizer.
        longest: most tokens of question and answer together.
        at_once: requests under way at a time.
        timeout_s: of one request.
        trust_remote_code: run the folder's Python files; the caller has checked their hashes.
    """

    url: str
    model: str
    tokenizer: str
    longest: int
    at_once: int
    timeout_s: float
    trust_remote_code: bool


class Endpoint(TemplateLM):  # type: ignore[misc]  # the library is not installed where types are checked
    """A served model, as the library asks it."""

    backend = "causal"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(
            settings.tokenizer, trust_remote_code=settings.trust_remote_code
        )
        self.pool = ThreadPoolExecutor(settings.at_once)
        # what the library holds as a rendered text
        self.chats: dict[str, list[dict[str, str]]] = {}
        self.answered = 0
        self.last_line = time.monotonic()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    @cached_property
    def prefix_token_id(self) -> int:
        return int(
            self.tokenizer.bos_token_id
            if self.tokenizer.bos_token_id is not None
            else self.tokenizer.eos_token_id
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:  # a rendered chat has its own
            add_special_tokens = not (
                self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token)
            )
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.tokenizer.chat_template or "")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text = str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
        if add_generation_prompt:
            self.chats[text] = chat_history
        return text

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each request: the answer's log-likelihood, and whether greedy decoding gives it.

        The latter costs an answer of its own, and is asked only of questions with one answer:
        multiple choice does not need it.
        """
        answers = Counter((request.task_name, request.doc_id) for request in requests)
        found = super().loglikelihood(requests, disable_tqdm)
        greedy = self.pool.map(
            lambda request: (
                answers[request.task_name, request.doc_id] == 1 and self._is_greedy(*request.args)
            ),
            requests,
        )
        return [(value, is_greedy) for (value, _), is_greedy in zip(found, greedy, strict=True)]

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Of each (texts, question's ids, answer's ids): the answer's log-likelihood."""
        pairs = [self._cut(list(question), list(answer)) for _, question, answer in requests]
        asked = {
            ids
            for question, answer in pairs
            for ids in (question, question + answer)
            if len(ids) > 1
        }
        sums = dict(zip(asked, self.pool.map(self._nll, asked), strict=True))
        return [
            (sums.get(question, 0.0) - sums[question + answer], False) for question, answer in pairs
        ]

    def _cut(
        self, question: list[int], answer: list[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """At most `longest` tokens; the question loses its beginning."""
        longest = self.settings.longest
        if len(answer) >= longest:
            raise ValueError(
                f"an answer of {len(answer)} tokens; this server takes {longest} with the question"
            )
        excess = max(0, len(question) + len(answer) - longest)
        return tuple(question[excess:]), tuple(answer)

    def _nll(self, ids: tuple[int, ...]) -> float:
        """Sum of the NLL of ids 1..n-1, in nats."""
        return float(self._post("/get_ppl", {"input": list(ids)})["ppl"]) * (len(ids) - 1)

    def _is_greedy(self, question: str, answer: str) -> bool:
        # cut otherwise where the question ends, it may have one more
        tokens = len(self.tok_encode(answer, add_special_tokens=False)) + 1
        given = self._complete(question, {"max_tokens": tokens, "temperature": 0})
        return given.strip().startswith(answer.strip())

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text: the log-likelihood of all its tokens, in windows that do not overlap."""
        found = []
        for request in requests:
            [text] = request.args
            windows = [
                (None, *make_disjoint_window(pair))
                for pair in get_rolling_token_windows(
                    token_list=self.tok_encode(text, add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.settings.longest - 1,
                    context_len=1,
                )
            ]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(windows)))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Each request's answer, up to the first of its stop strings. Greedy, unless a task asks
        for something else."""
        return list(self.pool.map(lambda request: self._answer(*request.args), requests))

    def _answer(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        body: dict[str, Any] = {"max_tokens": options.get("max_gen_toks", 256), "temperature": 0}
        if options.get("do_sample"):
            body |= {name: options[name] for name in ("temperature", "top_p") if name in options}
        if until:
            body["stop"] = until[:4]  # OpenAI's limit
        history = self.chats.get(context)
        text = self._complete(context, body) if history is None else self._reply(history, body)
        ends = [text.find(stop) for stop in until if stop]
        return text[: min((end for end in ends if end >= 0), default=len(text))]

    def _complete(self, prompt: str, body: dict[str, Any]) -> str:
        request = {"model": self.settings.model, "prompt": prompt} | body
        return str(self._post("/v1/completions", request)["choices"][0]["text"])

    def _reply(self, history: list[dict[str, str]], body: dict[str, Any]) -> str:
        request = {"model": self.settings.model, "messages": history} | body
        answer = self._post("/v1/chat/completions", request)
        return str(answer["choices"][0]["message"]["content"] or "")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(KEY)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.settings.url + path, data=json.dumps(body).encode(), headers=headers
        )
        try:
            with OPENER.open(request, timeout=self.settings.timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(
                f"{path} answered {error.code}: {error.read(500).decode(errors='replace')}"
            ) from None
        except OSError as error:
            raise RuntimeError(f"{path} did not answer: {error}") from None
        self.answered += 1
        if time.monotonic() - self.last_line > PROGRESS_SECONDS:
            self.last_line = time.monotonic()
            print(f"{PROGRESS} {self.answered} requests", flush=True)
        return answer


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        manager = _manager(request["include"], request["tasks"])
        model = Endpoint(Settings(**request["endpoint"]))
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=request["tasks"],
            task_manager=manager,
            limit=request["limit"],
            log_samples=True,
            apply_chat_template=request["chat"],
            num_fewshot=request["fewshot"],
        )
    except Exception as error:
        LOG.exception("the evaluation failed")
        answer: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
    else:
        assert found is not None
        answer = {
            "version": importlib.metadata.version("lm_eval"),
            "results": found["results"],
            "samples": {
                task: [_sample(sample) for sample in samples]
                for task, samples in found["samples"].items()
            },
        }
    Path(sys.argv[2]).write_text(json.dumps(answer, default=str))
    sys.stdout.flush()
    os._exit(0)  # threads of the pool may still wait for a server


def _manager(include: str | None, tasks: list[str]) -> TaskManager:
    """Where tasks are looked for. To read the library's own 14,000 takes seconds, which tasks that
    are all in `include` can do without; a group there may name others."""
    if include is not None:
        manager = TaskManager(include_path=include, include_defaults=False)
        if set(tasks) <= set(manager.all_subtasks):
            return manager
    return TaskManager(include_path=include)


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a question: which it is, each metric's figure, and what was answered."""
    return {
        "id": f"{sample['doc_id']}-{sample['doc_hash'][:8]}",
        "filter": sample["filter"],
        "answer": str(sample["filtered_resps"])[:300],
        "metrics": {
            name: sample[name]
            for name in sample["metrics"]
            if isinstance(sample[name], int | float)
        },
    }


if __name__ == "__main__":
    main()
