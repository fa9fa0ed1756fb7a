"""Pretraining text: documents of one or two kinds, and which of them are held out."""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from genesis_hf.config import Source
from genesis_hf.data.readers import TABLE_SUFFIXES, TEXT_SUFFIXES, plain_suffix, read_documents
from genesis_hf.demo.stdlib import TOPICS_FILE, Module
from genesis_hf.errors import UserError

HELD_OUT_SHARE = 0.042
MIN_HELD_OUT_BYTES = 150_000
MAX_HELD_OUT_BYTES = 400_000
"""Bounds of a user's held-out text: enough for the tasks' items, little enough to evaluate in seconds."""
MAX_HELD_OUT_DOCUMENT = 60_000
"""Bytes of a single held-out file of the standard library; one file shall not dominate the figures."""
MIN_TEXT_BYTES = 1_000_000
MIN_FILES = 20
"""With fewer files than this, a user's text is split by document instead of by file."""
PIECE_CHARACTERS = 16_000
"""A longer document is cut at line ends where a user's text is split by document: it may be a whole book."""
SHARED_PARAGRAPH = 80
"""Characters from which on a paragraph that stands in two places counts as a copy."""


@dataclass(frozen=True)
class Document:
    """A text and the name of the file that it came from."""

    text: str
    file: str


# ---------------------------------------------------------------------------------------------------------
# The standard library
# ---------------------------------------------------------------------------------------------------------


def code_documents(modules: list[Module]) -> list[Document]:
    """Each module's source, whole."""
    return [Document(module.source, module.file) for module in modules]


def prose_documents(modules: list[Module], topics: dict[str, str]) -> list[Document]:
    """Each documentation topic, and a page of docstrings for each module that has any."""
    pages = [Document(docstring_page(module), module.file) for module in modules if module.entries]
    return pages + [Document(text, f"{TOPICS_FILE}#{name}") for name, text in topics.items()]


def docstring_page(module: Module) -> str:
    """A module's docstrings as one page: a line that names each entry, then its text."""
    parts = []
    for entry in module.entries:
        heading = {"module": f"Module {entry.name}", "class": f"class {entry.signature}"}
        parts.append(f"{heading.get(entry.kind, entry.signature)}\n\n{entry.doc.strip()}")
    return "\n\n".join(parts) + "\n"


def held_out_files(code: list[Document], prose: list[Document]) -> set[str]:
    """Names of the standard library's files to hold out: about 4 % of the bytes, by hash of the name.

    A file whose prose repeats a paragraph of another one (`posixpath` and `ntpath`, the topics that contain
    each other) stays in training, so that nothing held out has been seen.
    """
    copied = files_with_copies(prose)
    topics = [d for d in prose if d.file.startswith(TOPICS_FILE)]
    chosen = set()
    for documents in (code, topics):
        wanted = HELD_OUT_SHARE * sum(size(d.text) for d in documents)
        sizes = {d.file: size(d.text) for d in documents if d.file not in copied}
        small = {file: count for file, count in sizes.items() if count <= MAX_HELD_OUT_DOCUMENT}
        chosen |= choose_by_hash(small, wanted)
    return chosen


def files_with_copies(documents: list[Document]) -> set[str]:
    """Files with a paragraph of at least 80 characters that stands in another file, too."""
    files_of: dict[str, set[str]] = {}
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= SHARED_PARAGRAPH:
                files_of.setdefault(words, set()).add(document.file)
    return set().union(*(files for files in files_of.values() if len(files) > 1))


# ---------------------------------------------------------------------------------------------------------
# A user's folder
# ---------------------------------------------------------------------------------------------------------


