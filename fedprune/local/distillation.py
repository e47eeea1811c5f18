"""Knowledge distillation: a second loss that asks for a teacher's answers.

    weight * -t^2 sum_c q_c log p_c,   q = softmax(teacher / t)

  printed   p = softmax(student): P3 (1), where the index under its fraction is a slip
  Hinton    p = softmax(student / t): Hinton et al., Distilling the Knowledge in a Neural Network,
            2015, for whose gradient t^2 is the right factor

Added to the cross-entropy of the labels it is P3's loss.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedprune import check, tree
from fedprune.types import Model, Params

FORMS = ("printed", "hinton")

Distillation = Callable[[jax.Array, jax.Array], jax.Array]
"""(student's logits [b, classes], x [b, ...]) -> what is added to the loss of every example [b]"""


def distillation(
    teacher: Model,
    params: Params,
    temperature: jax.Array | float = 2.0,
    weight: jax.Array | float = 1.0,
    form: str = "printed",
) -> Distillation:
    """The loss against a teacher.

    Args:
      teacher: the network.
      params: its weights.
      temperature: t > 0.
      weight: factor on the loss; 0 is no distillation, and may be traced like the others.
      form: one of ``FORMS``.

    Raises:
      ValueError: an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not one of {FORMS}")
    check.kind("teacher", teacher, Model)
    check.number("temperature", temperature, above=0)
    check.number("weight", weight, 0)

    def loss(logits: jax.Array, x: jax.Array) -> jax.Array:
        weights, x = tree.match((params, x))
        answers = jax.nn.softmax(teacher.apply(weights, x) / temperature)
        student = logits / temperature if form == "hinton" else logits
        cross = -jnp.sum(answers * jax.nn.log_softmax(student), -1)
        return weight * jnp.square(jnp.asarray(temperature, jnp.float32)) * cross

    return loss
