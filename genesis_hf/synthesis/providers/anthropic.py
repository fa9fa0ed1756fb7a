"""Anthropic's messages API."""

from typing import Any

import anthropic

from genesis_hf.synthesis.providers.base import Completion, FinishReason, Provider, Request
from genesis_hf.synthesis.providers.remote import CONNECT_SECONDS, UNREADABLE, Endpoint, is_loopback, with_reasoning
from genesis_hf.synthesis.recipe import ProviderSettings

VENDOR = "https://api.anthropic.com"

FINISH_REASONS: dict[str, FinishReason] = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class AnthropicProvider(Provider):
    """Retries, back-off and `Retry-After` are the client's; the API takes no seed."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings
        self._endpoint = Endpoint.of(settings, VENDOR, "ANTHROPIC_API_KEY")
        self._client = anthropic.AsyncAnthropic(
            base_url=self._endpoint.base_url,
            api_key=self._endpoint.key,
            timeout=anthropic.Timeout(settings.timeout, connect=CONNECT_SECONDS),
            max_retries=settings.max_retries,
            # A proxy in the environment doesn't lead to this machine.
            http_client=anthropic.DefaultAsyncHttpxClient(trust_env=not is_loopback(self._endpoint.base_url)),
        )

    async def complete(self, request: Request) -> Completion:
        system = "\n\n".join(m["content"] for m in request.messages if m["role"] == "system")
        body = {
            "model": self.settings.model,
            "messages": [m for m in request.messages if m["role"] != "system"],
            "max_tokens": request.max_tokens,
            "system": system or None,
            "temperature": request.temperature,
            # Models refuse the two together.
            "top_p": request.top_p if request.temperature is None else None,
            **self.settings.extra_body,
        }
        # Not messages.create, which no longer takes what older models and compatible servers do.
        return read_answer(await self._endpoint.post(self._client, "/v1/messages", body, anthropic.APIError))

    async def close(self) -> None:
        await self._client.close()


def read_answer(answer: Any) -> Completion:
    """What the JSON of an answer says; a server may leave out or mangle any field."""
    try:
        blocks = answer["content"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        usage = answer.get("usage") or {}
        tokens = usage.get("input_tokens"), usage.get("output_tokens")
        finish_reason = FINISH_REASONS.get(answer.get("stop_reason"), "other")
    except (AttributeError, KeyError, TypeError):
        return UNREADABLE
    return Completion(with_reasoning(thoughts, text), finish_reason, *tokens, str(answer.get("model") or "unknown"))
