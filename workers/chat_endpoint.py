"""Client of a language model at an OpenAI-compatible endpoint that answers questions with JSON of a fixed schema.

    question ──► cached? ──► request ──► JSON of exactly the schema ──► answer
                    │            └── busy, broken, or no such JSON: tried again, then given up: None
                    └── a file of the directory `cache`: a question that was answered is not paid twice

What a question is about travels as fields of one JSON object, so that no text in it can pass for an instruction or for
the end of another. An answer is read from structured output alone: whatever else a reply says, it is no answer. The
only module that uses the package openai.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers import progress
from workers.config.endpoint import LOOPBACK, EndpointConfig
from workers.files import durable

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
TOO_LONG = (400, 413)  # statuses of a question that does not fit, if their text says so; the next one may fit
TOO_LONG_TEXT = re.compile(r"context[ _](length|window)|max_model_len|too (long|large)|longer than", re.IGNORECASE)
MAX_REPLY_BYTES = 2**20
MAX_WAIT_S = 60.0


class EndpointRefusedError(Exception):
    """The endpoint refuses a request, and no retry can help. `fix`: what to do."""

    def __init__(self, why: str, fix: str) -> None:
        self.fix = fix
        super().__init__(why)


class BudgetSpentError(EndpointRefusedError):
    """The budget of the client is used up, so that no question is asked any more."""


class NoAnswerError(Exception):
    """A reply without an answer, or no reply.

    `after_s`: the wait that the endpoint asks for. `is_final`: no retry can help with this question.
    """

    def __init__(self, why: str, after_s: float | None = None, *, is_final: bool = False) -> None:
        self.after_s, self.is_final = after_s, is_final
        super().__init__(why)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Form of the answers: a JSON schema, its name, and the function that reads a reply.

    `parse` takes the text of a reply and raises NoAnswerError if it is not of that form.
    """

    name: str
    schema: Mapping[str, Any]
    parse: Callable[[str], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Usage of an endpoint: requests, including retries, and the tokens that it reports."""

    requests: int = 0
    cached: int = 0  # questions that were answered before
    failed: int = 0  # questions without an answer
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out

    def cost(self, price: tuple[float, float]) -> float:
        """Return the dollars that the tokens cost. `price`: dollars per million tokens read, and written."""
        return (price[0] * self.tokens_in + price[1] * self.tokens_out) / 1e6


class ChatEndpoint:
    """Client of one endpoint. `key` is sent as a bearer token; it appears in no message or file."""

    def __init__(
        self,
        config: EndpointConfig,
        key: str | None,
        *,
        seed: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the client; no request is made. `seed`: of the jitter of waits.

        Processes may share the directory of the answers, `cache` of the settings. Each has a budget of its own.
        """
        self._config, self._key, self._sleep = config, key, sleep
        self._cache = None if config.cache is None else Path(config.cache)
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # guards what follows
        self._counts = dict.fromkeys(("requests", "cached", "failed", "tokens_in", "tokens_out"), 0)
        self.last_failure = ""  # why the last request that failed did

    @property
    def usage(self) -> Usage:
        """Usage since the client was made."""
        with self._lock:
            return Usage(**self._counts)

    def ask(self, system: str, questions: Sequence[Mapping[str, Any]], form: Form) -> list[Any]:
        """Return the answer to each question; None to one without an answer after all retries.

        Equal questions are asked once.

        Args:
            system: instructions, the same for all questions.
            questions: fields of each question.

        Raises:
            EndpointRefusedError: the endpoint refuses, such as a wrong key or model.
            BudgetSpentError: the budget is used up. Answers that were paid for are in the cache.
        """
        threads = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="endpoint")
        # Connections live as long as a call: until the next one an endpoint would have closed them.
        with _client(self._config, self._key) as client, threads as pool:
            texts = [json.dumps(question, ensure_ascii=False) for question in questions]
            distinct = dict.fromkeys(texts)
            futures = {t: pool.submit(self._answer, client, self._body(system, t, form), form) for t in distinct}
            try:
                answers = {}
                for text, future in futures.items():
                    answers[text] = future.result()
                    progress.report()
                return [answers[text] for text in texts]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _body(self, system: str, question: str, form: Form) -> dict[str, Any]:
        config = self._config
        structure: dict[str, Any] = {"type": "json_object"}
        if config.structure == "json_schema":
            schema = {"name": form.name, "strict": True, "schema": dict(form.schema)}
            structure = {"type": "json_schema", "json_schema": schema}
        return {
            "model": config.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
            ],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "response_format": structure,
        }

    def _answer(self, client: Any, body: Mapping[str, Any], form: Form) -> Any:
        place = self._place(body)
        if (answer := _stored(place, form)) is not None:
            self._count(cached=1)
            return answer
        for attempt in range(self._config.max_retries + 1):
            try:
                text = self._request(client, body)
                answer = form.parse(text)
                if place is not None:
                    _store(place, text)
                return answer
            except NoAnswerError as error:
                with self._lock:
                    self.last_failure = str(error)
                if error.is_final:
                    break
                if attempt < self._config.max_retries:
                    backoff = min(MAX_WAIT_S, 0.5 * 2**attempt) * self._random.uniform(0.5, 1)
                    self._sleep(backoff if error.after_s is None else min(MAX_WAIT_S, error.after_s))
        self._count(failed=1)
        return None

    def _place(self, body: Mapping[str, Any]) -> Path | None:
        """Return the file of the answer to a request."""
        if self._cache is None:
            return None
        asked = json.dumps([self._config.url, body], sort_keys=True).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(asked).hexdigest()
        return self._cache / digest[:2] / f"{digest[2:]}.json"

    def _request(self, client: Any, body: Mapping[str, Any]) -> str:
        """Send a request and return the text of the reply.

        Raises:
            NoAnswerError: a retry may help.
            EndpointRefusedError: no retry can help.
        """
        import openai

        self._spend()
        create = client.chat.completions.with_streaming_response.create
        headers = {"User-Agent": "rlhf"} if self._key else {"User-Agent": "rlhf", "Authorization": openai.Omit()}
        try:
            with create(**body, extra_headers=headers) as response:
                raw = _read(response)
        except openai.APIStatusError as error:
            self._raise_for_status(error)
        except openai.APIConnectionError as error:
            raise NoAnswerError(_root(error)) from None
        return self._text(raw)

    def _raise_for_status(self, error: Any) -> None:
        content = error.response.text[:400]  # read by openai before it raises
        text = " ".join(f"HTTP {error.status_code}: {content}".replace(self._key or "\0", "[redacted]").split())
        if error.status_code in RETRIED:
            after = error.response.headers.get("Retry-After", "")
            raise NoAnswerError(text, float(after) if after.isdigit() else None)
        if error.status_code in TOO_LONG and TOO_LONG_TEXT.search(content):
            raise NoAnswerError(text, is_final=True)
        fixes = {401: "check the key", 403: "check the key", 404: "check url and model"}
        fix = fixes.get(error.status_code, "check that the endpoint supports the model and the structure")
        raise EndpointRefusedError(text, fix)

    def _text(self, raw: bytes) -> str:
        try:
            reply = json.loads(raw)
            text = reply["choices"][0]["message"]["content"]
            usage = reply.get("usage") or {}
            total = int(usage.get("total_tokens") or 0)
            out = int(usage.get("completion_tokens") or 0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise NoAnswerError("the reply is not a chat completion") from None
        if not isinstance(text, str):
            raise NoAnswerError("the reply has no text")
        self._count(tokens_in=total - out, tokens_out=out)
        return text

    def _spend(self) -> None:
        """Count a request. Raises BudgetSpentError if none is left; what is under way may exceed `max_cost`."""
        config = self._config
        with self._lock:
            used = Usage(**self._counts)
            cost = used.cost(config.price)
            if config.max_requests is not None and used.requests >= config.max_requests:
                raise BudgetSpentError(f"the budget is used up after {used.requests:,} requests", "raise max_requests")
            if config.max_cost is not None and cost >= config.max_cost:
                raise BudgetSpentError(f"the budget is used up after {cost:.2f} dollars", "raise max_cost")
            self._counts["requests"] += 1

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number


def fields_of(text: str, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the object that a reply is: JSON with no other fields than `names`, and nothing around it.

    Raises:
        NoAnswerError: the reply is anything else.
    """
    try:
        reply = json.loads(text, strict=False)  # xgrammar lets control characters into texts of a bounded length
    except (ValueError, RecursionError):
        raise NoAnswerError(f"not JSON: {text[:80]!r}") from None
    if not isinstance(reply, dict) or not reply.keys() <= set(names):
        raise NoAnswerError(f"not an object with {' and '.join(names)}: {text[:80]!r}")
    return reply


def _client(config: EndpointConfig, key: str | None) -> Any:
    """Return a client of an endpoint, which is closed on leaving its context."""
    import openai

    # A redirect would carry the key elsewhere, and a proxy from the environment is for other machines.
    is_here = urllib.parse.urlsplit(config.url).hostname in LOOPBACK
    http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not is_here, timeout=config.timeout_s)
    return openai.OpenAI(
        base_url=config.url,
        api_key=key or "none",
        max_retries=0,  # `_answer` retries, also what has no answer
        timeout=config.timeout_s,
        http_client=http,
    )


def _read(response: Any) -> bytes:
    """Read the body of a reply. Whatever breaks on the way may be tried again."""
    raw = b""
    try:
        for block in response.iter_bytes():
            raw += block
            if len(raw) > MAX_REPLY_BYTES:
                break
    except Exception as error:  # of the HTTP library that openai uses
        raise NoAnswerError(_root(error)) from None
    if len(raw) > MAX_REPLY_BYTES:
        raise NoAnswerError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    return raw


def _root(error: BaseException) -> str:
    """Return what an error of the network comes from."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"


def _store(place: Path, text: str) -> None:
    """Store the text of an answer. Several processes may do so at the same time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.partial")
    durable.write(aside, text.encode("utf-8", "surrogatepass"))
    aside.replace(place)


def _stored(place: Path | None, form: Form) -> Any:
    """Return a stored answer; None if there is none, or it is damaged."""
    if place is None:
        return None
    try:
        return form.parse(place.read_text("utf-8"))
    except (OSError, ValueError, NoAnswerError):
        return None
