"""Clusters are those of Lloyd's algorithm, none is NaN, and a centroid trains as a shared parameter does."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from tinyml_edu import train
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.quantization import Codebook, KMeansQuantizer, k_means_quantize, update_codebook
from tinyml_edu.quantization.kmeans import summed_by_centroid
from tinyml_edu.quantization.lloyd import INITS, _borders, _first, cluster, nearest
from tinyml_edu.train import TrainConfig

EPS32 = float(np.finfo(np.float32).eps)

values_lists = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60)


def error(values, centroids) -> float:
    return float(np.square(np.asarray(values)[:, None] - centroids).min(axis=1).sum())


def best_error(values, k) -> float:
    """The optimum: in one dimension clusters are intervals, so dynamic programming tries all of them."""
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)

    def cost(i, j):
        return float(np.square(ordered[i:j] - ordered[i:j].mean()).sum())

    best = [0.0] + [np.inf] * n
    for _ in range(min(k, n)):
        best = [0.0] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, n + 1)]
    return best[n]


def naive_k_means(values, centroids, steps=20):
    """Lloyd as it is first written: the mean of an empty cluster is NaN and stays so."""
    for _ in range(steps):
        labels = np.abs(values[:, None] - centroids).argmin(axis=1)
        with np.errstate(invalid="ignore"):
            sums = np.bincount(labels, weights=values, minlength=len(centroids))
            centroids = sums / np.bincount(labels, minlength=len(centroids))
    return centroids


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("k", [2, 4, 16])
def test_the_clusters_are_those_of_scikit_learn_from_the_same_start(init, k, rng):
    values = rng.normal(size=3000)
    start = _first(np.sort(values), k, init, 0)
    theirs = KMeans(k, init=start[:, None], n_init=1, algorithm="lloyd", tol=0, max_iter=20_000)
    theirs.fit(values[:, None])
    ours = cluster(values, k, init=init)
    centres = np.sort(theirs.cluster_centers_[:, 0])
    assert np.array_equal(nearest(values, ours), nearest(values, centres))
    # Means of the same values, summed in two orders: n * eps * max each.
    assert np.abs(ours - centres).max() <= 2 * 3000 * 2**-52 * np.abs(values).max()


@settings(deadline=None)
@given(values_lists, st.integers(1, 9), st.sampled_from(INITS))
def test_every_centroid_is_the_mean_of_the_values_nearest_to_it(values, k, init):
    x = np.array(values)
    centroids = cluster(x, k, init=init)
    labels = nearest(x, centroids)
    assert np.isfinite(centroids).all()
    assert (np.diff(centroids) >= 0).all()
    distance = np.abs(x[:, None] - centroids)
    assert (distance[np.arange(len(x)), labels] == distance.min(axis=1)).all()
    bound = 4 * len(x) * 2**-52 * 100  # prefix sums of values up to 100
    for i in np.unique(labels):
        assert abs(centroids[i] - x[labels == i].mean()) <= bound, (i, centroids)


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from(INITS))
def test_the_error_is_never_below_the_optimum_and_zero_where_that_is_zero(values, k, init):
    x = np.array(values, np.float64)
    optimum, found = best_error(x, k), error(x, cluster(x, k, init=init))
    assert found >= optimum * (1 - 1e-12) - 1e-12
    if len(set(values)) <= k:
        assert found == 0


@settings(deadline=None)
@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=30),
    st.lists(st.integers(-9, 9), min_size=1, max_size=6),
)
def test_a_value_halfway_belongs_to_the_lower_centroid_in_the_search_as_in_the_labels(values, centroids):
    x, c = np.sort(np.array(values, np.float64)), np.unique(np.array(centroids, np.float64))
    labels = nearest(x, c)
    assert labels.tolist() == np.abs(x[:, None] - c).argmin(axis=1).tolist()  # argmin takes the first
    assert np.bincount(labels, minlength=len(c)).tolist() == np.diff(_borders(x, c)).tolist()


@pytest.mark.parametrize("init", INITS)
def test_separate_clusters_are_found_optimally(init):
    x = np.concatenate([c + np.linspace(-1, 1, 7) for c in (-40.0, -10.0, 5.0, 60.0)])
    assert error(x, cluster(x, 4, init=init)) == pytest.approx(best_error(x, 4), rel=1e-12)


def test_the_optimum_can_tell_a_worse_clustering():
    x = np.array([0.0, 1.0, 10.0, 11.0])
    assert best_error(x, 2) == 1.0
    assert error(x, np.array([0.0, 22 / 3])) > 1.0


def test_a_centroid_that_loses_its_values_never_becomes_nan():
    x = np.array([0.0, 0.1, 0.2, 9.8, 9.9, 10.0])
    start = np.linspace(0, 10, 5)
    assert np.isnan(naive_k_means(x, start)).any(), "the control found no empty cluster"
    found = cluster(x, 5)
    assert np.isfinite(found).all()
    assert error(x, found) == pytest.approx(best_error(x, 5), abs=1e-12)


@pytest.mark.parametrize("values", [[3.0], [2.0] * 9, [-1.0, 4.0, 4.0]])
@pytest.mark.parametrize("init", INITS)
def test_few_distinct_values_are_kept_exactly(values, init):
    tensor = torch.tensor(values)
    book = k_means_quantize(tensor, 4, init=init)
    assert tensor.tolist() == values
    assert torch.isfinite(book.centroids).all()
    assert book.centroids.shape == (16,)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tensor_is_replaced_in_place_by_its_nearest_centroids(bits):
    torch.manual_seed(0)
    original = torch.randn(7, 11, 3)
    tensor = original.clone()
    book = k_means_quantize(tensor, bitwidth=bits)
    assert isinstance(book, Codebook)
    assert book.centroids.shape == (2**bits,)
    assert torch.equal(tensor, book.centroids[book.labels].view(7, 11, 3))
    distance = (original.reshape(-1, 1).double() - book.centroids.double()).abs()
    assert torch.equal(distance.gather(1, book.labels[:, None])[:, 0], distance.min(1).values)


def test_a_given_codebook_is_applied_as_it_is():
    book = Codebook(torch.tensor([-1.0, 5.0]), torch.tensor([1, 0, 1]))
    tensor = torch.tensor([0.1, 0.2, 0.3])
    assert k_means_quantize(tensor, codebook=book) is book
    assert tensor.tolist() == [5.0, -1.0, 5.0]


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (torch.ones(3), {"bitwidth": 0}, "1 to 8"),
        (torch.ones(3), {"bitwidth": 9}, "1 to 8"),
        (torch.empty(0), {}, "at least one value"),
        (torch.tensor([1.0, float("nan")]), {}, "finite"),
        (torch.ones(3), {"codebook": Codebook(torch.ones(1), torch.zeros(4).long())}, "does not fit"),
        (torch.ones(3), {"init": "lineal"}, "linear"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tensor, options, message):
    with pytest.raises(UsageError, match=message):
        k_means_quantize(tensor, **options)


def test_an_updated_centroid_is_the_mean_of_its_values_and_an_empty_one_stays():
    labels = torch.tensor([0, 2, 2, 0, 2])
    book = Codebook(torch.tensor([9.0, 7.0, 9.0]), labels)
    tensor = torch.tensor([[1.0, 2.0, 3.0, 4.0, 7.0]])
    update_codebook(tensor, book)
    assert book.centroids.tolist() == [2.5, 7.0, 4.0]
    assert tensor[0][labels == 1].mean().isnan(), "the plain mean is the control: it gives NaN"


def test_the_gradient_of_a_centroid_is_the_one_of_autograd(rng):
    labels = torch.from_numpy(rng.integers(0, 5, 200))
    centroids = torch.from_numpy(rng.normal(size=5)).requires_grad_()  # float64
    upstream = torch.from_numpy(rng.normal(size=(20, 10)))
    (centroids[labels].view(20, 10) * upstream).sum().backward()
    found = summed_by_centroid(upstream, Codebook(centroids.detach(), labels))
    bound = 200 * 2**-52 * float(upstream.abs().sum())
    assert (found - centroids.grad).abs().max() <= bound
    mean = found / torch.bincount(labels)
    assert (mean - centroids.grad).abs().max() > bound, "the mean instead of the sum must be told apart"


def noise(n):
    g = np.random.default_rng(0)
    x = g.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Dataset("noise", "train", x, g.integers(0, 3, n), ("a", "b", "c"))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def config(**changes):
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "precision": "float32"}
    return TrainConfig(**settings | changes, device="cpu", progress=False)


def pruned() -> nn.Module:
    model = small()
    with torch.no_grad():
        model[4].weight[model[4].weight.abs() < 0.05] *= -0.0  # of either sign, as masks leave them
    return model


@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum"])
def test_training_keeps_shared_weights_shared_and_zeros_zero(summed):
    model, data = pruned(), noise(64)
    zero = model[4].weight == 0
    assert 0.2 < zero.float().mean() < 0.9
    quantizer = KMeansQuantizer(model, 2)
    start = quantizer.codebook["4.weight"].centroids.clone()
    plan = config(optimizer="adamw", learning_rate=1e-3) if summed else config()
    if summed:
        with quantizer.summed_gradients(model):
            train.fit(model, data, data, plan, after_step=quantizer.after_step)
    else:
        train.fit(model, data, data, plan, after_step=quantizer.after_step)
    weight = model[4].weight.detach()
    assert torch.equal(weight == 0, zero)
    assert not weight[zero].signbit().any()
    assert len(weight[~zero].unique()) <= 4
    assert len(model[0].weight.unique()) <= 4
    book = quantizer.codebook["4.weight"]
    assert torch.equal(weight[~zero], book.centroids[book.labels])
    assert (book.centroids != start).all(), "nothing was trained"


def test_without_the_hook_training_tears_shared_weights_apart():
    model, data = pruned(), noise(64)
    KMeansQuantizer(model, 2)
    train.fit(model, data, data, config())
    assert len(model[4].weight.unique()) > 5


class Shared(nn.Module):
    """The same two-layer network with its centroids as parameters: the oracle for summed gradients."""

    def __init__(self, model, quantizer):
        super().__init__()
        self.books = quantizer.codebook
        self.kept = quantizer.kept
        self.centroids = nn.ParameterList(
            [nn.Parameter(b.centroids[:, None].clone()) for b in self.books.values()]
        )
        self.biases = nn.ParameterList([copy.deepcopy(model[0].bias), copy.deepcopy(model[2].bias)])

    def weight(self, i):
        name = list(self.books)[i]
        values = self.centroids[i][self.books[name].labels, 0]
        return torch.zeros(self.kept[name].shape).masked_scatter(self.kept[name], values)

    def forward(self, x):
        hidden = torch.relu(nn.functional.linear(x, self.weight(0), self.biases[0]))
        return nn.functional.linear(hidden, self.weight(1), self.biases[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_summed_gradients_train_the_centroids_as_parameters(optimizer):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.1] = 0
    quantizer = KMeansQuantizer(model, 2)
    oracle = Shared(model, copy.deepcopy(quantizer))
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))

    def make(parameters):
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)

    steps = 10
    first = quantizer.codebook["0.weight"].centroids.clone()
    ours, theirs = make(model.parameters()), make(oracle.parameters())
    with quantizer.summed_gradients(model):
        for _ in range(steps):
            for net, opt in ((model, ours), (oracle, theirs)):
                opt.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                opt.step()
            quantizer.after_step(model)
    moved = (quantizer.codebook["0.weight"].centroids - first).abs().max()
    for book, centroids in zip(quantizer.codebook.values(), oracle.centroids):
        # Sums of at most 48 products in two orders, in each of 10 steps: far below what the steps move.
        bound = steps * 48 * EPS32
        assert (book.centroids - centroids.detach()[:, 0]).abs().max() <= bound
    assert moved > 20 * bound, "the tolerance would hide the training itself"


def test_a_step_of_sgd_moves_a_centroid_by_the_mean_gradient():
    torch.manual_seed(0)
    model = nn.Linear(12, 5)
    quantizer = KMeansQuantizer(model, 2)
    book = quantizer.codebook["weight"]
    before = book.centroids.clone()
    model(torch.randn(4, 12)).square().sum().backward()
    expected = before - 0.1 * summed_by_centroid(model.weight.grad, book) / torch.bincount(book.labels)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    quantizer.after_step(model)
    # The weights after the step are rounded to float32, and so is the mean.
    largest = float((before.abs() + 0.1 * model.weight.grad.abs().max()).max())
    assert (book.centroids - expected).abs().max() <= 3 * EPS32 * largest
    assert (book.centroids - before).abs().max() > 100 * EPS32 * largest


def test_gradients_are_ordinary_again_after_the_block_even_after_an_error():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[1] = 0
    quantizer = KMeansQuantizer(model, 1)
    x = torch.randn(5, 4)

    def gradient():
        model.zero_grad()
        model(x).square().sum().backward()
        return model.weight.grad.clone()

    plain = gradient()

    def interrupted():
        with quantizer.summed_gradients(model):
            shared = gradient()
            assert len(shared[model.weight != 0].unique()) == 2
            assert not shared[1].any(), "a pruned weight got a gradient"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert torch.equal(gradient(), plain)
    assert plain[1].any()


def test_bits_are_chosen_by_name_and_other_weights_stay():
    model = small()
    before = model[0].weight.detach().clone()
    quantizer = KMeansQuantizer(model, {"4.weight": 3})
    assert list(quantizer.codebook) == ["4.weight"]
    assert len(model[4].weight.unique()) == 8
    assert torch.equal(model[0].weight, before)
    with pytest.raises(UnknownNameError, match=r"4\.weight"):
        KMeansQuantizer(model, {"4.wieght": 3})


def test_a_layer_that_was_pruned_away_stays_away():
    model = small()
    with torch.no_grad():
        model[4].weight.zero_()
    quantizer = KMeansQuantizer(model, 2)
    quantizer.after_step(model)
    assert not model[4].weight.any()
    assert list(quantizer.codebook) == ["0.weight"]


def test_more_bits_leave_less_error():
    torch.manual_seed(3)
    weight = torch.randn(64, 64)
    errors = []
    for bits in range(1, 9):
        shared = weight.clone()
        k_means_quantize(shared, bits)
        errors.append(float((shared - weight).square().mean()))
    assert all(b < a / 2 for a, b in pairwise(errors)), errors  # a uniform code would gain a factor of 4
