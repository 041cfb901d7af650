"""The number formats of a published checkpoint: `torch_dtype` and `quantization_config`."""

from __future__ import annotations

from hrm.dtypes import DType
from hrm.model_config.parts import Fields
from hrm.model_config.reader import Reader

__all__ = ["formats"]

_FLOATS = ("float32", "bfloat16", "float16")
_METHODS = ("mxfp4", "fp8", "gptq", "awq")


def formats(read: Reader) -> Fields:
    """Read in which format the weights are kept, bfloat16 where nothing is said.

    Embeddings, norms and routers, which quantisation leaves alone, are not told apart from the other weights.

    Raises
    ------
    ModelError
        For a format or a quantisation method that is not known.
    """
    read.only("torch_dtype", *_FLOATS)
    read.only("dtype", *_FLOATS)
    dtype = DType(read.value("torch_dtype", "dtype") or DType.BFLOAT16)
    quantization = read.section("quantization_config")
    if quantization is None:
        return {"dtype": dtype}
    quantized = _quantized(quantization)
    experts_only = quantized is DType.MXFP4 or _spares_attention(quantization)
    quantization.ignore_all()
    return {"dtype": dtype if experts_only else quantized, "expert_dtype": quantized}


def _quantized(quantization: Reader) -> DType:
    quantization.require("quant_method")
    quantization.only("quant_method", *_METHODS)
    method = quantization.value("quant_method")
    if method == "mxfp4":
        return DType.MXFP4
    if method == "fp8":
        quantization.only("fmt", "e4m3", "float8_e4m3fn")
        quantization.only("weight_block_size", [128, 128])
        return DType.FLOAT8
    quantization.require("bits")
    quantization.only("bits", 4)
    return DType.INT4


def _spares_attention(quantization: Reader) -> bool:
    """Whether the attention of all layers is left as it was."""
    spared = quantization.list_of(str, "modules_to_not_convert") or []
    return any(name.endswith(("self_attn", "self_attn.*")) and ".0." not in name for name in spared)
