"""The kernels that training steps spend their time in, with the bytes that each has to move for an element."""

from __future__ import annotations

from dataclasses import dataclass

# Instructions for each byte moved, by architecture: more, and an H200 waits for instructions and not for its memory. It
# issues 33.4 T instructions of a thread in a second (132 processors x 4 x 32 lanes x 1.98 GHz) and copies 4.3 TB, which
# is 7.8 for a byte; but at 7.0 the forward of gelu had three quarters of the bandwidth of a copy, at 5.9 nine tenths.
# Now it takes 5.8.
BUDGETS = {"90": 5.9}

# By when an iteration has to have loaded, as a share of its instructions: a compiler that is short of registers moves
# loads down to where some are free, and the memory idles.
LATEST_LOAD = 0.25


@dataclass(frozen=True)
class HotKernel:
    """A kernel by its title, file and name, and what it reads and writes for each element, in bytes. A kernel that only
    reads is known by its instructions of doubles, too, as its bytes say nothing of the size of its elements."""

    title: str
    source: str
    kernel: str
    loads: int
    stores: int
    doubles: int | None = None
    allowance: int = 0  # instructions beyond the budget, for operands that are moved once for many elements


GRAD = "act_dropout_grad.cu"
ACTIVATIONS = {"relu": "Relu", "gelu": "Gelu", "gelu_tanh": "GeluTanh", "silu": "Silu"}

HOT_KERNELS = [
    HotKernel("norm, fp32 gradients", "global_norm.cu", "norm_kernel<(Measure)1, StepRow>", 4, 0, doubles=1),
    HotKernel("AdamW, fp32", "optim_step.cu", "step_kernel<AdamW>", 16, 12),
    HotKernel("AdamW, bf16 with fp32 states", "optim_step.cu", "step_kernel<AdamW>", 12, 10),
    *(
        HotKernel(f"{rule} forward, bf16", "act_dropout.cu", f"act_kernel<Forward<{name}, bf16, false>>", 2, 2)
        for rule, name in ACTIVATIONS.items()
    ),
    HotKernel(
        "gelu forward with bias, bf16", "act_dropout.cu", "act_kernel<Forward<Gelu, bf16, true>>", 2, 2, allowance=1
    ),
    HotKernel("relu backward from y, bf16", GRAD, "act_kernel<Backward<Relu, bf16, true, false>>", 4, 2),
    HotKernel(
        "relu backward from y with sums, bf16", GRAD, "act_kernel<Backward<Relu, bf16, true, true>>", 4, 2, None, 1
    ),
    *(
        HotKernel(f"{rule} backward, bf16", GRAD, f"act_kernel<Backward<{name}, bf16, false, false>>", 4, 2)
        for rule, name in ACTIVATIONS.items()
        if rule != "relu"
    ),
    HotKernel(
        "gelu backward with bias, sums, bf16", GRAD, "act_kernel<Backward<Gelu, bf16, false, true>>", 4, 2, None, 2
    ),
    HotKernel("swiglu forward, bf16", "gated_act_dropout.cu", "act_kernel<GatedForward<Silu, bf16>>", 4, 2),
    HotKernel("swiglu backward, bf16", "gated_act_dropout_grad.cu", "act_kernel<GatedBackward<Silu, bf16>>", 6, 4),
]


@dataclass(frozen=True)
class HotTritonKernel:
    """Bytes for each element, and the most instructions that it may take: what it takes with the releases of Triton
    from 3.6 to 3.9, and about one more."""

    loads: int
    stores: int
    instructions: float


BARE = "no bias, residual"
BARE_GRAD = "no bias, dbias"

# By the names of their cases.
HOT_TRITON_KERNELS = {
    f"act_dropout_kernel[relu, bf16, {BARE}]": HotTritonKernel(2, 2, 17.5),
    f"act_dropout_kernel[gelu, bf16, {BARE}]": HotTritonKernel(2, 2, 24.5),
    f"act_dropout_kernel[gelu_tanh, bf16, {BARE}]": HotTritonKernel(2, 2, 23),
    f"act_dropout_kernel[silu, bf16, {BARE}]": HotTritonKernel(2, 2, 19),
    f"act_dropout_kernel[mish, bf16, {BARE}]": HotTritonKernel(2, 2, 27),
    f"act_dropout_kernel[tanh, bf16, {BARE}]": HotTritonKernel(2, 2, 30),
    "act_dropout_grad_kernel[relu, bf16, from output, no dbias]": HotTritonKernel(4, 2, 13),
    f"act_dropout_grad_kernel[gelu, bf16, {BARE_GRAD}]": HotTritonKernel(4, 2, 31.5),
    f"act_dropout_grad_kernel[gelu_tanh, bf16, {BARE_GRAD}]": HotTritonKernel(4, 2, 34),
    f"act_dropout_grad_kernel[silu, bf16, {BARE_GRAD}]": HotTritonKernel(4, 2, 25),
    f"act_dropout_grad_kernel[mish, bf16, {BARE_GRAD}]": HotTritonKernel(4, 2, 38.5),
    "act_dropout_grad_kernel[gelu, bf16]": HotTritonKernel(4, 2, 33.5),
    "gated_act_dropout_kernel[silu, bf16]": HotTritonKernel(4, 2, 24.5),
    "gated_act_dropout_grad_kernel[silu, bf16]": HotTritonKernel(6, 4, 39.5),
}
