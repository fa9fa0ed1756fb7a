"""llama2.c's binary files: version 0 (legacy fp32), 1 (fp32 with a header) and 2 (int8 in groups, Q8_0).

The form is that of its export.py: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len),
then the weights of all layers, kind by kind. Tensors come out under the names of its model.py.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genesis_hf.errors import UserError

MAGIC = 0x616B3432
"""First four bytes of versions 1 and 2; version 0 begins with `dim`."""

HEADER = struct.Struct("<7i")
HEADER_BYTES = 256
"""Of versions 1 and 2, padded with zeros."""

NORMS = ("attention_norm", "ffn_norm")
PROJECTIONS = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def read_llama2c(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors in fp32 by model.py's names, and the constants that the file holds by `ModelArgs`' names.

    Raises:
        UserError: another form, or a file that is longer or shorter than its header says.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    version, header, shared, group, start = read_header(path, bytes(data[:HEADER_BYTES]))
    dim, hidden, layers, heads, kv_heads, vocab, context = header
    config = {
        "dim": dim,
        "hidden_dim": hidden,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "vocab_size": vocab,
        "max_seq_len": context,
    }
    kv_dim = dim // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(NORMS, (dim,)),
        **dict(zip(PROJECTIONS, ((dim, dim), (kv_dim, dim), (kv_dim, dim), (dim, dim)), strict=True)),
        **dict(zip(FEED_FORWARD, ((hidden, dim), (dim, hidden), (hidden, dim)), strict=True)),
    }

    def layered(*kinds: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"layers.{layer}.{kind}.weight", shapes[kind]) for kind in kinds for layer in range(layers)]

    embedding, final = ("tok_embeddings.weight", (vocab, dim)), ("norm.weight", (dim,))
    head = [] if shared else [("output.weight", (vocab, dim))]
    if version == 0:
        tables = [(name, (context, dim // heads // 2)) for name in ("freqs_cos", "freqs_sin")]
        order = [embedding, *layered("attention_norm", *PROJECTIONS, "ffn_norm", *FEED_FORWARD), final, *tables, *head]
    else:
        order = [*layered(*NORMS), final, embedding, *layered(*PROJECTIONS, *FEED_FORWARD), *head]
    plain = order if version < 2 else order[: 2 * layers + 1]
    quantised = order[len(plain) :]

    numbers = sum(math.prod(shape) for _, shape in quantised)
    size = (
        start + sum(4 * math.prod(shape) for _, shape in plain) + numbers + (4 * numbers // group if quantised else 0)
    )
    if size != len(data):
        raise UserError(
            f"{path}: {len(data):,} bytes, and its header ({config}) makes {size:,}: damaged, or no llama2.c file"
        )
    tensors, position = {}, start
    for name, shape in plain:
        end = position + 4 * math.prod(shape)
        tensors[name] = torch.from_numpy(np.array(data[position:end]).view("<f4").reshape(shape))
        position = end
    scales = position + numbers
    for name, shape in quantised:
        count = math.prod(shape)
        values = np.array(data[position : position + count]).view(np.int8).reshape(-1, group).astype(np.float32)
        scale = np.array(data[scales : scales + 4 * (count // group)]).view("<f4")
        tensors[name] = torch.from_numpy((values * scale[:, None]).reshape(shape))
        position, scales = position + count, scales + 4 * (count // group)
    if version == 0 and (theta := theta_of(tensors["freqs_cos"], tensors["freqs_sin"])):
        config["rope_theta"] = theta
    return tensors, config


def read_header(path: Path, head: bytes) -> tuple[int, tuple[int, ...], bool, int, int]:
    """Version, the seven numbers, whether the head is the embedding, group size, and where the weights start."""
    if len(head) < HEADER.size:
        raise UserError(f"{path}: {len(head)} bytes are no llama2.c file")
    if struct.unpack("<I", head[:4])[0] == MAGIC and len(head) == HEADER_BYTES:
        version = struct.unpack("<i", head[4:8])[0]
        header = HEADER.unpack_from(head, 8)
        shared, group = struct.unpack_from("<Bi", head, 8 + HEADER.size)
        if version not in (1, 2):
            raise UserError(f"{path}: llama2.c version {version}; versions 0, 1 and 2 are read")
        start = HEADER_BYTES
    else:  # the sign of vocab_size says whether the head is the embedding
        version, group, start = 0, 0, HEADER.size
        *most, vocab, context = HEADER.unpack_from(head)
        header, shared = (*most, abs(vocab), context), vocab > 0
    dim, _, _, heads, kv_heads, _, _ = header
    if min(header) <= 0 or dim % heads or heads % kv_heads or (version == 2 and (group <= 0 or dim % group)):
        raise UserError(f"{path}: its first numbers ({', '.join(map(str, header))}) are no llama2.c header")
    return version, header, bool(shared), group, start


def theta_of(cosines: torch.Tensor, sines: torch.Tensor) -> float | None:
    """θ from the tables (positions, head_dim / 2), to four digits; None where they are of another RoPE."""
    pairs = cosines.shape[1]
    if len(cosines) < 2 or pairs < 2:
        return None
    angles = torch.atan2(sines[1].double(), cosines[1].double())  # θ^(-i / pairs) at position 1
    theta = float(f"{float(angles[-1]) ** (-pairs / (pairs - 1)):.4g}") if angles[-1] > 0 else 0.0
    expected = theta ** (-torch.arange(pairs).double() / pairs) if theta else angles + 1
    return theta if torch.allclose(angles, expected, rtol=1e-3) else None
