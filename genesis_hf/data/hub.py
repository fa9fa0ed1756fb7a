"""Documents of a Hub dataset, streamed, with the patience that a network takes."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from genesis_hf.config import Source
from genesis_hf.data.blocks import Block, Position, Reader
from genesis_hf.data.records import Item, reason_of, shorten
from genesis_hf.errors import UserError

HUB_TRIES = 8
"""How often a block is asked of the Hub; the waits between double from 1 s to `HUB_LONGEST_WAIT`, two minutes in all.
Each try holds `huggingface_hub`'s own: up to 6 of a request within half a minute."""
HUB_LONGEST_WAIT = 60.0
HUB_TIMEOUT = 60.0
"""Seconds without a byte after which a request to the Hub counts as lost."""


class HubReader(Reader):
    """A Hub dataset through `datasets` streaming; the position holds its state, its commit and the rows read.

    The commit is that of the moment when reading began, so that an update of the dataset doesn't move rows under a
    run that goes on. Each try to read a block begins with the block's first row in a dataset opened anew.
    """

    start: Position = {}

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._dataset: Any = None
        self._commit: str | None = None
        self._row = 0

    def fingerprint(self) -> str:
        """Names what is asked of the Hub; name a `revision` to have it fixed."""
        source = self.source
        place = [source.dataset, source.config, source.data_dir, source.split, source.revision]
        asked = json.dumps([*place, *self.extract.fingerprint], sort_keys=True, default=str)
        return hashlib.sha256(asked.encode()).hexdigest()

    def read_block(self, position: Position, count: int) -> Block:
        """As every reader's.

        Raises:
            UserError: no such dataset, configuration, split or revision; no access; a Hub that doesn't answer; a file
                there that can't be read.
        """
        where = f"source {self.source.name!r}"
        for tried in range(1, HUB_TRIES + 1):
            try:
                return super().read_block(position, count)
            except Exception as error:  # the Hub's client, its HTTP client, datasets and pyarrow raise many kinds
                self._items = None
                if not is_network_error(error):
                    raise UserError(f"{where}: {self._refusal(error)}") from None
                silent = f"{where}: the Hub does not answer ({shorten(str(root(error)).split(' for url')[0])})"
                if tried == HUB_TRIES:
                    raise UserError(f"{silent}; {HUB_TRIES} tries; check the network and start again") from None
                wait = min(2.0 ** (tried - 1), HUB_LONGEST_WAIT)
                print(f"{silent}; try {tried + 1} of {HUB_TRIES} in {wait:.0f} s", file=sys.stderr, flush=True)
                pause(wait)
        raise AssertionError("unreachable")

    def _refusal(self, error: Exception) -> str:
        place = "can't be opened" if self._dataset is None else f"can't be read after row {self._row}"
        mend = "; pip install zstandard" if "zstd not supported" in str(error) else ""
        return f"dataset {self.source.dataset!r} {place} ({reason_of(error)}){mend}"

    def _open(self, position: Position) -> Iterator[Item]:
        self._row = position.get("rows", 0)
        self._dataset = None
        self._commit = position.get("commit") or self._commit
        self._dataset = self._load()
        if position:
            self._dataset.load_state_dict(json.loads(json.dumps(position["state"])))
        for record in self._dataset:
            self._row += 1
            yield self.extract.item(record, f"dataset {self.source.dataset}, row {self._row}")

    def _position(self) -> Position:
        # Through JSON: the dataset's own state changes as it is read on.
        state = json.loads(json.dumps(self._dataset.state_dict()))
        return {"state": state, "rows": self._row, "commit": self._commit}

    def _load(self) -> Any:
        import datasets
        import huggingface_hub
        from datasets.packaged_modules.cache.cache import Cache
        from huggingface_hub.utils import httpx

        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else each parquet shard's end costs 5 s
        # `read_block` waits and tries again; 20 times that here would be hours.
        for key in [key for key in vars(datasets.config) if key.startswith("STREAMING_")]:
            setattr(datasets.config, key, 1 if key.endswith("MAX_RETRIES") else 0)
        source = self.source
        if not os.path.isdir(source.dataset):
            # Without it, a request that asks for no timeout itself waits for ever.
            huggingface_hub.set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=HUB_TIMEOUT))
            info = huggingface_hub.HfApi().dataset_info(
                source.dataset, revision=self._commit or source.revision, timeout=HUB_TIMEOUT
            )
            self._commit = info.sha
        builder = datasets.load_dataset_builder(
            source.dataset, source.config, data_dir=source.data_dir, revision=self._commit
        )
        if isinstance(builder, Cache):
            # What `datasets` falls back on: files that another program downloaded, divided and ordered otherwise.
            raise ConnectionError("only parts of it could be had")
        return builder.as_streaming_dataset(split=source.split)


def is_network_error(error: BaseException | None) -> bool:
    """Whether trying again may help: the network's or the server's fault, not the name's or the file's."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        if isinstance(error, (ConnectionError, TimeoutError, httpx.TransportError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def root(error: BaseException) -> BaseException:
    """What an error was raised from, in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def pause(seconds: float) -> None:
    """Wait; tests put something else here."""
    time.sleep(seconds)
