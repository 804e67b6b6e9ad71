"""A teacher behind an OpenAI-compatible endpoint."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import openai
from aiolimiter import AsyncLimiter
from openai.types.chat import ChatCompletion
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from starec_ray.agent.agent import split_rationale
from starec_ray.distill.settings import EndpointSettings
from starec_ray.distill.teachers import CUT_OFF, Answer, Question, Record, Usage
from starec_ray.errors import ConfigError, STARecError

# What no second try mends: a wrong key, an empty account, a model that isn't there.
FATAL = (401, 402, 403, 404)
# What may go well the next time, beside every 5xx.
PASSING = (408, 409, 429)
# A request that the endpoint won't have. One prompt may be too long for it; so many before the
# first answer mean that all are refused, for a field that it doesn't know, say.
REFUSED = (400, 422)
MOST_REFUSED = 3
MOST_TOKENS = 2**31 - 1  # that a column of the table holds
# How long an answer may become. Newer services call it by the second name, and refuse the first.
LENGTH, NEWER_LENGTH = "max_tokens", "max_completion_tokens"


class EmptyAnswerError(Exception):
    """The endpoint answered without a word."""


class CutOffError(Exception):
    """The answer's tokens were used up by its thoughts: another try would cost as many again."""


class NoCompletionError(Exception):
    """What the endpoint sent is no completion: a proxy's page, say, or one without a message."""


class _BudgetSpentError(Exception):
    """No request is sent any more."""


FAULTS = (openai.APIError, EmptyAnswerError, CutOffError, NoCompletionError)


