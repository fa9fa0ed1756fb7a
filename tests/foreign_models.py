"""Tiny Llamas as other programs would write and store them: plain torch, no code of the package, nothing shared."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import torch

SHORT = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}


@dataclass
class Foreign:
    """A model and the way in which its file is laid out."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 4
    width: int = 16
    hidden: int = 24
    vocabulary: int = 40
    interleaved: bool = True
    tied: bool = True
    theta: float = 100.0
    epsilon: float = 1e-3
    transposed: bool = False
    attention_order: tuple[str, ...] | None = None
    """of wq, wk, wv in one matrix; None: three"""
    attention_grouped: bool = False
    feed_forward_order: tuple[str, ...] | None = None
    """of gate, up in one matrix; None: two"""
    feed_forward_grouped: bool = False
    padding: int = 0
    """rows of the embedding beyond the vocabulary"""
    weights: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.layers * 100 + self.heads * 10 + self.head_dim)
        q, kv, d = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.width
        shapes = {"embedding": (self.vocabulary + self.padding, d), "norm": (d,)}
        if not self.tied:
            shapes["head"] = shapes["embedding"]
        for layer in range(self.layers):
            for name, shape in (
                ("wq", (q, d)),
                ("wk", (kv, d)),
                ("wv", (kv, d)),
                ("wo", (d, q)),
                ("gate", (self.hidden, d)),
                ("up", (self.hidden, d)),
                ("down", (d, self.hidden)),
                ("norm1", (d,)),
                ("norm2", (d,)),
            ):
                shapes[f"{layer}.{name}"] = shape
        for name, shape in shapes.items():
            drawn = torch.randn(shape, generator=generator)
            self.weights[name] = 1 + 0.3 * drawn if len(shape) == 1 else drawn * 1.5 / shape[1] ** 0.5

    def rotations(self, length: int) -> torch.Tensor:
        """A matrix (head_dim, head_dim) for each position."""
        matrices = torch.zeros(length, self.head_dim, self.head_dim)
        pairs = self.head_dim // 2
        for position in range(length):
            for i in range(pairs):
                one, two = (2 * i, 2 * i + 1) if self.interleaved else (i, i + pairs)
                angle = torch.tensor(position / self.theta ** (2 * i / self.head_dim))
                matrices[position, one, one] = matrices[position, two, two] = angle.cos()
                matrices[position, one, two], matrices[position, two, one] = -angle.sin(), angle.sin()
        return matrices

    def logits(self, ids: list[int]) -> torch.Tensor:
        w, length = self.weights, len(ids)
        turn = self.rotations(length)

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return x / (x.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt() * w[name]

        x = w["embedding"][ids]
        for layer in range(self.layers):
            h = norm(x, f"{layer}.norm1")
            mixed = []
            for head in range(self.heads):
                group = head // (self.heads // self.kv_heads)
                mine, theirs = (slice(n * self.head_dim, (n + 1) * self.head_dim) for n in (head, group))
                q = (turn @ (h @ w[f"{layer}.wq"][mine].T)[..., None])[..., 0]
                k = (turn @ (h @ w[f"{layer}.wk"][theirs].T)[..., None])[..., 0]
                scores = q @ k.T / self.head_dim**0.5
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -1e30)
                mixed.append(scores.softmax(-1) @ (h @ w[f"{layer}.wv"][theirs].T))
            x = x + torch.cat(mixed, -1) @ w[f"{layer}.wo"].T
            h = norm(x, f"{layer}.norm2")
            gate = h @ w[f"{layer}.gate"].T
            x = x + (gate / (1 + (-gate).exp()) * (h @ w[f"{layer}.up"].T)) @ w[f"{layer}.down"].T
        head = w["embedding"] if self.tied else w["head"]
        return (norm(x, "norm") @ head.T)[:, : self.vocabulary]

    def stored(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """The state dict in the file's layout, and the mapping that describes it."""
        w, state, tensors = self.weights, {}, {}
        state["emb"], tensors["emb"] = w["embedding"], "model.embed_tokens.weight"
        state["final"], tensors["final"] = w["norm"], "model.norm.weight"
        if not self.tied:
            state["head"], tensors["head"] = w["head"], "lm_head.weight"
        fused = [self.attention_order, self.feed_forward_order]
        separate = [name for name in SHORT if not any(order and name in order for order in fused)]
        groups = (
            ("num_key_value_heads", self.kv_heads, self.attention_grouped),
            ("intermediate_size", self.hidden, self.feed_forward_grouped),
        )
        for layer in range(self.layers):
            for order, (key, number, grouped) in zip(fused, groups, strict=True):
                if order:
                    parts = [w[f"{layer}.{name}"] for name in order]
                    if grouped:
                        rows = [part.chunk(number) for part in parts]
                        parts = [piece[n] for n in range(number) for piece in rows]
                    name = "_".join(order)
                    state[f"block.{layer}.{name}"] = torch.cat(parts)
                    tensors["block.{layer}." + name] = {
                        "to": ["model.layers.{layer}." + SHORT[part] + ".weight" for part in order],
                        **({"groups": key} if grouped else {}),
                    }
            for name in separate:
                state[f"block.{layer}.{name}"] = w[f"{layer}.{name}"]
                tensors["block.{layer}." + name] = {"to": "model.layers.{layer}." + SHORT[name] + ".weight"}
        if self.transposed:
            for name, part in tensors.items():
                if isinstance(part, dict) and not name.endswith(("norm1", "norm2")):
                    part["transpose"] = True
            state = {
                name: tensor.T.contiguous() if name.startswith("block") and tensor.ndim == 2 else tensor
                for name, tensor in state.items()
            }
        mapping = {
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "positions": "rope",
            "rope": "interleaved" if self.interleaved else "half",
            "tensors": tensors,
            "model": {
                "num_attention_heads": self.heads,
                "head_dim": self.head_dim,
                "max_position_embeddings": 64,
                "rope_theta": self.theta,
                "rms_norm_eps": self.epsilon,
                "vocab_size": self.vocabulary,
            },
        }
        return state, mapping

    def llama2c_names(self) -> dict[str, torch.Tensor]:
        """The state dict of llama2.c's model.py, and of Meta's files."""
        names = {
            "embedding": "tok_embeddings",
            "norm": "norm",
            "head": "output",
            "wq": "attention.wq",
            "wk": "attention.wk",
            "wv": "attention.wv",
            "wo": "attention.wo",
            "gate": "feed_forward.w1",
            "down": "feed_forward.w2",
            "up": "feed_forward.w3",
            "norm1": "attention_norm",
            "norm2": "ffn_norm",
        }
        state = {}
        for name, tensor in self.weights.items():
            layer, _, kind = name.rpartition(".")
            state[(f"layers.{layer}." if layer else "") + names[kind] + ".weight"] = tensor
        return state

    def write_llama2c(self, path: Path, version: int, group: int = 8) -> None:
        """The binary form of llama2.c, version 0, 1 or 2, as its run.c and runq.c read it."""
        w, layers = self.weights, range(self.layers)
        numbers = [self.width, self.hidden, self.layers, self.heads, self.kv_heads, self.vocabulary, 16]

        def floats(*tensors: torch.Tensor) -> bytes:
            return b"".join(tensor.contiguous().numpy().astype("<f4").tobytes() for tensor in tensors)

        def kind(*names: str) -> list[torch.Tensor]:
            return [w[f"{layer}.{name}"] for name in names for layer in layers]

        if version == 0:
            numbers[5] *= 1 if self.tied else -1
            angles = torch.outer(torch.arange(16.0), self.theta ** (-torch.arange(0, self.head_dim, 2) / self.head_dim))
            first = [w["embedding"], *kind("norm1", "wq", "wk", "wv", "wo", "norm2", "gate", "down", "up"), w["norm"]]
            data = struct.pack("<7i", *numbers) + floats(*first, angles.cos(), angles.sin())
            path.write_bytes(data + (b"" if self.tied else floats(w["head"])))
            return
        head = struct.pack("<Ii7iB", 0x616B3432, version, *numbers, self.tied)
        norms = floats(*kind("norm1", "norm2"), w["norm"])
        rest = [
            w["embedding"],
            *kind("wq", "wk", "wv", "wo", "gate", "down", "up"),
            *([] if self.tied else [w["head"]]),
        ]
        if version == 1:
            path.write_bytes(head.ljust(256, b"\0") + norms + floats(*rest))
            return
        integers, scales = [], []
        for tensor in rest:
            rows = tensor.reshape(-1, group)
            scale = rows.abs().amax(1) / 127
            integers.append((rows / scale[:, None]).round().to(torch.int8))
            scales.append(scale)
            tensor.copy_((integers[-1] * scale[:, None]).reshape(tensor.shape))  # what the file holds
        data = b"".join(tensor.numpy().tobytes() for tensor in integers)
        path.write_bytes((head + struct.pack("<i", group)).ljust(256, b"\0") + norms + data + floats(*scales))
