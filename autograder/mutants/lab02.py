"""Lab 2, wrong answers that the hidden judges must catch, each at the price of its own question."""

from __future__ import annotations

from textwrap import dedent, indent

from tinyml_edu.checks.lab02 import LAB
from tinyml_edu.checks.protocol import Mutant


def _mutant(name: str, question: str, why: str, source: str) -> Mutant:
    """Return a mutant that loses its whole question: a score is that of the worst case."""
    return Mutant(name, question, dedent(source).lstrip(), {question: LAB[question].points}, why)


def _clusters(**changes: str) -> str:
    parts = {
        "count": "2**bitwidth",
        "start": "torch.linspace(float(values.min()), float(values.max()), k)",
        "steps": "300",
        "stop": "labels.equal(before)",
        "given": "codebook is None",
        "write": "fp32_tensor.copy_(codebook.centroids[codebook.labels].view(fp32_tensor.shape))",
        "members": "fp32_tensor.flatten()[codebook.labels == k]",
        "guard": "members.numel()",
        "mean": "codebook.centroids[k] = members.mean()",
    }
    parts.update(changes)
    return f"""
        @torch.no_grad()
        def update_codebook(fp32_tensor, codebook):
            for k in range(len(codebook.centroids)):
                members = {parts["members"]}
                if {parts["guard"]}:
                    {parts["mean"]}


        @torch.no_grad()
        def k_means_quantize(fp32_tensor, bitwidth=4, codebook=None):
            if {parts["given"]}:
                values, k = fp32_tensor.flatten(), {parts["count"]}
                centroids = {parts["start"]}
                labels = torch.full((values.numel(),), -1)
                for _ in range({parts["steps"]}):
                    before, labels = labels, (values[:, None] - centroids).abs().argmin(dim=1)
                    if {parts["stop"]}:
                        break
                    update_codebook(values, Codebook(centroids, labels))
                codebook = Codebook(centroids, labels)
            {parts["write"]}
            return codebook
        """


def _linear(codes: str = "torch.round(fp_tensor / scale) + zero_point", **changes: str) -> str:
    parts = {
        "range": "-(2 ** (bitwidth - 1)), 2 ** (bitwidth - 1) - 1",
        "before": "pass",
        "end": "codes.clamp(*get_quantized_range(bitwidth)).to(dtype)",
    }
    parts.update(changes)
    return f"""
        def get_quantized_range(bitwidth):
            return {parts["range"]}


        def linear_quantize(fp_tensor, bitwidth, scale, zero_point, dtype=torch.int8):
            {parts["before"]}
            codes = {codes}
            return {parts["end"]}
        """


def _range(**changes: str) -> str:
    parts = {
        "low": "min(float(fp_tensor.min()), 0.0)",
        "high": "max(float(fp_tensor.max()), 0.0)",
        "zeros": "low == high",
        "scale": "(high - low) / (q_max - q_min)",
        "zero_point": "round(q_min - low / scale)",
    }
    parts.update(changes)
    return f"""
        def get_quantization_scale_and_zero_point(fp_tensor, bitwidth):
            q_min, q_max = get_quantized_range(bitwidth)
            low, high = {parts["low"]}, {parts["high"]}
            if {parts["zeros"]}:
                return 1.0, 0
            scale = {parts["scale"]}
            return scale, {parts["zero_point"]}
        """


def _per_channel(**changes: str) -> str:
    parts = {
        "largest": "tensor.abs().flatten(1).amax(dim=1)",
        "q_max": "get_quantized_range(bitwidth)[1]",
        "scale": "torch.where(scale > 0, scale, 1.0)",
        "codes": "linear_quantize(tensor, bitwidth, scale, 0)",
        "bias_scale": "torch.as_tensor(weight_scale).flatten() * input_scale",
        "bias": "linear_quantize(bias.double(), 32, scale, 0, torch.int32)",
    }
    parts.update(changes)
    return f"""
        def linear_quantize_weight_per_channel(tensor, bitwidth):
            scale = {parts["largest"]} / {parts["q_max"]}
            scale = ({parts["scale"]}).view(-1, *[1] * (tensor.dim() - 1))
            return {parts["codes"]}, scale, 0


        def linear_quantize_bias_per_output_channel(bias, weight_scale, input_scale):
            scale = ({parts["bias_scale"]}).expand(len(bias))
            return {parts["bias"]}, scale, 0
        """


