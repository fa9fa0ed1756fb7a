"""Any endpoint that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, `transformers serve`, OpenAI."""

from typing import Any

import openai

from genesis_hf.synthesis.providers.base import Completion, FinishReason, Provider, Request
from genesis_hf.synthesis.providers.remote import CONNECT_SECONDS, UNREADABLE, Endpoint, is_loopback, with_reasoning
from genesis_hf.synthesis.recipe import ProviderSettings

VENDOR = "https://api.openai.com/v1"

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class OpenAIProvider(Provider):
    """Retries, back-off and `Retry-After` are the client's."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings
        self._endpoint = Endpoint.of(settings, VENDOR, "OPENAI_API_KEY")
        self._client = openai.AsyncOpenAI(
            base_url=self._endpoint.base_url,
            api_key=self._endpoint.key,
            timeout=openai.Timeout(settings.timeout, connect=CONNECT_SECONDS),
            max_retries=settings.max_retries,
            # A proxy in the environment doesn't lead to this machine.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(self._endpoint.base_url)),
        )
        # OpenAI's own newer models know only the second name, other servers only the first.
        self._max_tokens = "max_completion_tokens" if self._endpoint.base_url == VENDOR else "max_tokens"

    async def complete(self, request: Request) -> Completion:
        body = {
            "model": self.settings.model,
            "messages": request.messages,
            self._max_tokens: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            **self.settings.extra_body,
        }
        # Not chat.completions.create: its typed requests and answers take a third of the time of a call, and servers'
        # own fields get lost.
        return read_answer(await self._endpoint.post(self._client, "/chat/completions", body, openai.APIError))

    async def close(self) -> None:
        await self._client.close()


def read_answer(answer: Any) -> Completion:
    """What the JSON of an answer says; a server may leave out or mangle any field."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        # vLLM and llama.cpp; OpenRouter and newer vLLM.
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        text = with_reasoning(reasoning, message.get("content"))
        usage = answer.get("usage") or {}
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        finish_reason = FINISH_REASONS.get(choice.get("finish_reason"), "other")
    except (AttributeError, KeyError, TypeError, IndexError):
        return UNREADABLE
    return Completion(text, finish_reason, *tokens, str(answer.get("model") or "unknown"))
