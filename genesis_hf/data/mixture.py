"""Token documents of one source, and of several mixed by their shares of tokens."""

import copy
import hashlib
import json
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from genesis_hf.config import Source
from genesis_hf.data.readers import open_source
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import encode_documents

ENCODE_DOCUMENTS = 64
"""Documents tokenised in one call: enough for the tokenizer's threads, little enough to resume quickly."""


class TokenSource:
    """The documents of one source as token ids, EOS at the end of each, repeated epoch after epoch.

    `state` says where the next document is; a new instance given that state goes on with the same document.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        shuffle_block: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.reader = open_source(source)
        self.tokenizer = tokenizer
        self.seed = seed
        self.shuffle_block = shuffle_block
        beginning = {"epoch": 0, "block": 0, "position": self.reader.start, "document": 0, "tokens": 0}
        self.state = copy.deepcopy(state) if state else beginning
        self._texts: list[str] | None = None
        self._following: dict[str, Any] | None = None
        self._encoded: dict[int, np.ndarray] = {}

    def current(self) -> np.ndarray:
        """The document that `state` points to: int32 token ids ending with EOS."""
        if self._texts is None:
            self._load_block()
        index = self.state["document"]
        if index not in self._encoded:
            texts = self._texts[index : index + ENCODE_DOCUMENTS]
            ids = encode_documents(self.tokenizer, texts)
            eos = self.tokenizer.eos_token_id
            self._encoded = {index + i: np.array([*row, eos], dtype=np.int32) for i, row in enumerate(ids)}
        return self._encoded[index]

    def advance(self) -> None:
        """Move `state` to the next document; after the last one a new epoch begins."""
        state = self.state
        state["document"] += 1
        if state["document"] < len(self._texts):
            return
        state["document"] = 0
        if self._following is None:
            state.update(epoch=state["epoch"] + 1, block=0, position=self.reader.start)
        else:
            state.update(block=state["block"] + 1, position=self._following)
        self._texts = None
        self._encoded = {}

    def _load_block(self) -> None:
        state = self.state
        texts, self._following = self.reader.read_block(state["position"], self.shuffle_block or 1024)
        if not texts and self._following is None and state["block"] > 0:
            # The files ended exactly at a block's end.
            state.update(epoch=state["epoch"] + 1, block=0, position=self.reader.start)
            texts, self._following = self.reader.read_block(state["position"], self.shuffle_block or 1024)
        if not texts:
            raise UserError(f"source {self.source.name!r}: its files hold no text")
        if self.shuffle_block:
            order = block_permutation(self.seed, self.source.name, state["epoch"], state["block"], len(texts))
            texts = [texts[i] for i in order]
        self._texts = texts


def block_permutation(seed: int, name: str, epoch: int, block: int, size: int) -> np.ndarray:
    """A permutation that depends on nothing but its arguments (numpy's PCG64, seeded by their sha256)."""
    digest = hashlib.sha256(json.dumps([seed, name, epoch, block]).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).permutation(size)


class Mixture:
    """Documents of several sources, such that the tokens taken stay in proportion to the weights.

    The next document always comes from the source that is furthest below its share of the tokens so far: no
    random numbers, and the realised shares are off by less than one document of each source.
    """

    def __init__(self, sources: list[TokenSource]) -> None:
        self.sources = sources
        total = sum(s.source.weight for s in sources)
        self.shares = [s.source.weight / total for s in sources]

    def choose(self) -> int:
        """Index of the source whose document comes next."""
        taken = [s.state["tokens"] for s in self.sources]
        total = sum(taken)
        deficits = [share * total - tokens for share, tokens in zip(self.shares, taken, strict=True)]
        if total == 0:
            deficits = self.shares
        return int(np.argmax(deficits))
