"""The reference server: what a client of the OpenAI API gets from it, and what it gets when
something goes wrong.

Every test talks HTTP to the app over the small model, mostly through the `openai` client.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tasks.engines.reference import ReferenceEngine
from tasks.serving.reference_server.streamer import TextStreamer
from tests.support.reference_server import NAME, serving

CHAT = "/v1/chat/completions"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
LIST: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a list in Python?"}]
LIST_ANSWER = "A list is a mutable sequence of objects."


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def url(engine: ReferenceEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


@pytest.fixture
def speak(engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the model say a given text, token by token, whatever it is asked."""
    forward = engine.model.forward

    def plan(text: str) -> None:
        ids = iter([*engine.tokenizer(text).input_ids, *[engine.tokenizer.eos_token_id] * 99])

        @functools.wraps(forward)
        def forced(**inputs: Any) -> Any:
            output = forward(**inputs)
            output.logits[:, -1] = torch.nn.functional.one_hot(
                torch.tensor(next(ids)), output.logits.shape[-1]
            ).float()
            return output

        monkeypatch.setattr(engine.model, "forward", forced)

    return plan


@pytest.fixture
def on_each_token(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[int], None]], None]:
    """Has a function called before each token is computed, with the number of tokens before it."""
    forward = engine.model.forward

    def install(function: Callable[[int], None]) -> None:
        calls = iter(range(10**6))

        @functools.wraps(forward)
        def watched(**inputs: Any) -> Any:
            function(next(calls))
            return forward(**inputs)

        monkeypatch.setattr(engine.model, "forward", watched)

    return install


def ask(
    client: openai.OpenAI,
    messages: list[ChatCompletionMessageParam],
    *,
    stream: bool,
    **options: Any,
) -> tuple[str, str]:
    """A greedy answer and its finish reason."""
    answer: Any = client.chat.completions.create(
        model=NAME, messages=messages, stream=stream, **{"temperature": 0} | options
    )
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    chunks = list(answer)
    return (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        chunks[-1].choices[0].finish_reason,
    )


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@both
def test_the_answer_is_the_reference_engines(
    client: openai.OpenAI, engine: ReferenceEngine, stream: bool
) -> None:
    expected = engine.generate([engine.prompt_ids(LIST)], 64)[0]
    assert ask(client, LIST, stream=stream, max_tokens=64) == (
        expected.text,
        expected.finish_reason,
    )


@both
def test_earlier_turns_reach_the_model(
    client: openai.OpenAI, engine: ReferenceEngine, stream: bool
) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        *HELLO,
    ]
    expected, alone = engine.generate([engine.prompt_ids(messages), engine.prompt_ids(HELLO)], 64)
    assert ask(client, messages, stream=stream, max_tokens=64)[0] == expected.text != alone.text


def test_usage_counts_the_tokens_of_prompt_and_answer(
    client: openai.OpenAI, engine: ReferenceEngine
) -> None:
    prompt = engine.prompt_ids(LIST)
    answer = client.chat.completions.create(model=NAME, messages=LIST, temperature=0)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        len(prompt),
        engine.generate([prompt], 64)[0].tokens,
    )


def test_a_stream_tells_the_same_usage_if_asked(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=LIST, temperature=0)
    stream = client.chat.completions.create(
        model=NAME,
        messages=LIST,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert list(stream)[-1].usage == whole.usage


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == [NAME]


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
def test_a_plain_completion_goes_on_with_the_prompt(
    client: openai.OpenAI, engine: ReferenceEngine, as_ids: bool
) -> None:
    ids = engine.tokenizer("The with statement").input_ids
    answer = client.completions.create(
        model=NAME, prompt=ids if as_ids else "The with statement", max_tokens=12, temperature=0
    )
    assert answer.choices[0].text.strip() == engine.generate([ids], 12)[0].text


@both
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("mutable seq", "A list is a "),
        (["objects", " is a"], "A list"),
        ("A list", ""),
        (".", LIST_ANSWER.removesuffix(".")),
        ("mutable sequel", LIST_ANSWER),
    ],
)
def test_the_text_ends_before_the_stop_string(
    client: openai.OpenAI, stop: str | list[str], expected: str, stream: bool
) -> None:
    assert ask(client, LIST, stream=stream, stop=stop) == (expected, "stop")