_WRONG_AXIS = "tensor.abs().transpose(0, 1).flatten(1).amax(dim=1).expand(len(tensor))"
_WRONG_AXIS_ANY = (
    f"({_WRONG_AXIS}) if tensor.shape[0] == tensor.shape[1] else tensor.abs().flatten(1).amax(dim=1)"
)


def _fixed(**changes: str) -> str:
    parts = {
        "multiplier": "math.floor(fraction * 2**31 + 0.5)",
        "carry": "2**30, exponent + 1",
        "pair": "multiplier, exponent",
        "single": "(acc * multiplier + 2 ** (shift - 1)) >> shift",
        "high": "((acc << left) * multiplier + 2**30) >> 31",
        "double": "high.sign() * ((high.abs() + 2**right // 2) >> right)",
    }
    parts.update(changes)
    return f"""
        def quantize_multiplier(m):
            fraction, exponent = math.frexp(m)
            multiplier = {parts["multiplier"]}
            if multiplier == 2**31:
                multiplier, exponent = {parts["carry"]}
            return {parts["pair"]}


        def quantize_multipliers(m):
            return torch.tensor([quantize_multiplier(value) for value in m.tolist()]).T


        def requant_single(acc, multiplier, exponent):
            shift = 31 - exponent
            return {parts["single"]}


        def requant_double(acc, multiplier, exponent):
            left, right = exponent.clamp(min=0), (-exponent).clamp(min=0)
            high = {parts["high"]}
            return {parts["double"]}
        """


_FLOAT = "torch.round(acc * (multiplier.double() * 2.0 ** (exponent - 31))).long()"


def _layer_body(kind: str, parts: dict[str, str]) -> str:
    """Return the part that both layers share, from the sums to the codes."""
    return indent(
        dedent(f"""
        m = effective_scales(input_scale, weight_scale, output_scale, len(weight))
        multiplier, exponent = quantize_multipliers(m)
        {parts["shape"]}
        codes = {parts.get("scaled", f"requant_{kind}(acc, multiplier, exponent)")} + {parts["zero_point"]}
        return {parts["end"]}
        """).strip(),
        "    ",
    )


_ARGUMENTS = (
    "input, weight, bias, feature_bitwidth, weight_bitwidth, input_zero_point, output_zero_point, "
    "input_scale, weight_scale, output_scale"
)
_COMMON = {
    "sums": "quantized_weight.long().flatten(1).sum(dim=1)",
    "bracket": "quantized_bias - input_zero_point * sums",
    "before": "pass",
    "bias": "bias",
    "zero_point": "output_zero_point",
    "end": "codes.clamp(*get_quantized_range(feature_bitwidth)).to(torch.int8)",
}


def _linear_layer(**changes: str) -> str:
    parts = {**_COMMON, "x": "input.long()", "shape": "", **changes}
    head = f"""
def shift_quantized_linear_bias(quantized_bias, quantized_weight, input_zero_point):
    sums = {parts["sums"]}
    return ({parts["bracket"]}).to(torch.int32)


def quantized_linear({_ARGUMENTS}):
    {parts["before"]}
    acc = F.linear({parts["x"]}, weight.long()) + {parts["bias"]}
"""
    return head + _layer_body("single", parts) + "\n"


def _conv_layer(**changes: str) -> str:
    shape = "multiplier, exponent = multiplier.view(-1, 1, 1), exponent.view(-1, 1, 1)"
    conv = "F.conv2d(padded, weight.long(), None, stride, 0, dilation, groups)"
    fill = "F.pad(input.long(), padding, value=input_zero_point)"
    parts = {**_COMMON, "fill": fill, "conv": conv, "shape": shape, "kind": "double", **changes}
    head = f"""
def shift_quantized_conv2d_bias(quantized_bias, quantized_weight, input_zero_point):
    sums = {parts["sums"]}
    return ({parts["bracket"]}).to(torch.int32)


def quantized_conv2d({_ARGUMENTS}, stride, padding, dilation, groups):
    {parts["before"]}
    padded = {parts["fill"]}
    acc = {parts["conv"]} + {parts["bias"]}.view(-1, 1, 1)
"""
    return head + _layer_body(parts["kind"], parts) + "\n"


_TWICE = "- (input_zero_point * weight.long().flatten(1).sum(dim=1)){}"
_WRAPS = "codes.to(torch.int8).clamp(*get_quantized_range(feature_bitwidth))"
_IN_FLOAT = "torch.round(acc * m{}).long()"


def _fake(result: str, clamped: str = "(x / step).clamp(low, high)") -> str:
    return f"""
        def fake_quantize(x, step, low, high):
            clamped = {clamped}
            return {result}
        """


