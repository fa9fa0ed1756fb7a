"""The page over HTTP."""

import os
import socket
import sys

# Gradio asks the network for its version and reports its use unless told otherwise before it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import torch
import uvicorn
from fastapi import FastAPI
from transformers.utils.logging import disable_progress_bar

from genesis_hf.errors import UserError
from genesis_hf.playground.catalogue import find_models
from genesis_hf.playground.door import Door
from genesis_hf.playground.look import CSS, HEAD, theme
from genesis_hf.playground.page import build_page
from genesis_hf.playground.recipe import ON_SPACE, PlaygroundRecipe

BYTES_A_CHARACTER = 12
"""Of JSON: a character outside the Basic Multilingual Plane is written as two escapes of six."""

BODY_BESIDES = 256 * 1024
"""Bytes of a request beside the prompt: settings, and the markup of the last answer."""


def make_app(recipe: PlaygroundRecipe) -> Door:
    """The whole application, to be given to an ASGI server.

    Raises:
        UserError: there is no model.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        build_page(lambda: find_models(recipe.roots, recipe.hub_models), recipe),
        path="/",
        theme=theme(),
        css_paths=CSS,
        head_paths=HEAD,
        footer_links=[],
        allowed_paths=[],
        max_file_size=0,
        enable_monitoring=False,
        ssr_mode=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
    )
    known = None if os.environ.get(ON_SPACE) else recipe.host  # a Space is for everybody, under names of its own
    return Door(app, BYTES_A_CHARACTER * recipe.max_prompt_chars + BODY_BESIDES, known)


def serve(recipe: PlaygroundRecipe) -> None:
    """Answer until Ctrl-C.

    Raises:
        UserError: there is no model, or the address can't be listened on.
    """
    disable_progress_bar()  # of weights, in the server's own output
    if not torch.cuda.is_available():  # answers written at once share the cores instead of fighting for them
        torch.set_num_threads(max(1, torch.get_num_threads() // recipe.concurrency))
    listener = listen(recipe.host, recipe.port)
    app = make_app(recipe)
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port} (Ctrl-C ends)", flush=True)
    if host not in ("127.0.0.1", "::1"):
        print("everybody who reaches this machine can use it: there is no password", file=sys.stderr, flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address, before anything heavy is built.

    Raises:
        UserError: it is taken, or isn't one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"{host}:{port}: can't be listened on ({reason}); choose another --port or --host") from None
