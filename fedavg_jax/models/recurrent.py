"""Defines the loops over time of an LSTM, with hand-written gradients.

Only what depends on the previous step is inside the loops. The product with the
inputs is in `layers.lstm`, and the gradient of each weight is one product over
all steps.

Shape letters: T time steps, B batch, H hidden units.
"""

import jax
from jax import lax
import jax.numpy as jnp


@jax.custom_vjp
def peephole_lstm(
  a: jax.Array,
  recurrent: jax.Array,
  peephole: jax.Array,
  steps: jax.Array | None,
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

  Returns:
    h, [T, B, H], zero after the last step.
  """
  return _forward(a, recurrent, peephole, steps)[0]


def _forward(a, recurrent, peephole, steps):
  """Returns h, c [T, B, H] and gates [T, B, 4 H]; a is [T, B, 4 H]."""
  p_i, p_f, p_o = (p[None] for p in peephole)

  def cell(h, c, a):
    i, f, g, o = jnp.split(a + h @ recurrent, 4, axis=1)
    i, f = jax.nn.sigmoid(i + p_i * c), jax.nn.sigmoid(f + 1 + p_f * c)
    g = jnp.tanh(g)
    c = f * c + i * g
    o = jax.nn.sigmoid(o + p_o * c)
    h = o * jnp.tanh(c)
    return h, c, jnp.concatenate([i, f, g, o], axis=1)

  def step(t, carry):
    h, c, *seen = carry
    now = cell(h, c, a[t])
    seen = [all_.at[t].set(one) for all_, one in zip(seen, now, strict=True)]
    return *now[:2], *seen

  times, examples, gates = a.shape
  nothing = jnp.zeros((examples, gates // 4), a.dtype)
  if steps is None:
    _, seen = lax.scan(
      lambda carry, a: ((now := cell(*carry, a))[:2], now),
      (nothing, nothing),
      a,
    )
    return seen
  states = jnp.zeros((times, *nothing.shape), a.dtype)
  *_, hs, cs, all_gates = lax.fori_loop(
    0, steps, step, (nothing, nothing, states, states, jnp.zeros_like(a))
  )
  return hs, cs, all_gates


def _fwd(a, recurrent, peephole, steps):
  hs, cs, gates = _forward(a, recurrent, peephole, steps)
  return hs, (recurrent, peephole, steps, hs, cs, gates)


def _bwd(residuals, dhs):
  recurrent, peephole, steps, hs, cs, gates = residuals
  p_i, p_f, p_o = (p[None] for p in peephole)

  def before(states):  # [T, B, H] -> [T, B, H], of the previous step.
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

  cs_before = before(cs)

  def cell(dh, dc, dh_t, gates_t, c, c_before):
    """Takes one step back: cotangents of h, of c, and of a."""
    i, f, g, o = jnp.split(gates_t, 4, axis=1)
    dh = dh + dh_t
    tanh_c = jnp.tanh(c)
    do = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c * tanh_c) + do * p_o
    di = dc * g * i * (1 - i)
    df = dc * c_before * f * (1 - f)
    da = jnp.concatenate([di, df, dc * i * (1 - g * g), do], axis=1)
    dh = lax.dot_general(da, recurrent, (((1,), (1,)), ((), ())))
    return dh, dc * f + di * p_i + df * p_f, da

  def step(s, carry):
    dh, dc, das = carry
    t = steps - 1 - s
    dh, dc, da = cell(dh, dc, dhs[t], gates[t], cs[t], cs_before[t])
    return dh, dc, das.at[t].set(da)

  nothing = jnp.zeros_like(hs[0])
  if steps is None:
    _, das = lax.scan(
      lambda carry, at_t: ((now := cell(*carry, *at_t))[:2], now[2]),
      (nothing, nothing),
      (dhs, gates, cs, cs_before),
      reverse=True,
    )
  else:
    _, _, das = lax.fori_loop(
      0, steps, step, (nothing, nothing, jnp.zeros_like(gates))
    )
  size = hs.shape[2]
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