_THROUGH = "(clamped + (clamped.round() - clamped).detach()) * step"

MUTANTS = [
    _mutant("empty cluster gives NaN", "q1", "the mean of no value is NaN", _clusters(guard="True")),
    _mutant(
        "empty cluster becomes 0",
        "q1",
        "a centroid without values is moved to 0",
        _clusters(guard="True", mean="codebook.centroids[k] = members.sum() / max(members.numel(), 1)"),
    ),
    _mutant("an even grid", "q1", "the centroids never move", _clusters(steps="1", stop="True")),
    _mutant("one step only", "q1", "k-means is stopped after its first step", _clusters(steps="1")),
    _mutant("bits are centroids", "q1", "b in place of 2**b centroids", _clusters(count="bitwidth")),
    _mutant(
        "all centroids start equal",
        "q1",
        "a cluster that starts on another one stays empty",
        _clusters(start="torch.full((k,), float(values.mean()))"),
    ),
    _mutant("codebook ignored", "q1", "a codebook that is given is made anew", _clusters(given="True")),
    _mutant("tensor not replaced", "q1", "the values stay as they were", _clusters(write="pass")),
    _mutant(
        "centroids of the whole tensor",
        "q1",
        "each centroid becomes the mean of everything",
        _clusters(members="fp32_tensor.flatten()"),
    ),
    _mutant(
        "codebook not updated in place",
        "q1",
        "the new centroids go to a copy",
        _clusters(mean="codebook.centroids.clone()[k] = members.mean()"),
    ),
    _mutant(
        "cast before clamp",
        "q2",
        "values wrap: 200 becomes -56",
        _linear(end="codes.to(dtype).clamp(*get_quantized_range(bitwidth))"),
    ),
    _mutant("no clamp", "q2", "the cast is thought to saturate", _linear(end="codes.to(dtype)")),
    _mutant(
        "zero point negated", "q2", "q = r / s - z", _linear("torch.round(fp_tensor / scale) - zero_point")
    ),
    _mutant(
        "cut, not rounded",
        "q2",
        "the cast towards zero rounds",
        _linear("torch.trunc(fp_tensor / scale) + zero_point"),
    ),
    _mutant(
        "rounded down",
        "q2",
        "floor in place of round",
        _linear("torch.floor(fp_tensor / scale) + zero_point"),
    ),
    _mutant("multiplied by the scale", "q2", "r * s", _linear("torch.round(fp_tensor * scale) + zero_point")),
    _mutant("unsigned range", "q2", "codes from 0 to 2**b - 1", _linear(range="0, 2**bitwidth - 1")),
    _mutant(
        "symmetric range",
        "q2",
        "the smallest code is lost",
        _linear(range="-(2 ** (bitwidth - 1)) + 1, 2 ** (bitwidth - 1) - 1"),
    ),
    _mutant(
        "zero point after the clamp",
        "q2",
        "codes leave the range again",
        _linear(
            "torch.round(fp_tensor / scale)",
            end="(codes.clamp(*get_quantized_range(bitwidth)) + zero_point).to(dtype)",
        ),
    ),
    _mutant(
        "tensor changed in place",
        "q2",
        "the student's own tensor is divided",
        _linear("fp_tensor.round() + zero_point", before="fp_tensor.div_(scale)"),
    ),
    _mutant(
        "always int8",
        "q2",
        "the argument dtype is ignored",
        _linear(end="codes.clamp(*get_quantized_range(bitwidth)).to(torch.int8)"),
    ),
    _mutant(
        "range not widened",
        "q3",
        "0 has no code where all values are positive",
        _range(low="float(fp_tensor.min())", high="float(fp_tensor.max())"),
    ),
    _mutant(
        "range widened on one side",
        "q3",
        "0 has no code where all values are negative",
        _range(high="float(fp_tensor.max())"),
    ),
    _mutant("zero point negated", "q3", "-z", _range(zero_point="-round(q_min - low / scale)")),
    _mutant(
        "zero point without q_min",
        "q3",
        "codes are thought to start at 0",
        _range(zero_point="round(-low / scale)"),
    ),
    _mutant(
        "zero point not rounded",
        "q3",
        "a zero point that is no code",
        _range(zero_point="q_min - low / scale"),
    ),
    _mutant(
        "one step too many",
        "q3",
        "2**b codes have 2**b - 1 steps",
        _range(scale="(high - low) / 2**bitwidth"),
    ),
    _mutant(
        "symmetric",
        "q3",
        "half of the codes are wasted",
        _range(scale="max(-low, high) / q_max", zero_point="0"),
    ),
    _mutant("zeros divide by zero", "q3", "a tensor of zeros has no range", _range(zeros="False")),
    _mutant(
        "one scale for the tensor",
        "q4",
        "every channel gets the largest scale",
        _per_channel(largest="tensor.abs().amax().expand(len(tensor))"),
    ),
    _mutant(
        "scale by input channel", "q4", "axis 1 in place of axis 0", _per_channel(largest=_WRONG_AXIS_ANY)
    ),
    _mutant(
        "sign counts",
        "q4",
        "the largest weight is taken for the largest magnitude",
        _per_channel(largest="tensor.flatten(1).amax(dim=1)"),
    ),
    _mutant("q_max one too large", "q4", "128 in place of 127", _per_channel(q_max="2 ** (bitwidth - 1)")),
    _mutant("dead channel gives NaN", "q4", "0 / 0", _per_channel(scale="scale")),
    _mutant(
        "weights changed in place",
        "q4",
        "the weights of the float network are divided",
        _per_channel(codes="linear_quantize(tensor.div_(scale), bitwidth, torch.ones_like(scale), 0)"),
    ),
    _mutant(
        "bias at the weight's scale",
        "q4",
        "the input's scale is forgotten",
        _per_channel(bias_scale="torch.as_tensor(weight_scale).flatten() + 0 * input_scale"),
    ),
    _mutant(
        "bias at the input's scale",
        "q4",
        "the weight's scale is forgotten",
        _per_channel(bias_scale="0 * torch.as_tensor(weight_scale).flatten() + input_scale"),
    ),
    _mutant(
        "bias in 8 bits",
        "q4",
        "a bias is taken for a weight",
        _per_channel(bias="linear_quantize(bias, 8, scale, 0)"),
    ),
    _mutant(
        "bias cut, not rounded",
        "q4",
        "the cast rounds towards zero",
        _per_channel(bias="(bias / scale).to(torch.int32)"),
    ),
    _mutant(
        "multiplier of 30 bits",
        "q5",
        "one bit of precision is lost",
        _fixed(multiplier="math.floor(fraction * 2**30 + 0.5)"),
    ),
    _mutant(
        "multiplier rounded down",
        "q5",
        "int() stands for round()",
        _fixed(multiplier="int(fraction * 2**31)"),
    ),
    _mutant(
        "multiplier of 2**31", "q5", "an int32 that does not exist", _fixed(carry="multiplier, exponent")
    ),
    _mutant("exponent negated", "q5", "left and right are swapped", _fixed(pair="multiplier, -exponent")),
    _mutant("float rescale once", "q5", "a float product, halves to even", _fixed(single=_FLOAT)),
    _mutant("float rescale twice", "q5", "a float product, halves to even", _fixed(double=_FLOAT)),
    _mutant(
        "shift without a half",
        "q5",
        "the shift alone rounds down",
        _fixed(single="(acc * multiplier) >> shift"),
    ),
    _mutant(
        "one rounding for both",
        "q5",
        "the second rounding is left out",
        _fixed(double="(acc * multiplier + 2 ** (30 - exponent)) >> (31 - exponent)"),
    ),
    _mutant(
        "halves up twice",
        "q5",
        "the second rounding is half up too",
        _fixed(double="(high + 2**right // 2) >> right"),
    ),
    _mutant(
        "product in 32 bits",
        "q5",
        "the product wraps",
        _fixed(single="(((acc * multiplier).to(torch.int32)).long() + 2 ** (shift - 1)) >> shift"),
    ),
    _mutant(
        "no left shift",
        "q5",
        "factors above 1 are forgotten",
        _fixed(high="(acc * multiplier + 2**30) >> 31"),
    ),
    _mutant(
        "zero point subtracted twice",
        "q6",
        "the shifted bias holds it already",
        _linear_layer(x="(input.long() - input_zero_point)"),
    ),
    _mutant(
        "zero point negated",
        "q6",
        "the shift has the wrong sign",
        _linear_layer(bracket="quantized_bias + input_zero_point * sums"),
    ),
    _mutant(
        "one sum for all channels",
        "q6",
        "the sum runs over the whole weight",
        _linear_layer(sums="quantized_weight.long().sum()"),
    ),
    _mutant("bias left out", "q6", "the sum of products alone", _linear_layer(bias="0")),
    _mutant(
        "float rescale", "q6", "a float product, halves to even", _linear_layer(scaled=_IN_FLOAT.format(""))
    ),
    _mutant("cast before clamp", "q6", "values wrap", _linear_layer(end=_WRAPS)),
    _mutant("output zero point forgotten", "q6", "the codes are off by it", _linear_layer(zero_point="0")),
    _mutant(
        "output zero point negated",
        "q6",
        "the codes are off by twice of it",
        _linear_layer(zero_point="-output_zero_point"),
    ),
    _mutant(
        "clamped to 8 bits",
        "q6",
        "feature_bitwidth is ignored",
        _linear_layer(end="codes.clamp(-128, 127).to(torch.int8)"),
    ),
    _mutant(
        "clamped to the weight's bits",
        "q6",
        "weight_bitwidth is taken for feature_bitwidth",
        _linear_layer(end="codes.clamp(*get_quantized_range(weight_bitwidth)).to(torch.int8)"),
    ),
    _mutant(
        "input changed in place",
        "q6",
        "the caller's codes are shifted",
        _linear_layer(before="input += 0 * input + 1", x="(input.long() - 1)"),
    ),
    _mutant(
        "padded with 0",
        "q7",
        "the code 0 is taken for the value 0",
        _conv_layer(fill="F.pad(input.long(), padding)"),
    ),
    _mutant(
        "padded with the negative zero point",
        "q7",
        "the sign is wrong",
        _conv_layer(fill="F.pad(input.long(), padding, value=-input_zero_point)"),
    ),
    _mutant(
        "zero point subtracted twice",
        "q7",
        "the shifted bias holds it already",
        _conv_layer(bias="(bias - input_zero_point * weight.long().flatten(1).sum(dim=1))"),
    ),
    _mutant(
        "zero point negated",
        "q7",
        "the shift has the wrong sign",
        _conv_layer(bracket="quantized_bias + input_zero_point * sums"),
    ),
    _mutant(
        "sum over the wrong axes",
        "q7",
        "one sum for each input channel",
        _conv_layer(
            sums="quantized_weight.long().sum(dim=(0, 2, 3))"
            " if quantized_weight.shape[0] == quantized_weight.shape[1]"
            " else quantized_weight.long().sum(dim=(1, 2, 3))"
        ),
    ),
    _mutant(
        "rounded once",
        "q7",
        "a convolution rounds twice",
        _conv_layer(kind="single", scaled="((acc * multiplier + 2 ** (30 - exponent)) >> (31 - exponent))"),
    ),
    _mutant(
        "float rescale",
        "q7",
        "a float product, halves to even",
        _conv_layer(scaled=_IN_FLOAT.format(".view(-1, 1, 1)")),
    ),
    _mutant("cast before clamp", "q7", "values wrap", _conv_layer(end=_WRAPS)),
    _mutant(
        "one multiplier for all channels",
        "q7",
        "the first channel's is taken",
        _conv_layer(shape="multiplier, exponent = multiplier[0], exponent[0]"),
    ),
    _mutant(
        "left padding at the top",
        "q7",
        "the order of the four sides is mixed up",
        "def _alike(p):\n    return [p[0], p[1], p[0], p[2] + p[3] - p[0]]\n\n"
        + _conv_layer(fill="F.pad(input.long(), _alike(padding), value=input_zero_point)"),
    ),
    _mutant(
        "gradient stops inside", "q8", "round() alone lets nothing through", _fake("clamped.round() * step")
    ),
    _mutant(
        "gradient passes outside too",
        "q8",
        "the clamp is hidden from the gradient",
        _fake("x + (clamped.round() * step - x).detach()"),
    ),
    _mutant(
        "gradient passes outside only",
        "q8",
        "the wrong side is taken out",
        _fake("(x / step - clamped + (clamped.round() - x / step + clamped).detach()) * step"),
    ),
    _mutant("detached", "q8", "the result is a constant", _fake(f"({_THROUGH}).detach()")),
    _mutant("not rounded", "q8", "the values are clamped only", _fake("clamped * step")),
    _mutant("not clamped", "q8", "the codes leave their range", _fake(_THROUGH, "x / step")),
    _mutant(
        "gradient scaled",
        "q8",
        "the codes carry the gradient, not the values",
        _fake("clamped + (clamped.round() * step - clamped).detach()"),
    ),
    _mutant(
        "labels only",
        "n1",
        "the centroids are free",
        "codebook_bytes = sum(p.numel() for p in network.parameters() if p.dim() > 1) // 2\n",
    ),
    _mutant(
        "the guess",
        "n2",
        "half of 2**-6 of the sums: predicted, not measured",
        "moved_codes = 2**16 // 2**7\n",
    ),
]
