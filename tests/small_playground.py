"""A small tree of models, and a playground over it on a free port."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from small_models import random_model
from tiny_chat import VOCABULARY, make_tokenizer, small_model

from genesis_hf.chat import prepare_for_chat
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.exporting.llama import write_llama_folder
from genesis_hf.playground.recipe import PlaygroundRecipe
from genesis_hf.playground.serve import listen, make_app
from genesis_hf.tokenizer import load_tokenizer

STEPS = (10, 20, 30)

ENDLESS = 200_000
"""Tokens that the chat model's context has: an answer that nobody waits for."""


@functools.cache
def make_models(base: Path) -> Path:
    """`trunk`, a run with three checkpoints; `chat`, a chat model that seldom stops; `broken`, without its weights.

    Made once for all tests, below pytest's own folder.
    """
    folder = base / "playground"
    folder.mkdir()
    tokens = make_tokenizer(folder)
    root = folder / "models"
    tokenizer = load_tokenizer(tokens)
    model = random_model(tied=True, vocab_size=VOCABULARY, max_position_embeddings=64)
    for step in STEPS:
        with torch.no_grad():
            model.model.norm.weight.mul_(1.5)
        optimizers = [torch.optim.SGD(model.parameters())]
        save_checkpoint(checkpoint_folder(root / "trunk", step), model, optimizers, {"step": step}, "", tokenizer)
    chat = small_model(hidden_size=48)
    chat.config.max_position_embeddings = ENDLESS
    prepare_for_chat(chat, tokenizer)
    with torch.no_grad():
        chat.get_input_embeddings().weight.mul_(25)
    write_llama_folder(chat, tokenizer, root / "chat")
    write_llama_folder(chat, tokenizer, root / "broken")
    (root / "broken" / "model.safetensors").write_bytes(b"not what it was")
    return root


@contextmanager
def serving(root: Path, **settings: int) -> Iterator[str]:
    """The address of a playground over the models below a folder."""
    recipe = PlaygroundRecipe(models=[str(root)], port=0, **{"max_new_tokens_limit": ENDLESS // 2, **settings})
    listener = listen(recipe.host, recipe.port)
    app = make_app(recipe)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield "http://{}:{}".format(*listener.getsockname())
    finally:
        server.should_exit = True
        thread.join(10)
