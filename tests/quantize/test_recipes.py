"""Each recipe in ``conf/recipe`` against its paper's formulas, in numpy.

W is the latent weight, W~ the effective one, g = dL/dW~, a the scale, and sign(0) = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from bitmaps.bert import Bert
from bitmaps.command.schema import Train, conf_dir
from bitmaps.quantize.convert import make_trainable
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer
from bitmaps.training.losses import LossWeights

Array = NDArray[Any]
Arrays = dict[str, Array]

CONF = conf_dir()
RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))

# eighths, in powers of two of rows and columns: sums and means are exact, so that weights may lie
# on a threshold or on
# the edge of a window, and it is beyond doubt on which side
eighths = st.tuples(st.sampled_from([2, 4]), st.sampled_from([4, 8])).flatmap(
    lambda shape: st.tuples(
        *(
            arrays(np.float32, shape, elements=st.integers(-20, 20).map(lambda n: n / 8))
            for _ in range(2)
        )
    )
)
seeds = st.integers(0, 2**32 - 1)
thoroughly = settings(max_examples=100, deadline=None)
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@cache
def config(*overrides: str) -> Train:
    composed = OmegaConf.to_object(compose("train", overrides=list(overrides)))
    assert isinstance(composed, Train)
    return composed


def quantization_of(name: str) -> Quantization:
    """As ``bitmaps.jobs.jobs`` makes it."""
    composed = config(f"recipe={name}")
    recipe = composed.recipe
    parts = (
        composed.values,
        composed.scale.name,
        recipe.scaling.name,
        recipe.center.name,
        recipe.gradient.name,
    )
    return Quantization(*parts)  # type: ignore[arg-type]


def sign(x: Array) -> Array:
    return np.where(x >= 0, 1.0, -1.0)


def row_mean(x: Array) -> Array:
    return x.mean(axis=1, keepdims=True)


def row_sum(x: Array) -> Array:
    return x.sum(axis=1, keepdims=True)


def bwn(w: Array, g: Array, learned: Arrays) -> Arrays:
    return {"effective": np.abs(w).mean() * sign(w), "weight": g}


def bibert(w: Array, g: Array, learned: Arrays) -> Arrays:
    centered = w - row_mean(w)
    m = g * (np.abs(centered) <= 1)
    return {"effective": row_mean(np.abs(w)) * sign(centered), "weight": m - row_mean(m)}


def bit(w: Array, g: Array, learned: Arrays) -> Arrays:
    return {"effective": np.abs(w).mean() * sign(w - w.mean()), "weight": g}


def paretoq(w: Array, g: Array, learned: Arrays) -> Arrays:
    a = np.maximum(learned["scale"], 1e-5)
    return {
        "effective": a * sign(w),
        "weight": g * (np.abs(w) <= a),
        "scale": row_sum(g * sign(w)) / np.sqrt(w.size),
    }


def onebit(w: Array, g: Array, learned: Arrays) -> Arrays:
    u, v = learned["scale"], learned["column"]
    return {
        "effective": sign(w) * (u * v),
        "weight": g * (u * v),
        "scale": row_sum(g * sign(w) * v),
        "column": (g * sign(w) * u).sum(axis=0),
    }


def students(w: Array, g: Array, learned: Arrays) -> Arrays:
    return {
        "effective": learned["scale"] * sign(w),
        "weight": w * g * (np.abs(w) <= 1),
        "scale": (g * sign(w)).sum(keepdims=True),
    }


def rank_one_part(w: Array) -> Array:
    """Of |W|."""
    u, s, v = np.linalg.svd(np.abs(w).astype(np.float64))
    return s[0] * np.outer(u[:, 0], v[0])


REFERENCES: dict[str, Callable[[Array, Array, Arrays], Arrays]] = {
    "bitmaps": onebit,
    "bwn": bwn,
    "bibert": bibert,
    "bit": bit,
    "bitnet": bit,
    "paretoq": paretoq,
    "onebit": onebit,
    "students": students,
}
LEARNED: dict[str, dict[str, tuple[int, ...]]] = {  # of a weight (6, 10)
    "bitmaps": {"scale": (6, 1), "column": (10,)},
    "bwn": {},
    "bibert": {},
    "bit": {},
    "bitnet": {},
    "paretoq": {"scale": (6, 1)},
    "onebit": {"scale": (6, 1), "column": (10,)},
    "students": {"scale": (1, 1)},
}
LOSSES = {  # the name of the loss, and what its parts weigh, if not 0
    "bitmaps": ("common", {"cross_entropy": 0.1, "logits": 1.0, "hidden": 100.0}),
    "students": ("tokens", {"cross_entropy": 1.0}),
    "bwn": ("bwn", {"logits": 1.0, "hidden": 1.0, "attention": 1.0}),
    "bibert": ("bibert", {"logits": 1.0, "hidden": 1.0, "relations": 1.0}),
    "bit": ("bit", {"logits": 1.0, "hidden": 1.0}),
    "paretoq": ("tokens", {"cross_entropy": 1.0}),
    "bitnet": ("tokens", {"cross_entropy": 1.0}),
    "onebit": ("onebit", {"logits": 1.0, "directions": 1.0}),
}


def learned_by(quantizer: Quantizer) -> Arrays:
    return {name: p.detach().numpy().astype(np.float64) for name, p in quantizer.named_parameters()}


def results(quantizer: Quantizer, weight: nn.Parameter, g: Array) -> Arrays:
    """The effective weight, and the gradients of all that has one."""
    parameters = {"weight": weight, **dict(quantizer.named_parameters())}
    for parameter in parameters.values():
        parameter.grad = None
    effective = quantizer(weight)
    effective.backward(torch.from_numpy(g.astype(np.float32)))
    grads = {name: parameter.grad for name, parameter in parameters.items()}
    return {"effective": effective.detach().numpy()} | {
        n: x.numpy().copy() for n, x in grads.items() if x is not None
    }


def assert_is_reference(recipe: str, quantizer: Quantizer, weight: nn.Parameter, g: Array) -> None:
    w = weight.detach().numpy().astype(np.float64)
    actual, expected = (
        results(quantizer, weight, g),
        REFERENCES[recipe](w, g, learned_by(quantizer)),
    )
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def normal_weights(rows: int = 6, columns: int = 10, seed: int = 0) -> Array:
    """As many below 1 in magnitude as above it, about, and rows of different magnitudes and means."""
    random = np.random.default_rng(seed)
    w = random.normal(size=(rows, columns)) * random.uniform(0.5, 2, (rows, 1)) + random.uniform(
        -0.6, 0.6, (rows, 1)
    )
    return w.astype(np.float32)


def test_these_are_the_recipes() -> None:
    assert set(RECIPES) == {
        "bitmaps",
        "students",
        "bwn",
        "bibert",
        "bit",
        "paretoq",
        "bitnet",
        "onebit",
    }
    assert set(RECIPES) == REFERENCES.keys() == LEARNED.keys() == LOSSES.keys()


@each_recipe
def test_a_recipe_goes_by_its_name_and_passes_its_check(recipe: str) -> None:
    composed = config(f"recipe={recipe}")
    composed.check()
    assert composed.recipe.name == recipe
    assert composed.facts().recipe == recipe


def test_the_default_recipe_is_bitmaps() -> None:
    assert config() == config("recipe=bitmaps")


@each_recipe
@given(eighths, seeds)
@thoroughly
def test_a_recipe_is_its_papers_formulas(
    recipe: str, weights: tuple[Array, Array], seed: int
) -> None:
    """At the start, and once more after training has moved the latent weight and what is learned."""
    random = np.random.default_rng(seed)
    weight = nn.Parameter(torch.from_numpy(weights[0].copy()))
    quantizer = Quantizer(weight, quantization_of(recipe))
    assert_is_reference(recipe, quantizer, weight, random.normal(size=weights[0].shape))
    with torch.no_grad():
        weight.copy_(torch.from_numpy(weights[1]))
        for parameter in quantizer.parameters():
            parameter.copy_(torch.from_numpy(random.integers(1, 17, tuple(parameter.shape)) / 8))
    assert_is_reference(recipe, quantizer, weight, random.normal(size=weights[0].shape))


@each_recipe
@pytest.mark.parametrize("seed", range(5))
def test_a_recipe_is_its_papers_formulas_on_normal_weights(recipe: str, seed: int) -> None:
    w = normal_weights(24, 36, seed)
    assert 0.2 < (np.abs(w) > 1).mean() < 0.8
    weight = nn.Parameter(torch.from_numpy(w))
    quantizer = Quantizer(weight, quantization_of(recipe))
    assert_is_reference(recipe, quantizer, weight, np.random.default_rng(seed).normal(size=w.shape))


@each_recipe
def test_a_recipe_learns_its_scales_and_nothing_else(recipe: str) -> None:
    weight = torch.from_numpy(normal_weights())
    quantizer = Quantizer(weight, quantization_of(recipe))
    assert {name: tuple(p.shape) for name, p in quantizer.named_parameters()} == LEARNED[recipe]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_learned_starts_at_the_mean_magnitude(seed: int) -> None:
    w = normal_weights(seed=seed)
    weight = torch.from_numpy(w)
    starts = {name: learned_by(Quantizer(weight, quantization_of(name))) for name in RECIPES}
    np.testing.assert_allclose(starts["paretoq"]["scale"], row_mean(np.abs(w)), rtol=1e-6)
    np.testing.assert_allclose(
        starts["students"]["scale"], np.abs(w).mean(keepdims=True), rtol=1e-6
    )
    for recipe in ("onebit", "bitmaps"):
        np.testing.assert_allclose(
            starts[recipe]["scale"] * starts[recipe]["column"], rank_one_part(w), rtol=1e-5
        )


@given(
    arrays(np.float32, (4, 6), elements=st.floats(0.5, 2, width=32)),
    arrays(np.bool_, (4, 6), elements=st.booleans()),
)
@thoroughly
def test_onebit_starts_at_the_part_of_rank_one(magnitude: Array, negative: Array) -> None:
    w = np.where(negative, -magnitude, magnitude)
    weight = torch.from_numpy(w)
    effective = Quantizer(weight, quantization_of("onebit"))(weight)
    np.testing.assert_allclose(effective.detach().numpy(), sign(w) * rank_one_part(w), rtol=1e-5)


@pytest.mark.parametrize("recipe", ["bwn", "bibert", "bit", "bitnet"])
def test_a_computed_scale_is_that_of_the_weight_now(recipe: str) -> None:
    weight = torch.from_numpy(normal_weights())
    quantizer = Quantizer(weight, quantization_of(recipe))
    torch.testing.assert_close(quantizer(3 * weight), 3 * quantizer(weight))


@pytest.mark.parametrize("recipe", ["paretoq", "onebit", "students"])
def test_a_learned_scale_is_not_that_of_the_weight_now(recipe: str) -> None:
    weight = torch.from_numpy(normal_weights())
    quantizer = Quantizer(weight, quantization_of(recipe))
    assert torch.equal(quantizer(3 * weight), quantizer(weight))


# the students' gradient, weight x gradient, has the other sign for negative weights
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "students"])
def test_training_with_a_recipe_lowers_its_loss(recipe: str, tiny: Bert, ids: torch.Tensor) -> None:
    make_trainable(tiny, ["attention", "ffnn"], quantization_of(recipe))
    # the latent weights alone: all else could lower it too
    latent = [layer.weight for layer in tiny.modules() if isinstance(layer, QuantizedLinear)]
    optimizer = torch.optim.Adam(latent, lr=3e-3)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(tiny(ids).flatten(0, 1), ids.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@each_recipe
def test_a_recipe_has_its_own_loss(recipe: str) -> None:
    composed = config(f"recipe={recipe}")
    name, weights = LOSSES[recipe]
    parts = {"cross_entropy", "logits", "hidden", "directions", "attention", "relations", "vectors"}
    assert composed.loss.weights() == dict.fromkeys(parts, 0.0) | weights
    assert composed.loss.name == composed.facts().loss == name
    # a teacher is run for those that distil, alone
    assert LossWeights(**composed.loss.weights()).distill is (name != "tokens")


@each_recipe
@pytest.mark.parametrize(
    ("loss", "order"), [("common", 1), ("common", -1), ("tokens", 1), ("bibert", 1)]
)
def test_a_loss_on_the_command_line_wins_over_the_recipes(
    recipe: str, loss: str, order: int
) -> None:
    composed = config(*[f"recipe={recipe}", f"loss={loss}"][::order])
    of_loss = {
        "common": LOSSES["bitmaps"],
        "tokens": LOSSES["students"],
        "bibert": LOSSES["bibert"],
    }[loss]
    assert composed.loss.name == loss
    assert {name: weight for name, weight in composed.loss.weights().items() if weight} == of_loss[
        1
    ]
    alone = config(f"recipe={recipe}")
    assert (composed.recipe, composed.scale) == (alone.recipe, alone.scale)


@each_recipe
def test_a_part_on_the_command_line_wins_over_the_recipes(recipe: str) -> None:
    composed = config(
        f"recipe={recipe}",
        "scale=none",
        "recipe.scaling=lsq",
        "recipe.gradient=product",
        "loss.hidden=7",
    )
    alone = config(f"recipe={recipe}")
    assert (composed.scale.name, composed.recipe.scaling.name, composed.recipe.gradient.name) == (
        "none",
        "lsq",
        "product",
    )
    assert composed.recipe.center is alone.recipe.center
    assert composed.loss.weights() == alone.loss.weights() | {"hidden": 7.0}


@each_recipe
@pytest.mark.parametrize("values", ["01", "pm1"])
def test_a_recipe_goes_with_either_value_set(recipe: str, values: str) -> None:
    composed = config(f"recipe={recipe}", f"values={values}")
    composed.check()
    assert composed.values == values
    assert composed.recipe == config(f"recipe={recipe}").recipe


@each_recipe
@pytest.mark.parametrize("extreme", ["zero row", "zeros", "outlier", "denormals"])
def test_a_recipe_takes_extreme_weights(recipe: str, extreme: str) -> None:
    values = torch.from_numpy(normal_weights())
    factor = {"zeros": 0.0, "denormals": 1e-39}.get(extreme, 1.0)
    values[1] *= {"zero row": 0.0, "outlier": 1e15}.get(extreme, 1.0)
    weight = nn.Parameter(values * factor)
    quantizer = Quantizer(weight, quantization_of(recipe))
    effective = quantizer(weight)
    effective.sum().backward()
    assert effective.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert torch.equal(quantizer.pack(weight).dense(), effective)
