"""Published checkpoints of this family, written anew as folders that `bindlm.load` opens.

Tensors go from file to file one at a time, so that a 7B model needs little memory; see `docs/convert.md`.
"""

from bindlm.checkpoints.convert.imagebind_llm import convert_imagebind_llm
from bindlm.checkpoints.convert.llama_adapter import convert_llama_adapter_v1, convert_llama_adapter_v2
from bindlm.checkpoints.convert.pandagpt import convert_pandagpt

__all__ = ["convert_imagebind_llm", "convert_llama_adapter_v1", "convert_llama_adapter_v2", "convert_pandagpt"]
