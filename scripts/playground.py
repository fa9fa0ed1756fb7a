"""Talk to checkpoints in a browser.

    python scripts/playground.py runs/genesis-1b runs/other/export me/genesis-1b@step-040000 [--port 7860] …

Models are runs, folders that hold runs, exported folders and models of the Hub. The page listens on this machine alone
unless `--host` says otherwise. On a Hugging Face Space, and wherever there are no arguments, the variable
GENESIS_HF_MODELS holds them.
"""

import _env  # noqa: F401

import sys
from pathlib import Path

# A Space runs this file in a copy of the repository that isn't installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.playground.recipe import read_recipe


def main() -> None:
    recipe = read_recipe(sys.argv[1:])

    # After the options: this brings torch and Gradio, which take seconds.
    try:
        from genesis_hf.playground.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(f"{error.name} is not installed: pip install -e .[playground]") from None

    serve(recipe)


if __name__ == "__main__":
    with report_user_errors():
        main()
