"""Served models as generators, against a server of our own on the loopback interface."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from algorithms import ParameterError
from models.math.generators import (
    SPECIAL_TOKENS_KEPT,
    EndpointError,
    EndpointGenerator,
    PromptTooLongError,
)
from models.math.solver import STOP

Json = dict[str, Any]
Answer = tuple[int, Json | str]


class Stub:
    """A server that records requests and answers with ``answer(request)``, status and body."""

    def __init__(self) -> None:
        self.requests: list[Json] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[Json], Answer] = lambda request: completion("")
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.requests.append(request)
                    stub.paths.append(self.path)
                    stub.keys.append(self.headers.get("Authorization"))
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                status, body = stub.answer(request)
                with stub.lock:
                    stub.at_once -= 1
                raw = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that no longer waits is no error."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def generator(self, **options: Any) -> EndpointGenerator:
        return EndpointGenerator(self.url, "solver-7b", **{"timeout": 20.0, **options})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Stub()
    yield server
    server.close()


def completion(text: str, finish: str = "stop", **extra: object) -> Answer:
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **extra}
    return 200, {"id": "c", "object": "text_completion", "created": 0, "model": "solver-7b",
                 "choices": [choice]}


def chat_reply(text: str | None, finish: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text},
              "finish_reason": finish}
    return 200, {"id": "c", "object": "chat.completion", "created": 0, "model": "solver-7b",
                 "choices": [choice]}


def test_exact_text_goes_out_and_comes_back_in_order(stub: Stub) -> None:
    def answer(request: Json) -> Answer:
        time.sleep(0.02 * (3 - int(request["prompt"])))  # the first is answered last
        return completion(f"<|text|>{request['prompt']}")
    stub.answer = answer
    texts = stub.generator().generate(["0", "1", "2"], stop=STOP, max_new_tokens=7)
    assert texts == [f"<|text|>{i}<|endofblock|>" for i in range(3)]
    assert set(stub.paths) == {"/v1/completions"}
    for request in stub.requests:
        assert request["model"] == "solver-7b" and request["stop"] == list(STOP)
        assert request["max_tokens"] == 7 and request["temperature"] == 0
        assert "seed" not in request


@pytest.mark.parametrize(("reply", "text"), [
    (completion("<|text|>5"), "<|text|>5<|endofblock|>"),
    (completion(""), "<|endofmessage|>"),
    (completion("<|text|>5", stop_reason="<|endofmessage|>"), "<|text|>5<|endofmessage|>"),
    (completion("<|text|>5", matched_stop="<|endofmessage|>"), "<|text|>5<|endofmessage|>"),
    (completion("<|text|>5", stop_reason=None), "<|text|>5"),
    (completion("<|text|>5", "length"), "<|text|>5"),
    (completion("<|text|>5<|endofblock|>"), "<|text|>5<|endofblock|>"),
    (completion("<|text|>5<|endofblock|><|code|>", "length"), "<|text|>5<|endofblock|>"),
])
def test_the_stop_string_is_part_of_the_text(stub: Stub, reply: Answer, text: str) -> None:
    stub.answer = lambda request: reply
    assert stub.generator().generate(["p"], stop=STOP, max_new_tokens=7) == [text]


def test_seeds_are_sent_and_equal_prompts_have_their_own(stub: Stub) -> None:
    generator = stub.generator(extra_body=SPECIAL_TOKENS_KEPT, concurrency=1)
    for seed in (1, 1, 2):
        generator.generate(["p", "p", "q"], stop=STOP, max_new_tokens=1, temperature=0.7, seed=seed)
    seeds = [request["seed"] for request in stub.requests]
    assert seeds[:3] == seeds[3:6]
    assert len({*seeds}) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert all(request["skip_special_tokens"] is False for request in stub.requests)


def test_the_key_comes_from_its_variable(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    stub.generator(key_variable="MY_KEY").generate(["p"], stop=STOP, max_new_tokens=1)
    stub.generator().generate(["p"], stop=STOP, max_new_tokens=1)
    assert stub.keys == ["Bearer sesame", "Bearer none"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(stub: Stub, status: int) -> None:
    def answer(request: Json) -> Answer:
        return completion("5") if len(stub.requests) > 2 else (status, {"error": {"message": "-"}})
    stub.answer = answer
    texts = stub.generator(retries=2).generate(["p"], stop=["\n"], max_new_tokens=1)
    assert texts == ["5\n"] and len(stub.requests) == 3


def test_requests_at_a_time_are_bounded(stub: Stub) -> None:
    def answer(request: Json) -> Answer:
        time.sleep(0.05)
        return completion("5")
    stub.answer = answer
    stub.generator(concurrency=3).generate(["p"] * 9, stop=STOP, max_new_tokens=1)
    assert len(stub.requests) == 9 and 2 <= stub.most_at_once <= 3


@pytest.mark.parametrize(("reply", "message"), [
    ((401, {"error": {"message": "bad key"}}),
     "status 401, is the API key in OPENAI_API_KEY right?: bad key"),
    ((429, {"error": {"message": "slow\ndown"}}),
     "status 429 after 2 requests, lower concurrency?: slow down"),
    ((404, {"error": {"message": "no model solver-7b"}}), "status 404: no model solver-7b"),
    ((500, "<html>" + "x" * 999), "status 500: "),
    ((200, "<html>"), "malformed reply: "),
    ((200, {"object": "error"}), "malformed reply: has no list of choices"),
    ((200, {"choices": []}), "malformed reply: has no list of choices"),
    ((200, {"choices": [{"finish_reason": "stop"}]}), "malformed reply: its choice has no text"),
    ((200, {"choices": [{"text": 5, "finish_reason": "stop"}]}),
     "malformed reply: its choice has no text"),
])
def test_failures_are_one_line(stub: Stub, reply: Answer, message: str) -> None:
    stub.answer = lambda request: reply
    with pytest.raises(EndpointError) as error:
        stub.generator(retries=1).generate(["p"], stop=STOP, max_new_tokens=1)
    text = str(error.value)
    assert text.startswith(f"endpoint='{stub.url}': {message}"), text
    assert "\n" not in text and len(text) < 300
    assert str(pickle.loads(pickle.dumps(error.value))) == text
    assert len(stub.requests) == (2 if reply[0] in (429, 500) else 1)


def test_a_failure_stops_requests_not_yet_sent(stub: Stub) -> None:
    stub.answer = lambda request: (401, {"error": {"message": "bad key"}})
    with pytest.raises(EndpointError):
        stub.generator(concurrency=1).generate(["p"] * 50, stop=STOP, max_new_tokens=1)
    assert len(stub.requests) < 50


def test_nobody_listening(stub: Stub) -> None:
    url = stub.url
    stub.server.server_close()
    generator = EndpointGenerator(url, "m", retries=0)
    with pytest.raises(EndpointError, match=r"Connection refused: is the server running, and is "
                       r"this its address\?"):
        generator.generate(["p"], stop=STOP, max_new_tokens=1)


def test_a_late_reply(stub: Stub) -> None:
    def answer(request: Json) -> Answer:
        time.sleep(0.5)
        return completion("5")
    stub.answer = answer
    with pytest.raises(EndpointError, match=r"no reply within 0.1 s: tried 1 times"):
        stub.generator(timeout=0.1, retries=0).generate(["p"], stop=STOP, max_new_tokens=1)


@pytest.mark.parametrize("error", [
    {"message": "too long", "code": "context_length_exceeded"},
    {"message": "This model's maximum context length is 9 tokens.", "code": 400},
])
def test_long_prompts_are_told_apart(stub: Stub, error: Json) -> None:
    stub.answer = lambda request: (completion("5") if request["prompt"] == "p" else
                                   (400, {"error": error}))
    with pytest.raises(PromptTooLongError, match="longer than the context of solver-7b") as caught:
        stub.generator().generate(["long", "p", "long"], stop=STOP, max_new_tokens=1)
    assert caught.value.indices == (0, 2)


PROMPT = ("<|system|><|text|><|endofblock|><|endofmessage|>"
          "<|user|><|text|>Add 2 and 3.<|endofblock|><|endofmessage|><|assistant|>")


def test_a_conversation_reaches_a_chat_model_as_markdown(stub: Stub) -> None:
    stub.answer = lambda request: chat_reply("It is 5.")
    prompt = PROMPT + ("<|text|>I add.<|endofblock|><|code|>print(2 + 3)<|endofblock|>"
                       "<|execution|>5<|endofblock|>")
    texts = stub.generator(api="chat").generate([prompt], stop=STOP, max_new_tokens=9)
    assert texts == ["<|text|>It is 5.<|endofblock|><|endofmessage|>"]
    assert stub.paths == ["/v1/chat/completions"]
    system, *messages = stub.requests[0]["messages"]
    assert system["role"] == "system" and "```python" in system["content"]
    assert messages == [
        {"role": "user", "content": "Add 2 and 3."},
        {"role": "assistant", "content": "I add.\n```python\nprint(2 + 3)\n```"},
        {"role": "user", "content": "```output\n5\n```"}]
    assert stub.requests[0]["stop"] == ["```output"]


@pytest.mark.parametrize(("reply", "finish", "text"), [
    ("Now.\n```python\nprint(5)\n```", "stop",
     "<|text|>Now.\n<|endofblock|><|code|>print(5)<|endofblock|>"),
    ("```py\na = 1\n\nprint(a)\n```\nIt prints 7.", "stop",
     "<|code|>a = 1\n\nprint(a)<|endofblock|>"),
    ("```python\nprint(5)", "length", "<|code|>print(5)"),
    ("```python\nprint(5)\n```", "length", "<|code|>print(5)<|endofblock|>"),
    ("It is", "length", "<|text|>It is"),
    ("Here:\n```json\n{}\n```\nThe answer is 5.", "stop",
     "<|text|>Here:\n```json\n{}\n```\nThe answer is 5.<|endofblock|><|endofmessage|>"),
    ("A\n```json\n{}\n```\n```python3\n5\n```", "stop",
     "<|text|>A\n```json\n{}\n```\n<|endofblock|><|code|>5<|endofblock|>"),
    ("Now.\r\n```python\r\n5\r\n```\r\nSo.", "stop",
     "<|text|>Now.\r\n<|endofblock|><|code|>5<|endofblock|>"),
    ("```python\n```", "stop", "<|code|><|endofblock|>"),
    ("Use ```x``` and\n```y``` too", "stop",
     "<|text|>Use ```x``` and\n```y``` too<|endofblock|><|endofmessage|>"),
])
def test_replies_of_chat_models_become_blocks(stub: Stub, reply: str, finish: str,
                                              text: str) -> None:
    stub.answer = lambda request: chat_reply(reply, finish)
    assert stub.generator(api="chat").generate([PROMPT], stop=STOP, max_new_tokens=9) == [text]


def test_plain_text_is_one_message_of_the_user(stub: Stub) -> None:
    stub.answer = lambda request: chat_reply("Problem 1")
    texts = stub.generator(api="chat").generate(["Which is harder?"], stop=["\n"],
                                                max_new_tokens=9)
    assert texts == ["Problem 1\n"]
    assert stub.requests[0]["messages"] == [{"role": "user", "content": "Which is harder?"}]


def test_a_chat_reply_without_text_is_malformed(stub: Stub) -> None:
    stub.answer = lambda request: chat_reply(None)
    with pytest.raises(EndpointError, match="malformed reply: its choice has no text"):
        stub.generator(api="chat").generate([PROMPT], stop=STOP, max_new_tokens=9)


@pytest.mark.parametrize(("options", "message"), [
    ({"url": "localhost:8000/v1"},
     "must begin with http://.*nearest legal value: http://localhost"),
    ({"api": "chats"}, "api='chats': must be one of completions, chat; nearest legal value: chat"),
    ({"timeout": 0}, "timeout=0: must be above 0 s"),
    ({"retries": -1}, "retries=-1: must be 0 or more"),
    ({"concurrency": 0}, "concurrency=0: must be 1 or more"),
])
def test_bad_options_are_named(options: Json, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        EndpointGenerator(**{"url": "http://localhost/v1", "model": "m", **options})


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ParameterError, match=r"pip install 'nmsat\[endpoint\]'"):
        EndpointGenerator("http://localhost/v1", "m")
