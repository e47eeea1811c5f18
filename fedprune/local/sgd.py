"""Local training of one client by any optax optimizer.

Per step, on a batch of the client's own examples, with w_0 the model that the client received:

    g <- mask * (grad F_k(w) + mu (w - w_0)),    w <- w + decay(t) * optimizer(g),

where mu is FedProx's (Li et al., Federated Optimization in Heterogeneous Networks, (2)) and t the
round. So a pruned weight, which starts at zero, stays exactly zero (P2 (8)). The loss may be taken
at what a receiver would have of w (``reception``; P3's noise injection), and have a second part, a
teacher's (``distillation``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedprune import check, rng, tree
from fedprune.local.decay import Decay
from fedprune.local.distillation import Distillation
from fedprune.types import Client, Key, LocalUpdate, Mask, Model, Params, Reception, Trained

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [b, classes], labels [b]) -> [b] loss of every example"""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats, [b]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def sgd(
    model: Model,
    optimizer: optax.GradientTransformation,
    batch: int,
    steps: int | None = None,
    epochs: int | None = None,
    loss: Loss = cross_entropy,
    prox: jax.Array | float | None = None,
    decay: Decay | None = None,
    microbatch: int = 0,
    reception: Reception | None = None,
    distillation: Distillation | None = None,
) -> LocalUpdate:
    """Local training for a number of steps, or of epochs; the optimizer starts afresh every round.

    Only its schedules (``optax.sgd(optax.cosine_decay_schedule(...))``) go on: they get the number
    of the step over all rounds, counted from 0, while momentum, moments and their corrections start
    from nothing. With ``epochs`` a round counts as many steps as the client with most examples has.

    With ``steps``, every batch is drawn uniformly with replacement from the client's examples. With
    ``epochs``, every epoch shuffles them and goes through each exactly once; the last batch is
    smaller where the size does not divide, and a client with fewer examples takes fewer steps.

    A model with running statistics (``model.train``) has them replaced after every step by those
    that have taken in the step's batch. Neither gradient, proximal term nor optimizer moves them.

    Args:
      model: the network.
      optimizer: an optax transformation; its hyperparameters may be traced. A schedule is what
        keeps a count and nothing beside it; those of ``optax.contrib`` that count among their
        moments start afresh with these.
      batch: examples per step.
      steps: steps per round; give this or ``epochs``.
      epochs: passes over the client's examples per round.
      loss: of every example; training minimises its mean over the batch.
      prox: mu of the proximal term mu/2 |w - w_0|^2, which the reported loss does not include; may
        be traced. None: no such term.
      decay: round -> factor on the optimizer's updates, and so on its learning rate; see
        ``local.decay``. None: 1.
      microbatch: a step's gradient is a sum over parts of the batch, one after another, so that
        activations stay in cache; a part has as many examples as the divisor of the batch that is
        nearest by ratio. Results differ in rounding only. 0: ``microbatch_size`` on CPU, elsewhere
        the whole batch; which it is, is decided when the program is lowered. A model with
        running statistics takes the whole batch at once.
      reception: the weights at which each step takes its loss, as a function of those trained, such
        as ``link.injection``. The number of the step that it is told counts all steps of the run.
        It may change the structure of the params. The step of running statistics goes the way of a
        gradient, to those of which the network's were made. None: those trained.
      distillation: added to the loss, see ``local.distillation``.

    Raises:
      TypeError: a number where a stage or a function belongs, or the other way round.
      ValueError: unless batch and exactly one of steps and epochs are positive; when it trains, an
        optimizer with random numbers of its own, which every client and round would draw alike, or,
        with ``cross_entropy``, a network of fewer outputs than the data have classes.
    """
    if (steps is None) == (epochs is None):
        raise ValueError(f"give one of steps={steps} and epochs={epochs}")
    check.kind("model", model, Model)
    check.kind("optimizer", optimizer, optax.GradientTransformation, optax.MultiSteps)
    check.whole("batch", batch, 1)
    if steps is not None:
        check.whole("steps", steps, 1)
    if epochs is not None:
        check.whole("epochs", epochs, 1)
    length = steps or epochs or 0
    check.function("loss", loss)
    if prox is not None:
        check.number("prox", prox, 0)
    check.whole("microbatch", microbatch, 0)
    for name, value in (("decay", decay), ("reception", reception), ("distillation", distillation)):
        if value is not None:
            check.function(name, value)

    of_batch = _gradient(model, batch, loss, microbatch, distillation)

    def update(key: Key, t: jax.Array, params: Params, mask: Mask, client: Client) -> Trained:
        factor = None if decay is None else decay(t)

        def step(carry, number: jax.Array, positions: jax.Array, counts: jax.Array):
            now, state = carry
            if reception is None:
                (value, after), gradient = of_batch(now, client, positions, counts)
            else:
                noise = rng.stream(key, "reception", number)
                received, pull = jax.vjp(lambda w: reception(noise, number, w, mask), now)
                (value, after), gradient = of_batch(received, client, positions, counts)
                (gradient,) = pull(gradient)
                if after is not None:
                    after = _moved(now, received, after, pull)
            if prox is not None:
                gradient = jax.tree.map(lambda g, w, w0: g + prox * (w - w0), gradient, now, params)
            if after is not None:
                gradient = tree.statistics_of(jax.tree.map(jnp.zeros_like, now), gradient)
            gradient = tree.apply_mask(mask, gradient)
            updates, state = optimizer.update(gradient, _schedules_at(number, state), now)
            if factor is not None:
                updates = jax.tree.map(lambda u: factor * u, updates)
            new = optax.apply_updates(now, updates)
            if after is not None:
                new = tree.statistics_of(after, new)
            return (new, state), value

        state = optimizer.init(params)
        if optax.tree_utils.tree_get_all_with_path(state, "rng_key"):
            raise ValueError(
                "optimizer: draws random numbers of its own, the same in every round and client;"
                " draw them by an address, as reception does"
            )
        start = tree.match((params, state, client, key, t))[:2]
        passes = _steps if epochs is None else _epochs
        end, value = passes(key, t, client, batch, length, step, start)
        delta = jax.tree.map(jnp.subtract, end[0], params)
        return Trained(tree.apply_mask(mask, delta), value)

    return update


