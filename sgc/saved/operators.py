"""The operators that a program in a file may call: torch's own, on tensors and numbers.

A file may come from anywhere. An operator is allowed if it takes tensors, numbers, dtypes, devices and a few texts that
choose between its variants, gives tensors or numbers, and is none of those that read files, take over memory of another
tensor, rely on memory that the caller has laid out, or are there for torch's own machinery.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

_NAMESPACES = ("aten", "prims")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "eq", "ne", "lt", "le", "gt", "ge")
    },
    **{name: getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")},
}
"""Functions besides operators: parts of results, and arithmetic of sizes."""

_NAME = re.compile(r"(aten|prims)::([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)

_TAKEN = re.compile(r"(Optional\[)?(List\[)?(Optional\[)?(Tensor|number|int|float|bool|SymInt|Device)\]*")
"""Types of arguments, as schemas name them; a dtype, layout or memory format is an int there."""
_GIVEN = re.compile(r"(List\[)?(Tensor|number|int|float|bool|SymInt)\]?")

_VARIANTS = {
    *("approximate", "rounding_mode", "side", "reduce", "equation", "ord", "indexing", "norm", "pad_mode", "UPLO"),
    *("interpolation", "mode", "padding", "driver", "padding_mode", "reduction", "api_name"),
    *("assert_msg", "padding_side"),
}
"""Names of arguments that are texts, each a choice between variants."""

_REFUSED = re.compile(
    r"from_file|set|set_|set_data|data|resize.*|record_stream|rename.*|refine_names|align_.*|backward|retain_grad"
    r"|pin_memory|is_pinned|.*sparse.*|to_mkldnn|mkldnn_.*|.*quantize.*|q_.*|fbgemm_.*|cudnn_(?!batch_norm).*"
    r"|miopen_(?!batch_norm).*|nested_.*|.*_nested.*|crow_indices.*|col_indices.*|ccol_indices.*|row_indices.*|coalesce"
    r"|is_coalesced|indices.*|values.*|int_repr|copy_sparse.*|requires_grad_|output_nr|_version|is_leaf|unsafe_chunk"
)

_UNDERSCORED = re.compile(
    r"__\w+__|_foreach_.*|_softmax.*|_log_softmax.*|_safe_softmax|_masked_softmax.*|_fft_.*|_linalg_.*|_adaptive_.*"
    r"|_upsample_.*|_native_batch_norm.*|_batch_norm_.*|_scaled_dot_product_.*|_cdist_.*|_pdist_.*|_euclidean_dist"
    r"|_embedding_bag.*|_grid_sampler_.*|_thnn_.*|_to_copy|_unsafe_view|_reshape_copy|_unsafe_index.*|_int_mm|_lu_with_info"
    r"|_unsafe_masked_index.*|_index_put_impl_?|_standard_gamma.*|_sample_dirichlet|_dirichlet_grad|_assert_.*|_dim_arange"
    r"|_local_scalar_dense|_weight_norm.*|_prelu_kernel.*|_trilinear|_conj.*|_neg_view.*|_fused_dropout|_fused_rms_norm.*"
    r"|_convolution.*|_addmm_activation|_cholesky_solve_helper|_logcumsumexp.*|_cummax_helper|_cummin_helper|_ctc_loss.*"
    r"|_unique|_unique2|_stack|_cat|_chunk_cat|_segment_reduce.*|_aminmax|_compute_linear_combination.*|_lstm_cell.*"
    r"|_philox.*|_functional_assert_.*|_flash_attention_.*|_efficient_attention_.*|_fused_sdp_choice|_conv_depthwise2d.*"
    r"|_slow_conv2d_.*|_pack_padded_sequence.*|_pad_packed_sequence|_is_all_true|_is_any_true|_masked_scale"
    r"|_shape_as_tensor"
)


def is_allowed(target: Any) -> bool:
    """Whether a program in a file may call this."""
    return any(target is function for function in FUNCTIONS.values()) or (
        isinstance(target, OpOverload) and target.namespace in _NAMESPACES and _is_plain(target)
    )


def name_of(target: Any) -> str:
    """The name of what is allowed, by which :func:`named` finds it."""
    if isinstance(target, OpOverload):
        return f"{target.namespace}::{target.overloadpacket.__name__}.{target._overloadname}"
    return next(name for name, function in FUNCTIONS.items() if function is target)


def named(name: Any) -> Callable[..., Any]:
    """What is allowed under a name.

    :raises ValueError: if nothing is.
    """
    if not isinstance(name, str):
        raise ValueError("an operator without a name")
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = _NAME.fullmatch(name)
    if parts is not None:
        packet = getattr(getattr(torch.ops, parts[1]), parts[2], None)
        target = getattr(packet, parts[3], None) if isinstance(packet, OpOverloadPacket) else None
        if isinstance(target, OpOverload) and is_allowed(target):
            return target
    raise ValueError(f"no program calls {name}")


def check_arguments(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that an operator takes as many arguments, under these names.

    :raises ValueError: if not.
    """
    if not isinstance(target, OpOverload):
        if kwargs or not 1 <= len(args) <= 3:
            raise ValueError(f"{target} is called with other arguments")
        return
    arguments = target._schema.arguments
    positional = [argument.name for argument in arguments if not argument.kwarg_only]
    given = {*positional[: len(args)], *kwargs}
    known = {argument.name for argument in arguments}
    needed = {argument.name for argument in arguments if not argument.has_default_value()}
    if len(args) > len(positional) or len(given) != len(args) + len(kwargs) or not needed <= given <= known:
        raise ValueError(f"{target} is called with other arguments than it has")


@cache
def _is_plain(target: OpOverload) -> bool:
    name = target.overloadpacket.__name__
    if _REFUSED.fullmatch(name) or (name.startswith("_") and not _UNDERSCORED.fullmatch(name)):
        return False
    arguments, returns = target._schema.arguments, target._schema.returns
    has_tensor = any("Tensor" in str(each.type) for each in (*arguments, *returns))
    taken = all(_is_taken(argument) for argument in arguments)
    return has_tensor and taken and all(_GIVEN.fullmatch(str(result.type)) for result in returns)


def _is_taken(argument: Any) -> bool:
    kind = str(argument.type)
    if "str" in kind:
        return argument.name in _VARIANTS
    return _TAKEN.fullmatch(kind) is not None or kind == "Optional[Generator]"
