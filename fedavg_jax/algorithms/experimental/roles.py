"""Divides the leaves of a model by their roles in personal models.

A leaf is `shared` (trained by clients, averaged by the server), `personal`
(every client has its own values) or `frozen` (nobody trains it).
"""

from collections.abc import Callable
from collections.abc import Sequence
import fnmatch
from typing import NamedTuple

import jax

from fedavg_jax.contracts.model import Params
from fedavg_jax.core.errors import InputError

ROLES = ('shared', 'personal', 'frozen')
# The most names of leaves that a message lists.
_MOST_NAMES = 8


class Shared(NamedTuple):
  """Names the shared leaves of a model; the others have one other role.

  >>> import fedavg_jax as fa
  >>> fa.experimental.Shared(['head']).others  # As in LG-FedAvg.
  'personal'

  Attributes:
    patterns: the patterns of the shared leaves, as in `personal`.
    others: the role of the other leaves, 'personal' or 'frozen'.
  """

  patterns: Sequence[str]
  others: str = 'personal'


# Patterns of the personal leaves, or those of the shared ones, or path -> role.
Roles = Sequence[str] | Shared | Callable[[str], str]


class Parts(NamedTuple):
  """Holds a model as three trees, with None for the leaves of other roles.

  Attributes:
    shared: the leaves that the server averages.
    personal: the leaves that each client has its own values of.
    frozen: the leaves that nobody trains.
  """

  shared: Params
  personal: Params
  frozen: Params


def split_by(roles: Roles) -> Callable[[Params], Parts]:
  """Returns the function that divides a tree, such as a model, by roles.

  Args:
    roles: the roles of the leaves, as in `personal`.

  Raises:
    InputError: the roles are one text; in the function, if they do not fit the
      leaves of its argument.
  """
  patterns = roles.patterns if isinstance(roles, Shared) else roles
  if isinstance(patterns, str):
    raise InputError(f'roles = {patterns!r}: must be a list of patterns')

  def split(tree: Params) -> Parts:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    found = _roles_of(
      roles,
      [
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, _ in leaves
      ],
    )
    return Parts._make(
      structure.unflatten(
        leaf if own == role else None
        for own, (_, leaf) in zip(found, leaves, strict=True)
      )
      for role in ROLES
    )

  return split


def merge(parts: Parts) -> Params:
  """Joins the leaves of all roles; the inverse of the division."""
  return jax.tree.map(
    lambda *own: next((leaf for leaf in own if leaf is not None), None),
    *parts,
    is_leaf=lambda leaf: leaf is None,
  )


def has_leaves(tree: Params) -> bool:
  """Returns whether a tree has any leaf."""
  return bool(jax.tree.leaves(tree))


def _roles_of(roles: Roles, names: Sequence[str]) -> list[str]:
  """Returns the role of each leaf, from the names of all leaves."""
  known = ', '.join(names[:_MOST_NAMES]) + ', ...' * (len(names) > _MOST_NAMES)
  if callable(roles):
    found = [roles(name) for name in names]
  else:
    named, others = 'personal', 'shared'
    if isinstance(roles, Shared):
      named, others, roles = 'shared', roles.others, roles.patterns
    for pattern in roles:
      if not any(is_named(name, [pattern]) for name in names):
        raise InputError(
          f'roles: the pattern {pattern!r} names no leaf of the model, must'
          f' name some of {known}'
        )
    found = [named if is_named(name, roles) else others for name in names]
  for name, role in zip(names, found, strict=True):
    if role not in ROLES:
      raise InputError(
        f'roles: {name!r} has the role {role!r}, must be one of'
        f' {", ".join(ROLES)}'
      )
  if 'shared' not in found:
    raise InputError(
      f'roles: no leaf of the model is shared, must be some of {known}'
    )
  return found


def is_named(name: str, patterns: Sequence[str]) -> bool:
  """Returns whether patterns name a leaf, or a tree that contains it."""
  parts = name.split('/')
  return any(
    fnmatch.fnmatchcase('/'.join(parts[: i + 1]), pattern)
    for i in range(len(parts))
    for pattern in patterns
  )
