"""Which documents may be trained on: those neither held out by their hash nor excluded by it."""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genesis_hf.config import PretrainRecipe
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import UserError

Use = Literal["train", "held_out", "excluded"]


def document_hash(text: str) -> int:
    """What a document is known by: 64 bits of BLAKE2b over its UTF-8 bytes."""
    return struct.unpack("<Q", hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest())[0]


@dataclass(frozen=True)
class Selection:
    """The rule by which a document is trained on, held out or left out. It looks at nothing but the document's text,
    so copies of a held-out document are held out with it, wherever they stand.

    Attributes:
        held_out_share: share of all possible hashes that are held out.
        excluded: hashes of documents never used.
    """

    held_out_share: float = 0.0
    excluded: frozenset[int] = frozenset()

    def use(self, text: str) -> Use:
        """What a document is for."""
        return self.use_of_hash(document_hash(text)) if self.held_out_share or self.excluded else "train"

    def use_of_hash(self, value: int) -> Use:
        if value in self.excluded:
            return "excluded"
        return "held_out" if value < self.held_out_share * 2**64 else "train"

    def fingerprint(self) -> str:
        """sha256 over share and excluded hashes."""
        digest = hashlib.sha256(repr(self.held_out_share).encode())
        for value in sorted(self.excluded):
            digest.update(struct.pack("<Q", value))
        return digest.hexdigest()


def recipe_selection(recipe: PretrainRecipe) -> Selection:
    """The rule of a recipe: `held_out_share`; `exclude_documents` and each document of local `eval_sources` left out.

    Raises:
        UserError: an unreadable file.
    """
    local = [source for source in recipe.eval_sources if source.paths is not None]
    evaluated = {document_hash(text) for source in local for text in read_documents(source)}
    return Selection(recipe.held_out_share, read_hashes(recipe.exclude_documents) | evaluated)


def read_hashes(files: Iterable[str | Path]) -> frozenset[int]:
    """Document hashes from files of one hexadecimal number of 16 digits a line; what follows it is a remark.

    Raises:
        UserError: no such file, a line that begins otherwise.
    """
    hashes = set()
    for path in files:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"exclude_documents: {path} cannot be read ({error})") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                word = line.split()[0]
                if len(word) != 16:
                    raise ValueError
                hashes.add(int(word, 16))
            except ValueError:
                raise UserError(
                    f"{path}, line {number}: a document hash has 16 hexadecimal digits, not {line[:30]!r}"
                ) from None
    return frozenset(hashes)
