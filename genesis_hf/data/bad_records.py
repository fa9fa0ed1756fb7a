"""bad_records.jsonl: what a run could not read, each record once."""

import json
from collections import deque
from pathlib import Path

from genesis_hf.data.records import BadRecord


class BadRecordLog:
    """Appends to bad_records.jsonl; only the main process writes. A resumed run meets some records again: they are
    known by where they are."""

    def __init__(self, output_dir: str | Path, is_main: bool) -> None:
        self.path = Path(output_dir) / "bad_records.jsonl"
        self.is_main = is_main
        self._known: set[tuple[str, str]] = set()
        if is_main and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    self._known.add((record["source"], record["where"]))
                except (json.JSONDecodeError, KeyError):
                    continue  # a line that a crash cut short

    def write(self, records: deque[tuple[str, BadRecord]]) -> list[str]:
        """Empty the queue into the file; a line of words for each record that is new."""
        lines = []
        while records:
            source, record = records.popleft()
            if not self.is_main or (source, record.where) in self._known:
                continue
            self._known.add((source, record.where))
            with open(self.path, "a", encoding="utf-8") as file:
                entry = {"source": source, "where": record.where, "reason": record.reason, "count": record.count}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            lines.append(f"source {source}: left out {record.where}: {record.reason}")
        return lines
