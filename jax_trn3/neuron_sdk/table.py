"""The rules, one table: `docs/neuron_sdk.md` is written from it (tools/neuron_sdk_page.py)."""

from . import detect_equations as of
from . import detect_operations as lowered
from .rule import Rule

SDK = "AWS Neuron SDK 2.32.0, github.com/aws-neuron/aws-neuron-sdk at 81ce03ae (2026-08-21)"

JAX_ISSUES = "frameworks/jax/setup/jax-neuronx-known-issues.rst"
DATA_TYPES = "about-neuron/arch/neuron-features/data-types.rst"
COMPILER_FLAGS = "compiler/neuronx-cc/api-reference-guide/index.rst"
COMPILER_NOTES = "release-notes/components/compiler.rst"
CUSTOM_KERNELS = "nki/guides/framework_custom_op.rst"


def _error(code: str) -> str:
    return f"compiler/error-codes/{code}.rst"


_CONTROL_FLOW = (
    Rule(
        id="cond",
        severity="refused",
        operation=lowered.conditional,
        says="lax.cond (and lax.switch) is not supported",
        way_out="compute both branches and choose with jnp.where (lax.select), or decide in Python "
        "by a static argument, one program for each case",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="dynamic-while",
        severity="refused",
        operation=lowered.dynamic_loop,
        says="loops whose number of steps is not known at compile time are not supported by "
        "lax.while_loop, only static ones",
        way_out="a fixed number of steps with lax.scan or lax.fori_loop and constant bounds, and "
        "jnp.where to keep the state once it is done; or one step a program and the loop in Python",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="callback",
        severity="refused",
        equation=of.callback,
        says="host callbacks are not supported, nor what is based on them (jax.debug, checkify)",
        way_out="return the value from the program and look at it outside; checkify.checkify "
        "returns the error as a value",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="dynamic-shape",
        severity="refused",
        operation=lowered.dynamic_shape,
        says="every dimension must have a static size (NCC_EMOD025); set-dimension-size is no "
        "supported operation either (aws-neuron-sdk issue 1144)",
        way_out="pad or bucket to fixed sizes, with a mask for what is padding",
        pages=(_error("EMOD025"),),
    ),
)

_DTYPES = (
    Rule(
        id="complex",
        severity="refused",
        dtype=of.complex_number,
        says="complex dtypes are not supported by JAX on Neuron (NCC_EVRF004); the compiler of SDK "
        "2.32 names about 30 operations of complex64 that it takes",
        way_out="two real arrays, for the real and the imaginary parts; or that part on the CPU",
        pages=(JAX_ISSUES, _error("EVRF004"), COMPILER_NOTES),
    ),
    Rule(
        id="float64",
        severity="refused",
        dtype=of.float64,
        says="float64 is none of Trainium's data types (NCC_ESPP004)",
        way_out="float32: leave jax_enable_x64 off, or give a dtype",
        pages=(DATA_TYPES, _error("ESPP004")),
    ),
    Rule(
        id="int64",
        severity="changed",
        dtype=of.int64,
        says="64-bit integers are computed in 32 bits unless the compiler is given "
        "--native-int64=enabled (from Trainium 2 on, 20-30 % slower; the default of the next SDK)",
        way_out="int32 or uint32 where values fit: leave jax_enable_x64 off, or give a dtype; else "
        "NEURON_CC_FLAGS=--native-int64=enabled",
        pages=(DATA_TYPES, COMPILER_FLAGS, COMPILER_NOTES),
    ),
    Rule(
        id="uint64-constant",
        severity="refused",
        equation=of.large_constant,
        says="a 64-bit constant that does not fit into 32 bits fails compilation (NCC_ESFH002)",
        way_out="constants of 32 bits, put together by shifts where more is needed",
        pages=(_error("ESFH002"),),
    ),
    Rule(
        id="fp8-kind",
        severity="refused",
        dtype=of.unknown_fp8,
        says="of the 8-bit floats Neuron supports only float8_e4m3 and float8_e5m2 (NCC_EVRF005, "
        "NCC_ESPP047)",
        way_out="float8_e4m3 (largest number 240) or float8_e5m2; scales of MX blocks in uint8",
        pages=(JAX_ISSUES, _error("EVRF005"), _error("ESPP047"), DATA_TYPES),
    ),
    Rule(
        id="fp8-e4m3fn",
        severity="changed",
        dtype=of.e4m3fn,
        says="float8_e4m3fn is native on Trainium 3 by the compiler's page (NCC_EVRF051) and "
        "refused on Trainium 1 and 2; the page on JAX names only float8_e4m3 and float8_e5m2",
        way_out="float8_e4m3, whose largest number is 240 instead of 448 (scale accordingly); on "
        "Trainium 2 also the compiler's --experimental-unsafe-fp8e4m3fn-as-fp8e4m3",
        pages=(_error("EVRF051"), JAX_ISSUES),
    ),
    Rule(
        id="sub-byte",
        severity="refused",
        dtype=of.below_a_byte,
        says="data types of less than 8 bits are not supported in a program (NCC_ESPP004)",
        way_out="8-bit types; MXFP4 only in an NKI kernel, packed by four (float4_e2m1fn_x4)",
        pages=(_error("ESPP004"), DATA_TYPES),
    ),
)