def text_files(folder: Path) -> list[str]:
    """Every file below `folder` that the readers read, sorted.

    Raises:
        UserError: no such folder, or nothing readable in it.
    """
    if not folder.is_dir():
        raise UserError(f"text: {folder} is not a folder")
    suffixes = {*TEXT_SUFFIXES, ".jsonl", *TABLE_SUFFIXES}
    paths = (path for path in folder.rglob("*") if plain_suffix(str(path)) in suffixes and path.is_file())
    files = sorted(str(path) for path in paths if not path.name.startswith("."))
    if not files:
        raise UserError(f"text: {folder} holds no .txt, .md, .jsonl, .jsonl.gz, .parquet or .arrow file")
    return files


class UserText:
    """The documents of a folder and their split: by file, or by document where the files are too few or too big.

    The folder is read once to measure it (when made) and once for each iteration; it need not fit in memory.

    Raises:
        UserError: no such folder, nothing readable in it, less than 1 MB of text.
    """

    def __init__(self, folder: str | Path, text_column: str = "text") -> None:
        self.folder = Path(folder)
        self.text_column = text_column
        self.files = text_files(self.folder)
        by_file: Counter[str] = Counter()
        by_piece: Counter[str] = Counter()
        for document in self._documents():
            by_file[document.file] += size(document.text)
            for piece in pieces(document):
                by_piece[digest(piece.text)] += size(piece.text)
        self.bytes = by_file.total()
        if self.bytes < MIN_TEXT_BYTES:
            raise UserError(
                f"text: {self.folder} holds {self.bytes:,} bytes of text; at least {MIN_TEXT_BYTES:,} are needed"
            )
        wanted = min(max(HELD_OUT_SHARE * self.bytes, MIN_HELD_OUT_BYTES), MAX_HELD_OUT_BYTES, self.bytes / 8)
        self.held_out = choose_by_hash(by_file, wanted) if len(self.files) >= MIN_FILES else set()
        self.split_by = "file"
        if sum(by_file[file] for file in self.held_out) < wanted / 2:
            self.held_out = choose_by_hash(by_piece, wanted)
            self.split_by = "document"

    def split(self) -> Iterator[tuple[Document, bool]]:
        """Every document with whether it is held out."""
        for document in self._documents():
            if self.split_by == "file":
                yield document, document.file in self.held_out
            else:
                for piece in pieces(document):
                    yield piece, digest(piece.text) in self.held_out

    def _documents(self) -> Iterator[Document]:
        for path in tqdm(self.files, desc=f"reading {self.folder}", unit="file"):
            name = Path(path).relative_to(self.folder).as_posix()
            source = Source(name=name, paths=[glob.escape(path)], text_column=self.text_column)
            for text in read_documents(source):
                if text.strip():
                    yield Document(text, name)


def pieces(document: Document) -> Iterator[Document]:
    """A document cut at line ends into pieces of about 16,000 characters; joined they are the document."""
    lines: list[str] = []
    length = 0
    for line in document.text.splitlines(keepends=True):
        for start in range(0, len(line), PIECE_CHARACTERS):
            lines.append(line[start : start + PIECE_CHARACTERS])
            length += len(lines[-1])
            if length >= PIECE_CHARACTERS:
                yield Document("".join(lines), document.file)
                lines, length = [], 0
    if lines:
        yield Document("".join(lines), document.file)


# ---------------------------------------------------------------------------------------------------------
# The split
# ---------------------------------------------------------------------------------------------------------


def choose_by_hash(sizes: dict[str, int], wanted: float) -> set[str]:
    """Names in the order of their hashes until `wanted` bytes are reached; one that overshoots by much is passed."""
    chosen, total = set(), 0
    for name in sorted(sizes, key=digest):
        if total >= wanted:
            break
        if total + sizes[name] <= 1.2 * wanted:
            chosen.add(name)
            total += sizes[name]
    return chosen


def divide(documents: Iterable[Document], held_out: set[str]) -> tuple[list[Document], list[Document]]:
    """(training, held-out) by the documents' files."""
    training, kept = [], []
    for document in documents:
        (kept if document.file in held_out else training).append(document)
    return training, kept


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode("utf-8"))
