"""What chat APIs have in common: keys, addresses and what an error means."""

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from genesis_hf.errors import UserError
from genesis_hf.synthesis.providers.base import CallFailed, Completion, ProviderUnusable
from genesis_hf.synthesis.recipe import ProviderSettings

NO_KEY = "none"
"""Sent to a server on this machine, which asks for none."""

CONNECT_SECONDS = 10.0
"""In which a server that is there takes a connection, however long it thinks afterwards."""

UNREADABLE = Completion("", "other", None, None, "unknown")
"""An answer that is none: paid for, perhaps, and of no use."""

OUT_OF_MONEY = ("insufficient_quota", "billing_error")
MAX_REASON = 300
"""Characters of a server's own words that are kept."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and with which key."""

    model: str
    base_url: str
    key_name: str
    """of the environment variable"""
    key: str = field(repr=False)

    @classmethod
    def of(cls, settings: ProviderSettings, vendor: str, key_name: str) -> "Endpoint":
        """
        Args:
            vendor, key_name: where the recipe names none.

        Raises:
            UserError: the environment has no key.
        """
        base_url = settings.base_url or vendor
        name = settings.api_key_env or key_name
        key = os.environ.get(name, "").strip()
        if settings.api_key_env is None and is_loopback(base_url):
            key = NO_KEY
        if not key:
            raise UserError(
                f"the environment variable {name} is not set: put the key of {base_url} there "
                "(any word where the server asks for none)"
            )
        return cls(settings.model, base_url, name, key)

    async def post(self, client: Any, path: str, body: dict[str, Any], failure: type[Exception]) -> Any:
        """The JSON that an OpenAI or Anthropic client brings back, or None where it is malformed.

        Args:
            body: the request; what is None in it isn't sent.
            failure: the client's own kind of error.
        """
        try:
            return await client.post(
                path, body={name: value for name, value in body.items() if value is not None}, cast_to=object
            )
        except failure as error:
            raise self.explain(error) from None
        except ValueError:
            return None

    def explain(self, error: Exception) -> CallFailed:
        """What a client's error means, in one line without the key: this call failed, or no call can succeed.

        The OpenAI and Anthropic clients are made by the same generator and name their errors alike.
        """
        where = f"{self.model} at {self.base_url}"
        status = getattr(error, "status_code", None)
        words = " ".join(str(error).replace(self.key, "…").split())[:MAX_REASON]
        if status in (401, 403):
            asked = f"the key in {self.key_name}" if self.key != NO_KEY else "without a key (api_key_env) this"
            return ProviderUnusable(f"{where}: {asked} is refused ({status})")
        if status == 404:
            return ProviderUnusable(f"{where}: no such model or address ({words})")
        if status == 429 and getattr(error, "code", None) in OUT_OF_MONEY:
            return ProviderUnusable(f"{where}: {words}")
        if status is not None:
            return CallFailed(f"{where}: {words}")
        causes = [type(cause).__name__ for cause in chain(error)]
        if "ConnectError" in causes or "ConnectTimeout" in causes:
            return ProviderUnusable(f"nobody answers at {self.base_url}: is the server running?")
        if "APITimeoutError" in causes:
            return CallFailed(f"{where}: no answer within the timeout")
        return CallFailed(f"{where}: the connection broke ({causes[-1]})")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the first cause last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def with_reasoning(reasoning: str | None, text: str | None) -> str:
    """One text of what a server returns in two fields, the reasoning as models write it themselves.

    Raises:
        TypeError: they are no texts.
    """
    if not isinstance(text or "", str) or not isinstance(reasoning or "", str):
        raise TypeError("an answer that is no text")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{text or ''}" if reasoning else text or ""