_RANDOM = (
    Rule(
        id="threefry",
        severity="refused",
        equation=of.threefry,
        says="the threefry generator is not completely supported",
        way_out='jax.config.update("jax_default_prng_impl", "rbg") before keys are made, or '
        'jax.random.key(seed, impl="rbg")',
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="randint",
        severity="changed",
        equation=of.randint,
        says="jax.random.randint does not have the distribution that it should have",
        way_out="call it on the CPU and transfer the result, or floor(uniform * n) for small n",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="random-algorithm",
        severity="refused",
        equation=of.random_algorithm,
        says="a random bit generator must leave the algorithm to the compiler, RNG_DEFAULT "
        "(NCC_EVRF006)",
        way_out="jax.random with rbg keys, or algorithm=lax.RandomAlgorithm.RNG_DEFAULT",
        pages=(_error("EVRF006"),),
    ),
    Rule(
        id="random-initialization",
        severity="slow",
        equation=of.random_initialization,
        says="initialising weights with random numbers may take long to compile",
        way_out="initialise on the CPU, or set NEURON_RUN_TRIVIAL_COMPUTATION_ON_CPU=1 (programs "
        "without collectives)",
        pages=(JAX_ISSUES, "frameworks/jax/api-reference-guide/neuron-envvars.rst"),
    ),
)

_PRODUCTS = (
    Rule(
        id="integer-product",
        severity="refused",
        equation=of.integer_product,
        says="products of integers are not supported (NCC_EVRF035): the matrix engine has floats "
        "only. By --implicit-integer-downcast=dot, today's default of the compiler, they go "
        "through float32, exact up to 2**24",
        way_out="cast the operands to bfloat16 or float32 and the result back",
        pages=(JAX_ISSUES, _error("EVRF035"), COMPILER_FLAGS),
    ),
    Rule(
        id="float32-product",
        severity="slow",
        equation=of.float32_product,
        says="products of float32 run at 183 TFLOPS a chip, of bfloat16 at 671",
        way_out="bfloat16 operands (sums stay float32), or the compiler's --auto-cast=matmult",
        pages=("about-neuron/arch/neuron-hardware/trainium3.rst", COMPILER_FLAGS),
    ),
    Rule(
        id="dot-algorithm",
        severity="changed",
        equation=of.dot_algorithm,
        says="lax.DotAlgorithmPreset is not always respected: products are done in the operands' "
        "dtypes",
        way_out="cast the operands to the dtype that is meant",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="both-dilations",
        severity="refused",
        equation=of.both_dilations,
        says="a convolution cannot dilate both its input and its kernel (NCC_EVRF010)",
        way_out="dilate one of them by hand (lax.pad with interior padding)",
        pages=(_error("EVRF010"),),
    ),
    Rule(
        id="stride-and-dilation",
        severity="refused",
        equation=of.stride_and_dilation,
        says="a convolution cannot have strides and dilate its input (NCC_EVRF011)",
        way_out="two steps: up-sampling and down-sampling apart",
        pages=(_error("EVRF011"),),
    ),
)