def test_nothing_is_generated_after_a_stop_string(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=LIST, temperature=0, stop=" is")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3  # "A", " list", " is"


@both
def test_max_tokens_cuts_the_answer(client: openai.OpenAI, stream: bool) -> None:
    text, reason = ask(client, LIST, stream=stream, max_tokens=3)
    assert reason == "length"
    assert LIST_ANSWER.startswith(text)


@pytest.mark.parametrize(
    ("ignore", "tokens", "reason"), [(False, 4, "stop"), (None, 4, "stop"), (True, 9, "length")]
)
def test_ignore_eos_goes_on_to_max_tokens(
    client: openai.OpenAI,
    engine: ReferenceEngine,
    speak: Callable[[str], None],
    ignore: bool | None,
    tokens: int,
    reason: str,
) -> None:
    answer = engine.tokenizer.decode(engine.tokenizer("A list of words").input_ids[:3])
    speak(answer)
    result = client.completions.create(
        model=NAME, prompt="The ", max_tokens=9, temperature=0, extra_body={"ignore_eos": ignore}
    )
    assert result.usage is not None and (
        result.usage.completion_tokens,
        result.choices[0].finish_reason,
    ) == (tokens, reason)
    assert result.choices[0].text == answer


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        return (
            client.completions.create(
                model=NAME, prompt="The ", max_tokens=24, temperature=1.2, seed=seed
            )
            .choices[0]
            .text
        )

    assert sample(1) == sample(1) != sample(2)


def test_characters_made_of_several_tokens_are_streamed_whole(
    client: openai.OpenAI, speak: Callable[[str], None]
) -> None:
    text = "naïve café 日本語 🎉 done"
    speak(text)
    stream = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert ("".join(pieces), any("\ufffd" in piece for piece in pieces)) == (text, False)


def test_text_is_streamed_token_by_token_where_words_have_no_spaces(
    client: openai.OpenAI, speak: Callable[[str], None]
) -> None:
    speak("ありがとうございます")
    stream = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0, stream=True)
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) == 10


def test_indentation_survives_a_tokenizer_that_drops_the_leading_space() -> None:
    words = ["▁if", "▁x", ":", "\n", "▁▁▁▁", "return"]
    raw = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=":")
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces: list[str] = []
    text = TextStreamer(PreTrainedTokenizerFast(tokenizer_object=raw), [], pieces.append)
    for value in ([0], *([index] for index in range(len(words)))):  # the prompt comes first
        text.put(torch.tensor(value))
    text.end()
    assert "".join(pieces) == "if x:\n    return"


