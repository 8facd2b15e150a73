"""Generation by any server with OpenAI's interface, through the ``openai`` client library."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from algorithms import ParameterError, closest
from models.math.chat import CHAT_STOP, chat_messages, in_format, reply_blocks
from models.math.generation import (
    PromptTooLongError,
    check_request,
    cut_at_stop,
    prompt_seeds,
)

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["SPECIAL_TOKENS_KEPT", "EndpointError", "EndpointGenerator"]

SPECIAL_TOKENS_KEPT: Mapping[str, object] = {
    "skip_special_tokens": False, "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
}
"""``extra_body`` for a vLLM server whose model writes the special tokens of the format; without it
the server drops them from its replies."""

_APIS = ("completions", "chat")
_REPORTED = ("stop_reason", "matched_stop", "stopping_word")
"""What vLLM, SGLang and llama.cpp call the stop string that ended a text."""


class EndpointError(ParameterError):
    """A request that the server refused or answered with something else than a completion."""

    def __init__(self, url: str, problem: str, rule: str) -> None:
        super().__init__("endpoint", url, f"{problem}: {rule}" if rule else problem)
        self.problem = problem
        self._arguments = (url, problem, rule)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._arguments


class EndpointGenerator:
    """A served model as a :class:`~models.math.generation.Generator`.

    With ``api="chat"`` a prompt in the format of :mod:`models.math.solution` becomes the messages
    of a conversation in Markdown, see :mod:`models.math.chat`, and the reply comes back in the
    format; any other prompt is one message of the user. A server that does not report which stop
    string ended a text is taken to have met the first one, or, if it wrote nothing, the last: in
    the format a block is never empty, so that was the end of the message.

    Parameters
    ----------
    url: up to and including ``/v1``.
    model: the name that the server knows the model by.
    api: ``"completions"`` for ``/v1/completions``, which continues exact text; or ``"chat"``.
    key_variable: environment variable with the API key. Servers without keys need none.
    timeout: seconds until a reply must be there.
    retries: how often a request is sent again after a lost connection, a time-out, 408, 409, 429
        and 5xx, with exponential back-off from 0.5 to 8 s or as long as the server asks for.
    concurrency: most requests at a time.
    extra_body: further fields of each request, e.g. :data:`SPECIAL_TOKENS_KEPT`.

    Raises
    ------
    ParameterError: an option out of range, or the ``openai`` library is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: Literal["completions", "chat"] = "completions",
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        extra_body: Mapping[str, object] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ParameterError("url", url, "must begin with http:// or https://",
                                 f"http://{url}")
        if api not in _APIS:
            raise ParameterError("api", api, f"must be one of {', '.join(_APIS)}",
                                 closest(str(api), _APIS) or _APIS[0])
        if not 0 < timeout < float("inf"):
            raise ParameterError("timeout", timeout, "must be above 0 s and finite", 120.0)
        if retries < 0:
            raise ParameterError("retries", retries, "must be 0 or more", 0)
        if concurrency < 1:
            raise ParameterError("concurrency", concurrency, "must be 1 or more", 1)
        _library()
        self.url, self.model, self.api, self.key_variable = url, model, api, key_variable
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self.extra_body = dict(extra_body or {})

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """As :meth:`Generator.generate <models.math.generation.Generator.generate>` says.

        Seeds are passed on; whether a server heeds them is its own affair. Raises
        :class:`EndpointError` for the first request that failed in the end; those not sent yet are
        not sent.
        """
        check_request(stop, max_new_tokens, temperature)
        ask = self._complete if self.api == "completions" else self._chat
        # OpenAI's interface has no key-less client; servers without keys ignore this one.
        key = os.environ.get(self.key_variable) or "none"
        client = _library().OpenAI(base_url=self.url, api_key=key, timeout=self.timeout,
                                   max_retries=self.retries)
        with client, ThreadPoolExecutor(self.concurrency) as pool:
            jobs = []
            for prompt, own in zip(prompts, prompt_seeds(prompts, seed), strict=True):
                options: dict[str, Any] = {
                    "model": self.model, "max_tokens": max_new_tokens, "temperature": temperature,
                    "extra_body": self.extra_body}
                if temperature > 0:
                    options["seed"] = own >> 32  # fits the 32 bits that all servers read
                jobs.append(pool.submit(self._guarded, ask, client, prompt, stop, options))
            try:
                replies = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        over = [index for index, reply in enumerate(replies) if reply is None]
        if over:
            raise PromptTooLongError(over, f"{len(over)} of {len(replies)}",
                                     f"longer than the context of {self.model}, says the server")
        return [reply for reply in replies if reply is not None]

    def _complete(self, client: OpenAI, prompt: str, stop: Sequence[str],
                  options: dict[str, Any]) -> str:
        reply = client.completions.create(prompt=prompt, stop=list(stop) or None, **options)
        choice = self._choice(reply)
        return self._ended(getattr(choice, "text", None), choice, stop)

    def _chat(self, client: OpenAI, prompt: str, stop: Sequence[str],
              options: dict[str, Any]) -> str:
        formatted = in_format(prompt)
        messages: Any = chat_messages(prompt)  # plain dictionaries, which its types do not admit
        stops = [CHAT_STOP] if formatted else list(stop)
        reply = client.chat.completions.create(
            messages=messages, stop=stops or None, **options)
        choice = self._choice(reply)
        text = getattr(getattr(choice, "message", None), "content", None)
        if not formatted:
            return self._ended(text, choice, stop)
        return reply_blocks(self._text(text), complete=choice.finish_reason != "length")

    def _choice(self, reply: object) -> Any:
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise EndpointError(self.url, "malformed reply", "has no list of choices")
        return choices[0]

    def _text(self, text: object) -> str:
        if not isinstance(text, str):
            raise EndpointError(self.url, "malformed reply", "its choice has no text")
        return text

    def _ended(self, reply: object, choice: Any, stop: Sequence[str]) -> str:
        text = self._text(reply)
        if any(each in text for each in stop):
            return cut_at_stop(text, stop)
        if choice.finish_reason != "stop" or not stop:
            return text
        extra = choice.model_extra or {}
        reported = [extra[name] for name in _REPORTED if name in extra]
        if reported:
            return text + (reported[0] if reported[0] in stop else "")
        return text + (stop[0] if text else stop[-1])

    def _guarded(self, ask: Callable[[OpenAI, str, Sequence[str], dict[str, Any]], str],
                 client: OpenAI, prompt: str, stop: Sequence[str],
                 options: dict[str, Any]) -> str | None:
        """The reply, ``None`` for a prompt that is too long; or an error in one line."""
        openai = _library()
        try:
            return ask(client, prompt, stop, options)
        except openai.APITimeoutError:
            problem, rule = f"no reply within {self.timeout:g} s", f"tried {self.retries + 1} times"
        except openai.APIConnectionError as error:
            problem = _line(error.__cause__ or error)
            rule = "is the server running, and is this its address?"
        except openai.APIStatusError as error:
            said = _line(error.body.get("message", "") if isinstance(error.body, dict) else
                         error.message)
            if error.status_code == 400 and _too_long(error.code, said):
                return None
            problem, rule = f"status {error.status_code}", said
            if error.status_code in (401, 403):
                problem += f", is the API key in {self.key_variable} right?"
            elif error.status_code == 429:
                problem += f" after {self.retries + 1} requests, lower concurrency?"
        except (openai.APIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            problem, rule = "malformed reply", _line(error)
        raise EndpointError(self.url, problem, rule)


def _too_long(code: str | None, said: str) -> bool:
    return code == "context_length_exceeded" or "maximum context length" in said


def _line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else line[:197] + "..."


def _library() -> ModuleType:
    try:
        import openai
    except ImportError:
        raise ParameterError("EndpointGenerator", "openai", "is not installed; run "
                             "`pip install 'nmsat[endpoint]'`") from None
    return openai