def _passes(error: BaseException) -> bool:
    """Whether another try may go well."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in PASSING or error.status_code >= 500
    return isinstance(error, FAULTS) and not isinstance(error, CutOffError)


class EndpointTeacher:
    """Asks with bounded concurrency and rate; what fails in passing is tried again, later and
    later, as long as the endpoint asks for.

    Raises (from `answer`):
        ConfigError: if the endpoint refuses the key, doesn't know the model, or won't have the
            first requests as they are.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.name = settings.model
        self.usage = Usage()
        self._refused = 0
        # Servers of one's own need no key; the client insists on one.
        self._key = os.environ.get(settings.key_variable) or "none"

    @property
    def how(self) -> dict[str, Any]:
        """The fields of each request. Its length is one: answers that were cut off are kept too."""
        settings = self.settings
        own = {"temperature": settings.temperature, LENGTH: settings.max_tokens}
        return own | settings.extra_body

    def answer(self, questions: Sequence[Question], record: Record) -> None:
        asyncio.run(self._answer_all(questions, record))

    async def _answer_all(self, questions: Sequence[Question], record: Record) -> None:
        settings = self.settings
        slots = asyncio.Semaphore(settings.concurrency)
        rate = None
        if settings.requests_per_minute:
            # Spread evenly: a burst is what endpoints refuse.
            rate = AsyncLimiter(1, 60.0 / settings.requests_per_minute)
        client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=self._key,
            timeout=settings.timeout_s,
            max_retries=0,  # tries are counted here
        )

        async def one(question: Question) -> None:
            async with slots:
                try:
                    answer = await self._with_retries(client, rate, question)
                except _BudgetSpentError:
                    self.usage.budget_spent = True
                except openai.APIStatusError as error:
                    self._check_refusal(error)
                except FAULTS:
                    pass  # counted where it happened; the question stays open
                else:
                    self.usage.answers += 1
                    record(question, answer)

        try:
            async with client, asyncio.TaskGroup() as group:
                for question in questions:
                    group.create_task(one(question))
        except* STARecError as ends:
            raise ends.exceptions[0] from None

    def _check_refusal(self, error: openai.APIStatusError) -> None:
        """Ends it all if the others would be refused as well."""
        settings, status = self.settings, error.status_code
        if status in FATAL:
            raise ConfigError(
                f"{settings.base_url} refuses model {settings.model!r} with the key in "
                f"{settings.key_variable}, HTTP {status}: {error.message}"
            ) from None
        self._refused += status in REFUSED
        if self._refused >= MOST_REFUSED and not self.usage.answers + self.usage.answers_before:
            raise ConfigError(
                f"{settings.base_url} refuses the requests themselves, HTTP {status}: "
                f"{error.message}"
            ) from None

    async def _with_retries(
        self, client: openai.AsyncOpenAI, rate: AsyncLimiter | None, question: Question
    ) -> Answer:
        retrying = AsyncRetrying(
            retry=retry_if_exception(_passes),
            stop=stop_after_attempt(self.settings.tries),
            wait=self._wait,
            reraise=True,
        )
        return await retrying(self._ask, client, rate, question)

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next try: what the endpoint asks for, else twice as long each time."""
        assert state.outcome is not None
        error = state.outcome.exception()
        longest = self.settings.longest_wait_s
        if isinstance(error, openai.APIStatusError):
            asked = error.response.headers.get("retry-after", "")
            if asked.replace(".", "", 1).isdecimal():
                return min(float(asked), longest)
        return wait_random_exponential(multiplier=1, max=longest)(state)

    async def _ask(
        self, client: openai.AsyncOpenAI, rate: AsyncLimiter | None, question: Question
    ) -> Answer:
        self._check_budget()
        if rate is not None:
            await rate.acquire()
            self._check_budget()
        settings, usage = self.settings, self.usage
        usage.requests += 1
        try:
            completion = await client.chat.completions.create(
                model=settings.model,
                messages=question.messages,  # type: ignore[arg-type]
                extra_body=self._fields(question),
            )
            return self._read(completion)
        except FAULTS as error:
            usage.faults[_cause(error)] += 1
            raise
        except Exception as error:  # whatever the client makes of what isn't even the protocol
            usage.faults[_cause(NoCompletionError())] += 1
            raise NoCompletionError from error

    def _fields(self, question: Question) -> dict[str, Any]:
        """Those of a request beside its model and messages."""
        settings = self.settings
        fields = {"temperature": settings.temperature, "seed": question.seed}
        if settings.extra_body.get(NEWER_LENGTH) is None:
            fields[LENGTH] = settings.max_tokens
        fields |= settings.extra_body | _structured(question)
        return {name: value for name, value in fields.items() if value is not None}

    def _check_budget(self) -> None:
        settings, usage = self.settings, self.usage
        if settings.budget_requests and usage.requests >= settings.budget_requests:
            raise _BudgetSpentError
        if settings.budget_tokens and usage.tokens >= settings.budget_tokens:
            raise _BudgetSpentError

    def _read(self, completion: Any) -> Answer:
        # The client checks no types, and servers differ in what they leave out.
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise NoCompletionError
        message = getattr(completion.choices[0], "message", None)
        if message is None:
            raise NoCompletionError
        prompt_tokens = _number(completion.usage, "prompt_tokens")
        reply_tokens = _number(completion.usage, "completion_tokens")
        self.usage.tokens += prompt_tokens + reply_tokens
        # A field of the endpoint's own, parts of another type than text, or think tags in the text.
        reasoning = _text(message, "reasoning_content") or _text(message, "reasoning")
        thoughts, content = _parts(getattr(message, "content", None))
        inline, text = split_rationale(content)
        if not text.strip():
            cut_off = getattr(completion.choices[0], "finish_reason", None) == "length"
            raise CutOffError if cut_off else EmptyAnswerError
        return Answer(text, reasoning or thoughts or inline, prompt_tokens, reply_tokens)


def _number(part: Any, name: str) -> int:
    value = getattr(part, name, None)
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else 0


def _text(part: Any, name: str) -> str:
    return _whole(getattr(part, name, None))


def _parts(content: Any) -> tuple[str, str]:
    """(thoughts, text) of a message's content: a text, or a list of parts of a type each."""
    if not isinstance(content, list):
        return "", _whole(content)
    parts = [part for part in content if isinstance(part, dict)]
    # Thoughts are parts of their own again.
    thoughts = [_parts(p.get("thinking"))[1] for p in parts if p.get("type") == "thinking"]
    texts = [_whole(p.get("text")) for p in parts if p.get("type") == "text"]
    return "".join(thoughts), "".join(texts)


def _whole(value: Any) -> str:
    """A text without half surrogate pairs, which JSON may hold and no file takes; "" for what
    isn't text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _structured(question: Question) -> dict[str, Any]:
    """The request field by which vLLM's server is told of a grammar."""
    return {"structured_outputs": {"grammar": question.grammar}} if question.grammar else {}


def _cause(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "connection lost"
    causes: dict[type[Exception], str] = {
        EmptyAnswerError: "empty answer",
        CutOffError: CUT_OFF,
        NoCompletionError: "no completion",
    }
    return causes.get(type(error), type(error).__name__)
