"""Raw text to chat model on the Hugging Face stack. Importing registers model_type "genesis" with Auto*."""

from genesis_hf.modeling import GenesisConfig, GenesisForCausalLM, GenesisModel, register
from genesis_hf.version import __version__

register()

__all__ = ["GenesisConfig", "GenesisForCausalLM", "GenesisModel", "__version__"]
