"""Lab 1, wrong answers that the hidden judges must catch, each at the price of its own question."""

from __future__ import annotations

from textwrap import dedent

from tinyml_edu.checks.lab01 import LAB
from tinyml_edu.checks.protocol import Mutant


def _mutant(name: str, question: str, why: str, source: str) -> Mutant:
    """Return a mutant that loses its whole question: a score is that of the worst case."""
    return Mutant(name, question, dedent(source).lstrip(), {question: LAB[question].points}, why)


def _prune(
    key: str = "tensor.abs()", removed: str = "round(sparsity * tensor.numel())", more: str = ""
) -> str:
    return f"""
        def fine_grained_prune(tensor, sparsity):
            order = torch.argsort(({key}).flatten(), stable=True)
            mask = torch.ones(tensor.numel(), dtype=torch.bool)
            mask[order[:{removed}]] = False
            mask = mask.reshape(tensor.shape)
            {more}
            return mask
        """


def _threshold(comparison: str) -> str:
    return f"""
        def fine_grained_prune(tensor, sparsity):
            removed = round(sparsity * tensor.numel())
            if removed == 0:
                return torch.ones_like(tensor, dtype=torch.bool)
            threshold = tensor.abs().flatten().kthvalue(removed).values
            return tensor.abs() {comparison} threshold
        """


def _pruner(masks: str = "", apply: str = "", names: str = "if name in sparsity_dict") -> str:
    masks = masks or "fine_grained_prune(p.detach(), sparsity_dict[name])"
    apply = apply or "parameter *= self.masks[name]"
    return f"""
        class FineGrainedPruner:
            def __init__(self, model, sparsity_dict):
                self.sparsity_dict = sparsity_dict
                everything = torch.cat([p.detach().flatten() for _, p in model.named_parameters()])
                self.masks = {{
                    name: {masks}
                    for name, p in model.named_parameters()
                    {names}
                }}
                self.first = True
                self.apply(model)

            @torch.no_grad()
            def apply(self, model):
                for name, parameter in model.named_parameters():
                    if name in self.masks:
                        {apply}
                self.first = False
        """


_GLOBAL = "p.detach().abs() > everything.abs().quantile(sparsity_dict[name])"
_ANEW = "parameter *= fine_grained_prune(parameter, self.sparsity_dict[name])"
_MEAN = "fine_grained_prune(p.detach(), sum(sparsity_dict.values()) / len(sparsity_dict))"
_ALL = "fine_grained_prune(p.detach(), list(sparsity_dict.values())[0])"


def _scan(**changes: str) -> str:
    parts = {
        "which": "parameter.dim() > 1",
        "from": "original",
        "between": "pass",
        "after": "parameter.copy_(original)",
    }
    parts.update(changes)
    return f"""
        @torch.no_grad()
        def sensitivity_scan(model, evaluate, sparsities):
            curves = {{}}
            for name, parameter in model.named_parameters():
                if {parts["which"]}:
                    original = parameter.clone()
                    curves[name] = []
                    for sparsity in sparsities:
                        parameter.copy_({parts["from"]} * fine_grained_prune({parts["from"]}, sparsity))
                        curves[name].append(evaluate(model))
                        {parts["between"]}
                    {parts["after"]}
            return curves
        """


def _bytes(entries: str, **changes: str) -> str:
    parts = {
        "bitmask": "(mask.numel() + 7) // 8 + (int(mask.sum()) * value_bits + 7) // 8",
        "width": "value_bits + index_bits",
        "round": "+ 7",
        "positions": "mask.flatten().nonzero().flatten()",
    }
    parts.update(changes)
    return f"""
        def bitmask_bytes(mask, value_bits=8):
            return {parts["bitmask"]}


        def relative_index_bytes(mask, value_bits=8, index_bits=4):
            positions = {parts["positions"]}
            gaps = torch.diff(positions, prepend=torch.tensor([-1])) - 1
            entries = {entries}
            return (entries * ({parts["width"]}) {parts["round"]}) // 8
        """


_PADDED = "len(positions) + int((gaps // 2**index_bits).sum())"


_NORM = '("weight", "bias", "running_mean", "running_var")'


