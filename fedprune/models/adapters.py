"""From a network of flax, linen or nnx, to a ``Model``: two functions of a plain pytree.

Params are nested dicts of float arrays, named as the module names them. Their paths say which
weights are kernels, and so prunable (``tree.is_kernel``), and which parts may be personal. A
network of another library, or of plain JAX, needs no adapter: it is ``Model(init, apply)``.

All state of a network has to be its parameters, since a round sends and averages nothing else.
Refused by name are:

* random numbers of a forward pass, as dropout draws, unless they are switched off;
* running statistics that are no parameters. In their place: a norm without any, such as group
  norm; ``nn.batch_norm``, or nnx's BatchNorm in its training mode, which normalise every batch by
  its own statistics; or, in linen, ``models.BatchNorm``, whose running statistics are parameters;
* any other variable of nnx that is no ``nnx.Param``, and any other collection of linen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.errors
import flax.linen as linen
import jax
import jax.numpy as jnp

from fedprune import tree
from fedprune.types import Key, Model, Params

if TYPE_CHECKING:
    from flax import nnx

_NORM = "take a norm without running statistics, such as GroupNorm or fedprune's nn.batch_norm"


def from_linen(
    module: linen.Module, example_shape: Sequence[int], running: bool = False, **options: Any
) -> Model:
    """A module of flax linen as a ``Model``.

    Args:
      module: takes x [b, *example_shape] float32, returns logits [b, outputs].
      example_shape: shape of one example.
      running: the module has ``models.BatchNorm`` with running statistics, and takes a second
        argument ``train``, False by default, which it passes on to them.
      options: arguments of the module that every call gets, such as ``deterministic=True``, with
        which dropout is off.

    Raises:
      ValueError: the module keeps something beside its parameters or draws random numbers (see
        above), has no parameters, or returns no logits.
    """
    name = type(module).__name__

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return _array(module.apply({"params": params}, x, **options))

    def train(params: Params, x: jax.Array) -> tuple[jax.Array, Params]:
        logits, after = module.apply({"params": params}, x, True, mutable=["params"], **options)
        return _array(logits), after["params"]

    def variables(key: Key) -> dict[str, Any]:
        return dict(module.init(key, jnp.zeros((1, *example_shape), jnp.float32), **options))

    def init(key: Key) -> Params:
        return variables(key).get("params", {})

    for collection, values in jax.eval_shape(variables, jax.random.key(0)).items():
        if collection != "params":
            (path, _), *_ = jax.tree_util.tree_leaves_with_path(values)
            raise ValueError(
                f"from_linen: {name} keeps {tree.path_name(path)!r} in the collection"
                f" {collection!r}, but only parameters are trained; if it is batch normalisation,"
                f" {_NORM}, or models.BatchNorm"
            )
    try:
        return _checked(
            "from_linen", name, Model(init, apply, train if running else None), example_shape
        )
    except flax.errors.InvalidRngError as e:
        raise ValueError(
            f"from_linen: {name} draws random numbers, as Dropout does; switch that off, for"
            " example with deterministic=True"
        ) from e


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module], example_shape: Sequence[int]) -> Model:
    """A module of flax nnx as a ``Model``.

    Args:
      build: makes the module, for example ``lambda rngs: Net(10, rngs=rngs)``; the module takes
        x [b, *example_shape] float32 and returns logits [b, outputs].
      example_shape: shape of one example.

    Raises:
      ValueError: the module has variables that are no ``nnx.Param``, except in BatchNorm in its
        training mode and in Dropout that is switched off (``deterministic=True``); or it has no
        parameters, or returns no logits.
    """
    from flax import nnx

    shapes = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    name = type(shapes).__name__
    graph, *states = nnx.split(shapes, nnx.Param, ...)
    rest = states[1]
    without_state = [
        path for path, part in nnx.iter_modules(shapes) if _stateless(name, path, part)
    ]
    for path, variable in nnx.to_flat_state(rest):
        if not any(path[: len(owner)] == owner for owner in without_state):
            raise ValueError(
                f"from_nnx: {name} keeps {_joined(path)!r}, a {type(variable).__name__}, but only"
                " nnx.Param is trained"
            )

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return _array(nnx.merge(graph, params, jax.tree.map(_unused, rest))(x))

    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    return _checked("from_nnx", name, Model(init, apply), example_shape)


def _stateless(name: str, path: tuple, part: Any) -> bool:
    """Whether a part of an nnx module does not use the state that it has.

    Raises:
      ValueError: it does use it, and there is another way.
    """
    from flax import nnx

    at = f"from_nnx: {name} has"
    if isinstance(part, nnx.BatchNorm):
        if part.use_running_average:
            raise ValueError(
                f"{at} BatchNorm {_joined(path)!r} with use_running_average=True; with False every"
                f" batch is normalised by its own statistics, or {_NORM}"
            )
        return True
    if isinstance(part, nnx.Dropout):
        if part.rate > 0 and not part.deterministic:
            raise ValueError(
                f"{at} Dropout {_joined(path)!r}, which draws random numbers; switch that off with"
                " deterministic=True"
            )
        return True
    return False


def _unused(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """What stands where state is not used: it would make logits NaN if it were."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.full(leaf.shape, jnp.nan if floating else 0, leaf.dtype)


def _checked(adapter: str, name: str, model: Model, example_shape: Sequence[int]) -> Model:
    """The model, if it has parameters and logits; nothing is computed."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    wrong = [
        tree.path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if wrong or not jax.tree.leaves(params):
        what = f"the parameter {wrong[0]!r}, which is no floats" if wrong else "no parameters"
        raise ValueError(f"{adapter}: {name} has {what}")
    x = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
    logits = jax.eval_shape(model.apply, params, x)
    if logits.ndim != 2 or logits.shape[0] != 1:
        raise ValueError(
            f"{adapter}: {name} returns {list(logits.shape)} for one example, but logits are"
            " [batch, outputs]"
        )
    return model


def _array(logits: Any) -> jax.Array:
    if not isinstance(logits, jax.Array):
        raise ValueError(f"model: returns a {type(logits).__name__}, but logits are an array")
    return logits


def _joined(path: tuple) -> str:
    return "/".join(map(str, path))