def test_without_its_key_a_guarded_server_refuses_all_but_its_health(
    engine: ReferenceEngine,
) -> None:
    with serving(engine, ["secret", "other"]) as address:

        def status(path: str, key: str) -> int:
            return httpx.get(address + path, headers={"Authorization": f"Bearer {key}"}).status_code

        assert [status("/v1/models", key) for key in ("-", "wrong", "secret", "other")] == [
            401,
            401,
            200,
            200,
        ]
        assert status("/health", "-") == 200
        assert httpx.get(f"{address}/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (CHAT, {"model": "other", "messages": HELLO}, 404, "other"),
        (CHAT, b"{not json", 400, "JSON"),
        (CHAT, {"model": NAME}, 400, "messages"),
        (CHAT, {"model": NAME, "messages": []}, 400, "messages"),
        (CHAT, {"model": NAME, "messages": HELLO, "n": 2}, 400, "n: "),
        (CHAT, {"model": NAME, "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"model": NAME, "messages": HELLO, "stop": ""}, 400, "stop"),
        (CHAT, {"model": NAME, "messages": HELLO, "seed": 2**80}, 400, "seed"),
        (
            CHAT,
            {"model": NAME, "messages": [{"role": "user", "content": "word " * 2000}]},
            400,
            "tokens",
        ),
        (
            CHAT,
            {
                "model": NAME,
                "messages": [{"role": "user", "content": "word " * 2000}],
                "stream": True,
            },
            400,
            "tokens",
        ),
        ("/v1/completions", {"model": NAME, "prompt": ""}, 400, "empty"),
        ("/v1/completions", {"model": NAME, "prompt": [5, 10**6]}, 400, "vocabulary"),
        ("/get_ppl", {"input": [5, 10**6]}, 400, "vocabulary"),
        ("/get_ppl", {"input": [5, -1]}, 400, "vocabulary"),
        ("/get_ppl", {"input": [5]}, 400, "1 tokens"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_refused_in_the_words_of_the_api(
    url: str, path: str, body: Any, status: int, words: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(url + path, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (
        status,
        status,
        "invalid_request_error",
    )
    assert words in error["message"]


def test_fields_that_clients_send_as_null_count_as_left_out(url: str) -> None:
    body = {
        "model": NAME,
        "messages": LIST,
        "temperature": 0,
        "max_tokens": None,
        "n": None,
        "seed": None,
        "stop": None,
        "stream_options": None,
    }
    assert (
        httpx.post(url + CHAT, json=body).json()["choices"][0]["message"]["content"] == LIST_ANSWER
    )


@both
@pytest.mark.parametrize("after", [0, 5], ids=["at_once", "in_the_middle"])
def test_a_failing_generation_is_an_error_and_the_next_request_is_served(
    client: openai.OpenAI,
    on_each_token: Callable[[Callable[[int], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    after: int,
) -> None:
    def fail(tokens: int) -> None:
        if tokens == after:
            raise RuntimeError("planted")

    with monkeypatch.context():
        on_each_token(fail)
        with pytest.raises(openai.APIError, match="planted"):
            ask(client, LIST, stream=stream, timeout=5)
    assert ask(client, LIST, stream=False, timeout=5)[0] == LIST_ANSWER


@both
def test_a_client_that_leaves_does_not_keep_the_server_busy(
    url: str, on_each_token: Callable[[Callable[[int], None]], None], stream: bool
) -> None:
    on_each_token(lambda tokens: time.sleep(0.02))  # so the 900 tokens take 18 s at least
    body = {
        "model": NAME,
        "prompt": "Python ",
        "max_tokens": 900,
        "temperature": 0,
        "stream": stream,
    }
    if stream:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=5) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, timeout=1)
    assert httpx.post(url + "/get_ppl", json={"input": [5, 6, 7]}, timeout=5).status_code == 200


def test_a_client_that_leaves_the_queue_is_not_served(
    url: str, on_each_token: Callable[[Callable[[int], None]], None]
) -> None:
    computed: list[int] = []
    body = {"model": NAME, "prompt": "Python ", "max_tokens": 40, "temperature": 0}

    def slow(tokens: int) -> None:
        computed.append(tokens)
        time.sleep(0.03)

    on_each_token(slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=20)
        time.sleep(0.3)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, timeout=0.3)
        assert first.result().status_code == 200
    # whatever waited has had its turn
    assert httpx.post(url + "/get_ppl", json={"input": [5, 6, 7]}, timeout=5).status_code == 200
    assert len(computed) == 41  # 40 tokens, and the score


def test_requests_at_the_same_time_both_get_their_own_answer(
    client: openai.OpenAI, engine: ReferenceEngine
) -> None:
    expected = [
        generation.text
        for generation in engine.generate([engine.prompt_ids(HELLO), engine.prompt_ids(LIST)], 64)
    ]
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(
            lambda messages: ask(client, messages, stream=True)[0], [HELLO, LIST] * 2
        )
        assert list(answers) == expected * 2


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
def test_get_ppl_is_the_engines_mean_score(url: str, engine: ReferenceEngine, as_ids: bool) -> None:
    ids = engine.tokenizer("The list is a sequence").input_ids
    live = httpx.post(
        url + "/get_ppl", json={"input": ids if as_ids else "The list is a sequence"}
    ).json()["ppl"]
    assert live == pytest.approx(engine.score([ids])[0].nll.mean(), abs=1e-6)