def _channels(count: str = "max(1, round(channels * (1 - prune_ratio)))", **changes: str) -> str:
    parts = {
        "model": "copy.deepcopy(model)",
        "norms": f"take(block.bn, {_NORM}, index)",
        "reader": 'take(reader.conv, ("weight",), index, dim=1)',
    }
    parts.update(changes)
    return f"""
        def get_num_channels_to_keep(channels, prune_ratio):
            return {count}


        def channel_prune(model, prune_ratio):
            model = {parts["model"]}
            blocks = conv_blocks(model)
            ratios = prune_ratio if isinstance(prune_ratio, list) else [prune_ratio] * (len(blocks) - 1)
            for ratio, block, reader in zip(ratios, blocks, blocks[1:]):
                index = torch.arange(get_num_channels_to_keep(block.conv.out_channels, ratio))
                gone = torch.arange(len(index), block.conv.out_channels)
                take(block.conv, ("weight",), index)
                {parts["norms"]}
                {parts["reader"]}
            return model
        """


def _importance(expression: str) -> str:
    return f"def get_input_channel_importance(weight):\n    return {expression}\n"


def _sorting(**changes: str) -> str:
    parts = {
        "model": "copy.deepcopy(model)",
        "order": "torch.argsort(get_input_channel_importance(reader.conv.weight), descending=True)",
        "norms": f"take(block.bn, {_NORM}, order)",
        "reader": 'take(reader.conv, ("weight",), order, dim=1)',
    }
    parts.update(changes)
    return f"""
        def apply_channel_sorting(model):
            model = {parts["model"]}
            blocks = conv_blocks(model)
            for block, reader in zip(blocks, blocks[1:]):
                order = {parts["order"]}
                take(block.conv, ("weight",), order)
                {parts["norms"]}
                {parts["reader"]}
            return model
        """