_REDUCTIONS = (
    Rule(
        id="variadic-reduction",
        severity="refused",
        operation=lowered.variadic_reduction,
        says="a reduction of several arrays at once is not supported (argmax and argmin are such)",
        way_out="reductions of one array each; for argmax the maximum, and then the smallest index "
        "that has it: jnp.min(jnp.where(x == x.max(1, keepdims=True), jnp.arange(n), n), 1)",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="variadic-window",
        severity="refused",
        operation=lowered.variadic_window,
        says="reduce_window takes one array and one initial value (NCC_EVRF019)",
        way_out="several reduce_window, of one array each",
        pages=(_error("EVRF019"),),
    ),
    Rule(
        id="base-dilation",
        severity="refused",
        operation=lowered.base_dilation,
        says="reduce_window cannot dilate its input (NCC_EVRF017)",
        way_out="dilate by hand (lax.pad with interior padding)",
        pages=(_error("EVRF017"),),
    ),
    Rule(
        id="window-dilation",
        severity="refused",
        operation=lowered.window_dilation,
        says="reduce_window cannot dilate its window (NCC_EVRF018)",
        way_out="strided slices, combined by jnp.maximum or a sum",
        pages=(_error("EVRF018"),),
    ),
    Rule(
        id="sort-comparator",
        severity="refused",
        operation=lowered.sort_by_several,
        says="lax.sort supports comparators of LE, GE, LT and GT only; an order by several arrays "
        "needs more",
        way_out="one key: join the keys into one number, or sort by the last first and then, "
        "stably, by the others",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="sort-floats",
        severity="changed",
        operation=lowered.sort_of_floats,
        says="lax.sort supports comparators of LE, GE, LT and GT only; JAX's for floats asks more, "
        "to place NaN and -0. No page says whether that is recognised",
        way_out="lax.top_k where the largest are enough; else see that there is no NaN, and "
        "compare with the CPU",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="integer-top-k",
        severity="refused",
        equation=of.integer_top_k,
        says="TopK takes no integers (NCC_EVRF013)",
        way_out="cast to float32 (exact up to 2**24)",
        pages=(_error("EVRF013"),),
    ),
)

_INDICES = (
    Rule(
        id="gather-bounds",
        severity="changed",
        equation=of.unchecked_gather,
        says="an index out of bounds can be an error at run time, where JAX promises to fill",
        way_out='mode="clip", which keeps indices within the array; or mode="promise_in_bounds" '
        "where they are",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="scatter-bounds",
        severity="changed",
        equation=of.unchecked_scatter,
        says="an index out of bounds can be an error at run time, where JAX promises to drop",
        way_out='mode="promise_in_bounds" where indices are; else a spare row for what is to be '
        "dropped. In a gradient the mode is that of the indexing in the forward pass",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="iota-bounds",
        severity="refused",
        operation=lowered.iota_past_the_end,
        says="indices that count past the end of the array do not compile (NCC_EVRF031 for "
        "scatter, NCC_EVRF056 for gather)",
        way_out="count to the size of the dimension",
        pages=(_error("EVRF031"), _error("EVRF056")),
    ),
    Rule(
        id="integer-scatter",
        severity="refused",
        equation=of.integer_scatter,
        says="a scatter that adds, multiplies or compares takes floats only (NCC_EVRF016, "
        "NCC_EVRF060). By --implicit-integer-downcast=scatter, today's default of the compiler, 32 "
        "and 64 bits go through float32, exact up to 2**24",
        way_out="scatter float32 and cast the result, or a product with a one-hot matrix",
        pages=(_error("EVRF016"), _error("EVRF060"), COMPILER_FLAGS),
    ),
)

