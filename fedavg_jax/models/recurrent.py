"""Defines the loops over time of an LSTM, with hand-written gradients.

Only what depends on the previous step is inside the loops. The product with the
inputs is in `layers.lstm`, and the gradient of each weight is one product over
all steps.

Shape letters: T time steps, B batch, H hidden units.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def peephole_lstm(
  a: jax.Array,
  recurrent: jax.Array,
  peephole: jax.Array,
  steps: jax.Array | None,
  joined: bool,
) -> jax.Array:
  """Computes an LSTM with peepholes from the product with its inputs.

  The equations are those of `layers.lstm`.

  Args:
    a: [T, B, 4 H] product of inputs and kernel plus bias, gates in the order i,
      f, g, o.
    recurrent: [H, 4 H] recurrent weights, in the same order.
    peephole: [3, H] peephole weights p_i, p_f and p_o.
    steps: int32 scalar, the number of time steps to compute, at most T; None
      computes all T in loops of a known length.
    joined: whether loops of a known length stack one array, in which no array
      is kept that the next step reads too, such as h. XLA:GPU stacks those by
      copies whose position the host counts, and an array that only the stack
      reads by the kernel that computes it. A TPU is faster with several.

  Returns:
    h, [T, B, H], zero after the last step.
  """
  if steps is None and joined:
    size = recurrent.shape[0]
    o_and_c = _all_steps(
      a,
      recurrent,
      peephole,
      lambda h, c, gates: jnp.concatenate([gates[:, 3 * size :], c], axis=1),
    )
    return o_and_c[..., :size] * jnp.tanh(o_and_c[..., size:])
  return _forward(a, recurrent, peephole, steps, joined)[0]


def _forward(a, recurrent, peephole, steps, joined):
  """Returns h, c [T, B, H] and the gates [T, B, 4 H] of all steps."""
  if steps is not None:
    return _first_steps(a, recurrent, peephole, steps)
  if not joined:
    return _all_steps(a, recurrent, peephole, lambda *now: now)
  size = recurrent.shape[0]
  gates_and_c = _all_steps(
    a,
    recurrent,
    peephole,
    lambda h, c, gates: jnp.concatenate([gates, c], axis=1),
  )
  gates, cs = gates_and_c[..., : 4 * size], gates_and_c[..., 4 * size :]
  return gates[..., 3 * size :] * jnp.tanh(cs), cs, gates


def _cell(recurrent, peepholes, h, c, a):
  """Takes one step; returns h, c [B, H] and the gates i, f, g, o [B, 4 H]."""
  p_i, p_f, p_o = peepholes
  i, f, g, o = jnp.split(a + h @ recurrent, 4, axis=1)
  i, f = jax.nn.sigmoid(i + p_i * c), jax.nn.sigmoid(f + 1 + p_f * c)
  g = jnp.tanh(g)
  c = f * c + i * g
  o = jax.nn.sigmoid(o + p_o * c)
  h = o * jnp.tanh(c)
  return h, c, jnp.concatenate([i, f, g, o], axis=1)


def _first_steps(a, recurrent, peephole, steps):
  """Returns h, c [T, B, H] and gates [T, B, 4 H], zero after `steps`."""
  peepholes = [p[None] for p in peephole]

  def step(t, carry):
    h, c, *seen = carry
    now = _cell(recurrent, peepholes, h, c, a[t])
    seen = [all_.at[t].set(one) for all_, one in zip(seen, now, strict=True)]
    return *now[:2], *seen

  times, examples, gates = a.shape
  nothing = jnp.zeros((examples, gates // 4), a.dtype)
  states = jnp.zeros((times, *nothing.shape), a.dtype)
  *_, hs, cs, all_gates = lax.fori_loop(
    0, steps, step, (nothing, nothing, states, states, jnp.zeros_like(a))
  )
  return hs, cs, all_gates


def _all_steps(a, recurrent, peephole, keep) -> Any:
  """Returns `keep(h, c, gates)` of all steps, stacked."""
  peepholes = [p[None] for p in peephole]

  def step(carry, a_t):
    h, c, gates = _cell(recurrent, peepholes, carry[0], carry[1], a_t)
    return (h, c), keep(h, c, gates)

  nothing = jnp.zeros((a.shape[1], recurrent.shape[0]), a.dtype)
  return lax.scan(step, (nothing, nothing), a)[1]


def _fwd(a, recurrent, peephole, steps, joined):
  hs, cs, gates = _forward(a, recurrent, peephole, steps, joined)
  return hs, (recurrent, peephole, steps, hs, cs, gates)


def _cotangents_of_state(p_o, dh, dc, gates, c):
  """Returns the cotangents of c and of the gate o before its sigmoid."""
  o = jnp.split(gates, 4, axis=-1)[3]
  tanh_c = jnp.tanh(c)
  do = dh * tanh_c * o * (1 - o)
  return dc + dh * o * (1 - tanh_c * tanh_c) + do * p_o, do


def _cotangents_of_gates(dc, gates, c_before):
  """Returns those of the gates i, f and g before their sigmoid and tanh."""
  i, f, g, _ = jnp.split(gates, 4, axis=-1)
  return dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g)


def _bwd(joined, residuals, dhs):
  recurrent, peephole, steps, hs, cs, gates = residuals
  p_i, p_f, p_o = (p[None] for p in peephole)

  def before(states):  # [T, B, H] -> [T, B, H], of the previous step.
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

  cs_before = before(cs)

  def cell(dh, dc, dh_t, gates, c, c_before):
    """Takes one step back; returns dh, dc of the step before, dc, do, da."""
    dc, do = _cotangents_of_state(p_o, dh + dh_t, dc, gates, c)
    di, df, dg = _cotangents_of_gates(dc, gates, c_before)
    da = jnp.concatenate([di, df, dg, do], axis=1)
    f = jnp.split(gates, 4, axis=1)[1]
    dh = lax.dot_general(da, recurrent, (((1,), (1,)), ((), ())))
    return dh, dc * f + di * p_i + df * p_f, dc, do, da

  def counted(s, carry):
    dh, dc, das = carry
    t = steps - 1 - s
    dh, dc, *_, da = cell(dh, dc, dhs[t], gates[t], cs[t], cs_before[t])
    return dh, dc, das.at[t].set(da)

  def stacked(carry, at_t):
    *carry, dc, do, da = cell(*carry, *at_t)
    return tuple(carry), jnp.concatenate([dc, do], axis=1) if joined else da

  size = hs.shape[2]
  nothing = jnp.zeros_like(hs[0])
  if steps is None:
    _, das = lax.scan(
      stacked, (nothing, nothing), (dhs, gates, cs, cs_before), reverse=True
    )
    if joined:
      dcs, dos = das[..., :size], das[..., size:]
      of_others = _cotangents_of_gates(dcs, gates, cs_before)
      das = jnp.concatenate([*of_others, dos], axis=2)
  else:
    _, _, das = lax.fori_loop(
      0, steps, counted, (nothing, nothing, jnp.zeros_like(gates))
    )
  drecurrent = lax.dot_general(
    before(hs).reshape(-1, size),
    das.reshape(-1, 4 * size),
    (((0,), (0,)), ((), ())),
  )
  di, df, _, do = jnp.split(das, 4, axis=2)
  dpeephole = jnp.stack(
    [
      jnp.sum(da * c, axis=(0, 1))
      for da, c in ((di, cs_before), (df, cs_before), (do, cs))
    ]
  )
  return das, drecurrent, dpeephole, None


peephole_lstm.defvjp(_fwd, _bwd)