def _gradient(
    model: Model, batch: int, loss: Loss, microbatch: int, distillation: Distillation | None
) -> Callable:
    """(params, client, positions, counts) -> ((loss, statistics after), gradient) of the mean over
    those of a batch's examples that count."""

    def objective(
        params: Params, client: Client, positions, counts, number
    ) -> tuple[jax.Array, Params]:
        x, y = client.take(positions)
        if model.train is None:
            logits, after = model.apply(params, x), None
        else:
            logits, after = model.train(params, x)
        if loss is cross_entropy:  # another loss may take what it wants from a network
            logits = client.answers(logits)
        value = loss(logits, y)
        if distillation is not None:
            value = value + distillation(logits, x)
        return jnp.sum(jnp.where(counts, value, 0.0)) / number, after

    def of_batch(params: Params, client: Client, positions: jax.Array, counts: jax.Array):
        number = jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0)
        of = jax.value_and_grad(objective, has_aux=True)
        size = batch
        if model.train is None:
            example = jax.eval_shape(lambda: client.take(positions[:1])[0])
            size = _divisor(batch, microbatch or microbatch_size(model, params, example))

        def at_once(params: Params, client: Client, positions: jax.Array, counts: jax.Array):
            return of(params, client, positions, counts, number)

        def in_parts(params: Params, client: Client, positions: jax.Array, counts: jax.Array):
            def add(total, part):
                (value, _), gradient = of(params, client, *part, number)
                return jax.tree.map(jnp.add, total, (value, gradient)), None

            zero = jax.tree.map(jnp.zeros_like, (number, params))
            zero = tree.match((zero, params, client, positions))[0]
            parts = tuple(v.reshape(-1, size) for v in (positions, counts))
            (value, gradient), _ = lax.scan(add, zero, parts)
            return (value, None), gradient

        given = (params, client, positions, counts)
        if size == batch:
            return at_once(*given)
        if microbatch:
            return in_parts(*given)
        return lax.platform_dependent(*given, cpu=in_parts, default=at_once)

    return of_batch