_ARITHMETIC = (
    Rule(
        id="reduce-precision",
        severity="refused",
        operation=lowered.reduced_precision,
        says="lax.reduce_precision is not supported",
        way_out="x.astype(jnp.bfloat16).astype(x.dtype). jax.checkpoint makes it of what a policy "
        "saves",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="narrow-shift",
        severity="refused",
        equation=of.narrow_shift,
        says="an arithmetic right shift takes 32-bit numbers only (NCC_EVRF022)",
        way_out="cast to int32 before the shift",
        pages=(_error("EVRF022"),),
    ),
    Rule(
        id="integer-all-reduce",
        severity="refused",
        operation=lowered.integer_all_reduce,
        says="an all-reduce of 32- or 64-bit integers is not supported (NCC_EVRF061). By "
        "--implicit-integer-downcast=all_reduce, today's default of the compiler, it goes through "
        "float32, exact up to 2**24",
        way_out="sum float32 by psum, and cast the result",
        pages=(_error("EVRF061"), COMPILER_FLAGS),
    ),
    Rule(
        id="integer-reduce-scatter",
        severity="refused",
        operation=lowered.integer_reduce_scatter,
        says="a reduce-scatter of 32- or 64-bit integers is not supported (NCC_EVRF063). By "
        "--implicit-integer-downcast=reduce_scatter, today's default of the compiler, it goes "
        "through float32, exact up to 2**24",
        way_out="sum float32 by psum_scatter, and cast the result",
        pages=(_error("EVRF063"), COMPILER_FLAGS),
    ),
    Rule(
        id="triangular-solve",
        severity="refused",
        equation=of.triangular_solve,
        says="triangular_solve is no operator of the compiler (NCC_EVRF001)",
        way_out="on the CPU; or the inverse made there, and a product",
        pages=(_error("EVRF001"),),
    ),
    Rule(
        id="fft",
        severity="refused",
        equation=of.fft,
        says="Fourier transforms are the compiler's own example of an unsupported operator",
        way_out="a product with the matrix of the transform, real and imaginary parts apart; or "
        "the CPU",
        pages=("frameworks/torch/torch-neuronx/api-reference-guide/inference/"
               "api-torch-neuronx-analyze.rst",),
    ),
)  # fmt: skip

_FOREIGN = (
    Rule(
        id="sparse",
        severity="refused",
        equation=of.sparse,
        says="jax.experimental.sparse is not supported",
        way_out="dense arrays with a mask, or gathers of what is not zero",
        pages=(JAX_ISSUES,),
    ),
    Rule(
        id="custom-call",
        severity="refused",
        equation=of.custom_call,
        says="custom calls other than Neuron's own are not recognised (NCC_EHCA005, NCC_EVRF015)",
        way_out="JAX operations, or an NKI kernel (@nki.jit)",
        pages=(_error("EHCA005"), CUSTOM_KERNELS),
    ),
    Rule(
        id="pallas",
        severity="refused",
        equation=of.pallas_kernel,
        says="kernels of one's own come to JAX on Neuron as @nki.jit functions; there is no "
        "lowering of Pallas",
        way_out="an NKI kernel called on JAX arrays, with jax.custom_vjp for its gradient",
        pages=(CUSTOM_KERNELS,),
    ),
    Rule(
        id="no-lowering",
        severity="refused",
        equation=of.without_lowering,
        says="JAX itself has no rule of this primitive for other platforms, neuron among them",
        way_out="run that part on the CPU",
        pages=("jax/_src/interpreters/mlir.py",),
    ),
    Rule(
        id="trn3-operation",
        severity="changed",
        operation=lowered.own_operation,
        says="this is an operation of jax-trn3: Neuron's compiler knows some StableHLO composites, "
        "and not this name, so that it would compile the decomposition instead",
        way_out="an NKI kernel of nki-library in its place (attention, quantised products), or "
        "Neuron's custom calls QuantizeMX and __op$block_scaled_dot",
        pages=(COMPILER_NOTES, _error("EVRF042"), "nki/library/index.rst"),
    ),
)

RULES: tuple[Rule, ...] = (
    *_CONTROL_FLOW, *_DTYPES, *_RANDOM, *_PRODUCTS, *_REDUCTIONS, *_INDICES, *_ARITHMETIC,
    *_FOREIGN,
)  # fmt: skip
