"""A Hugging Face chat model in this process."""

import asyncio

import torch

from genesis_hf.chat import encode_prompt
from genesis_hf.config import SampleRecipe
from genesis_hf.errors import UserError
from genesis_hf.generate import load_chat, sampling, to_answer, write_batch
from genesis_hf.synthesis.providers.base import CallFailed, Completion, Provider, ProviderUnusable, Request
from genesis_hf.synthesis.recipe import ProviderSettings

Waiting = tuple[Request, list[int], asyncio.Future]
"""A request, the ids of its prompt, and where its answer goes."""


class LocalProvider(Provider):
    """Requests that wait are answered in one batch; what is drawn for one follows from its seed alone.

    The company of a batch changes an answer only where rounding does: in fp32 next to never.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings
        self._model, self._tokenizer = load_chat(settings.model)
        if settings.max_tokens >= self._model.config.max_position_embeddings:
            raise UserError(
                f"max_tokens is {settings.max_tokens}, which leaves no room for a prompt in the context of "
                f"{self._model.config.max_position_embeddings} of {settings.model}"
            )
        self._waiting: list[Waiting] = []
        self._writer: asyncio.Task | None = None

    async def complete(self, request: Request) -> Completion:
        try:
            ids = encode_prompt(self._tokenizer, request.messages)
        except UserError as error:
            raise CallFailed(str(error)) from None
        room = self._model.config.max_position_embeddings - request.max_tokens
        if len(ids) > room:
            raise CallFailed(f"a prompt of {len(ids):,} tokens, and room for {room:,} beside max_tokens")
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((request, ids, answer))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await answer

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        """Answer until nobody waits; a batch is those that wait, ask for the same settings and are `concurrency`."""
        while self._waiting:
            kind = settings_of(self._waiting[0][0])
            batch = [one for one in self._waiting if settings_of(one[0]) == kind][: self.settings.concurrency]
            taken = set(map(id, batch))
            self._waiting = [one for one in self._waiting if id(one) not in taken]
            try:
                completions = await asyncio.to_thread(self._answer, batch)
            except torch.OutOfMemoryError:
                completions = [ProviderUnusable("out of memory: lower the provider's concurrency")] * len(batch)
            except Exception as error:
                completions = [error] * len(batch)
            for (_, _, answer), completion in zip(batch, completions, strict=True):
                if answer.cancelled():
                    continue
                if isinstance(completion, Exception):
                    answer.set_exception(completion)
                else:
                    answer.set_result(completion)

    def _answer(self, batch: list[Waiting]) -> list[Completion]:
        request = batch[0][0]
        recipe = SampleRecipe(
            model=self.settings.model,
            output_file="",
            max_new_tokens=request.max_tokens,
            temperature=0.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
        )
        written = write_batch(
            self._model,
            self._tokenizer,
            [ids for _, ids, _ in batch],
            [request.seed or 0 for request, _, _ in batch],
            sampling(self._tokenizer, recipe),
            seed=0,
        )
        completions = []
        for (request, ids, _), new in zip(batch, written, strict=True):
            answer = to_answer(self._tokenizer, request.messages, new)
            reason = "stop" if answer.stopped else "length"
            completions.append(Completion(answer.answer, reason, len(ids), answer.tokens, self.settings.model))
        return completions


def settings_of(request: Request) -> tuple[int, float | None, float | None]:
    """What all requests of a batch have in common."""
    return request.max_tokens, request.temperature, request.top_p