def _moved(now: Params, received: Params, after: Params, pull: Callable) -> Params:
    """``now``, with the statistics' step from ``received`` to ``after`` pulled back to it."""
    step = jax.tree.map(jnp.subtract, after, received)
    (step,) = pull(tree.statistics_of(step, jax.tree.map(jnp.zeros_like, received)))
    return jax.tree.map(jnp.add, now, step)


def _schedules_at(number: jax.Array, state: optax.OptState) -> optax.OptState:
    """An optimizer's state whose schedules take the step of this number next.

    A schedule's state is a count alone. Counts beside other fields are left: they say how many
    steps went into moments, which are new in every round.
    """

    def counts_only(node: Any) -> bool:
        return getattr(node, "_fields", ()) == ("count",)

    def at(node: Any) -> Any:
        return node._replace(count=number) if counts_only(node) else node

    return jax.tree.map(at, state, is_leaf=counts_only)


def microbatch_size(model: Model, params: Params, example: jax.ShapeDtypeStruct) -> int:
    """A number of examples whose gradients are computed at once without leaving a CPU's cache.

    As few as make the numbers that the network's forward pass writes (a) four times its weights,
    which bounds the cost of adding up gradients, and (b) 2^20, below which cache is large enough.
    docs/performance.md has measurements.

    Args:
      example: shape [1, ...] and type of an input.
    """

    def written(examples: int) -> int:
        shape = jax.ShapeDtypeStruct((examples, *example.shape[1:]), example.dtype)
        equations = jax.make_jaxpr(model.apply)(params, shape).eqns
        return sum(v.aval.size for equation in equations for v in equation.outvars)

    each = max(1, written(2) - written(1))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return -(-max(4 * weights, 2**20) // each)


def _divisor(number: int, wanted: int) -> int:
    """The divisor of a number that is nearest to the wanted one by ratio."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


def _steps(key: Key, t: jax.Array, client: Client, batch: int, steps: int, step, start):
    """Scan over steps, each on a batch drawn with replacement."""
    everything = jnp.ones(batch, bool)
    # A client without examples trains on padding; the round gives it no weight.
    size = jnp.maximum(client.size, 1)

    def draw(i: jax.Array) -> jax.Array:
        return jax.random.randint(rng.stream(key, "batch", i), (batch,), 0, size)

    def one(carry, numbered):
        i, drawn = numbered
        return step(carry, t * steps + i, drawn, everything)

    # All draws at once, which small networks notice (W3: 2 %).
    numbers = jnp.arange(steps)
    end, values = lax.scan(one, start, (numbers, jax.vmap(draw)(numbers)))
    return end, values.mean()


def _epochs(key: Key, t: jax.Array, client: Client, batch: int, epochs: int, step, start):
    """Scan over epochs of a scan over batches; batches beyond the client's size change nothing."""
    n_max = client.rows.shape[0]
    batches = -(-n_max // batch)
    slots = jnp.arange(batches * batch).reshape(batches, batch)

    def epoch(carry, e):
        # Random order of the client's own examples, the padding after them.
        ticket = jax.random.uniform(rng.stream(key, "epoch", e), (n_max,))
        order = jnp.argsort(jnp.where(jnp.arange(n_max) < client.size, ticket, 2.0))
        order = jnp.pad(order, (0, batches * batch - n_max))

        def one(carry, numbered):
            number, slot = numbered
            counts = slot < client.size
            # Idle slots repeat own examples in turn: neither a gradient of weight zero nor the
            # statistics of a batch see padding.
            new, value = step(carry, number, order[slot % jnp.maximum(client.size, 1)], counts)
            weight = jnp.sum(counts, dtype=jnp.float32)
            return tree.where(weight > 0, new, carry), (value * weight, weight)

        numbers = (t * epochs + e) * batches + jnp.arange(batches)
        return lax.scan(one, carry, (numbers, slots))

    end, (values, weights) = lax.scan(epoch, start, jnp.arange(epochs))
    return end, values.sum() / jnp.maximum(weights.sum(), 1.0)
