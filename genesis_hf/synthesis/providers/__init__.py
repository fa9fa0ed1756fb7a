"""Who answers: one small interface (`base`), and those behind it."""

from genesis_hf.errors import UserError
from genesis_hf.synthesis.providers.base import Provider
from genesis_hf.synthesis.recipe import ProviderSettings


def open_provider(settings: ProviderSettings) -> Provider:
    """Whoever the recipe names.

    Raises:
        UserError: its client isn't installed, its key isn't in the environment, its model can't be read.
    """
    try:
        if settings.kind == "openai":
            from genesis_hf.synthesis.providers.openai import OpenAIProvider as kind
        elif settings.kind == "anthropic":
            from genesis_hf.synthesis.providers.anthropic import AnthropicProvider as kind
        else:
            from genesis_hf.synthesis.providers.local import LocalProvider as kind
    except ModuleNotFoundError as error:
        raise UserError(f"kind: {settings.kind} needs {error.name}: pip install 'genesis-hf[synthesis]'") from None
    return kind(settings)