MUTANTS = [
    _mutant(
        "random mask", "q1", "the count is right, the weights are any", _prune("torch.rand(tensor.shape)")
    ),
    _mutant("strict threshold", "q1", "weights equal to the threshold all go", _threshold(">")),
    _mutant("non-strict threshold", "q1", "weights equal to the threshold all stay", _threshold(">=")),
    _mutant("sign counts", "q1", "the most negative weights go first", _prune("tensor")),
    _mutant("largest go", "q1", "the order is upside down", _prune("-tensor.abs()")),
    _mutant(
        "rounded down", "q1", "int() stands for round()", _prune(removed="int(sparsity * tensor.numel())")
    ),
    _mutant("mask upside down", "q1", "True is taken for removed", _prune(more="mask = ~mask")),
    _mutant("tensor changed", "q1", "the weights are zeroed on the way", _prune(more="tensor.mul_(mask)")),
    _mutant("one threshold for all", "q2", "the quantile is taken over the whole model", _pruner(_GLOBAL)),
    _mutant("mean sparsity", "q2", "every layer gets the mean of the table", _pruner(_MEAN)),
    _mutant(
        "everything pruned", "q2", "tensors that are not in the table lose weights", _pruner(_ALL, names="")
    ),
    _mutant(
        "mask lost at the step",
        "q2",
        "zeros are thought to stay zeros while the optimizer runs",
        _pruner(apply="parameter *= self.masks[name] if self.first else 1"),
    ),
    _mutant("mask made anew", "q2", "each step chooses its weights again", _pruner(apply=_ANEW)),
    _mutant("layers pile up", "q3", "a scanned layer stays pruned", _scan(after="pass")),
    _mutant(
        "sparsities pile up", "q3", "each step starts from the pruned layer", _scan(**{"from": "parameter"})
    ),
    _mutant("vectors scanned too", "q3", "biases and batch norms are pruned", _scan(which="True")),
    _mutant(
        "linear layer left out", "q3", "only convolutions are scanned", _scan(which="parameter.dim() > 2")
    ),
    _mutant(
        "evaluated too late",
        "q3",
        "the weights are back before the accuracy is measured",
        _scan().replace("curves[name].append", "parameter.copy_(original); curves[name].append"),
    ),
    _mutant("no padding", "q4", "an index is thought to hold any gap", _bytes("len(positions)")),
    _mutant(
        "padding bridges one less",
        "q4",
        "the padding zero's own position is forgotten",
        _bytes(_PADDED.replace("2**index_bits", "(2**index_bits - 1)")),
    ),
    _mutant("indices are free", "q4", "only values are stored", _bytes(_PADDED, width="value_bits")),
    _mutant("last byte dropped", "q4", "bytes are rounded down", _bytes(_PADDED, round="")),
    _mutant(
        "end is padded",
        "q4",
        "zeros after the last value are stored",
        _bytes(
            _PADDED + " - 1",
            positions="torch.cat([mask.flatten(), torch.tensor([True])]).nonzero().flatten()",
        ),
    ),
    _mutant(
        "bitmask of bytes",
        "q4",
        "a bool is thought to take a bit in memory",
        _bytes(_PADDED, bitmask="mask.numel() + (int(mask.sum()) * value_bits + 7) // 8"),
    ),
    _mutant(
        "channels to remove", "q5", "keep and remove are swapped", _channels("round(channels * prune_ratio)")
    ),
    _mutant(
        "channels rounded down",
        "q5",
        "int() stands for round()",
        _channels("max(1, int(channels * (1 - prune_ratio)))"),
    ),
    _mutant("no channel left", "q5", "a layer may vanish", _channels("round(channels * (1 - prune_ratio))")),
    _mutant(
        "next convolution zeroed",
        "q5",
        "zeros are taken for a smaller layer",
        _channels(reader="reader.conv.weight.data[:, gone] = 0"),
    ),
    _mutant(
        "next convolution cut on axis 0",
        "q5",
        "outputs of the reader go in place of its inputs",
        _channels(reader='take(reader.conv, ("weight",), index[index < len(reader.conv.weight)])'),
    ),
    _mutant("batch norm left uncut", "q5", "the batch norm is forgotten", _channels(norms="pass")),
    _mutant(
        "running statistics left uncut",
        "q5",
        "buffers are not parameters, and are forgotten",
        _channels(norms='take(block.bn, ("weight", "bias"), index)'),
    ),
    _mutant("original pruned", "q5", "the model that came in is changed", _channels(model="model")),
    _mutant(
        "importance by output channel",
        "q6",
        "axis 0 is kept in place of axis 1",
        _importance("weight.pow(2).sum((1, 2, 3)).sqrt()"),
    ),
    _mutant("importance without magnitude", "q6", "signs cancel", _importance("weight.sum((0, 2, 3))")),
    _mutant("importance by L1", "q6", "the other norm", _importance("weight.abs().sum((0, 2, 3))")),
    _mutant("importance squared", "q6", "the root is forgotten", _importance("weight.pow(2).sum((0, 2, 3))")),
    _mutant(
        "identity sorting",
        "q7",
        "the model is copied and nothing moves",
        _sorting(order="torch.arange(block.conv.out_channels)"),
    ),
    _mutant(
        "ascending",
        "q7",
        "the least important channels come first",
        _sorting(order="torch.argsort(get_input_channel_importance(reader.conv.weight))"),
    ),
    _mutant("batch norm not sorted", "q7", "channels get each other's statistics", _sorting(norms="pass")),
    _mutant(
        "running statistics not sorted",
        "q7",
        "only the parameters of the batch norm move",
        _sorting(norms='take(block.bn, ("weight", "bias"), order)'),
    ),
    _mutant(
        "reader not sorted", "q7", "the next convolution reads the wrong channels", _sorting(reader="pass")
    ),
    _mutant(
        "sorted by own outputs",
        "q7",
        "the filter's own norm decides, not who reads it",
        _sorting(order="torch.argsort(block.conv.weight.pow(2).sum((1, 2, 3)), descending=True)"),
    ),
    _mutant("original sorted", "q7", "the model that came in is changed", _sorting(model="model")),
    _mutant(
        "kept values only",
        "n1",
        "one byte for each kept weight, no indices",
        "mask_at_90 = fine_grained_prune(dense.features[7].conv.weight.detach(), 0.9)\n"
        "relative_index_bytes_at_90 = int(mask_at_90.sum())\n",
    ),
    _mutant(
        "half the MACs",
        "n2",
        "half the channels are thought to halve the MACs",
        "macs_half_channels = profile.model_macs(dense, image) // 2\n",
    ),
]
