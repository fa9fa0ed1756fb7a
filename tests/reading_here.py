"""Files read by the program that a fresh process runs, but in the test's own: a process takes seconds to start."""

from types import ModuleType

import pytest

from genesis_hf.exporting.reading import READERS, answer


def read_in_this_process(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `probe_in_fresh_process` as `module` calls it."""

    def read(path, questions, kind="llama"):
        reader = READERS[kind](path)
        return answer(reader, questions), reader.versions()

    monkeypatch.setattr(module, "probe_in_fresh_process", read)
