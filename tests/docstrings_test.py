"""Holds docstrings to their form: sentences with verbs, described arguments.

Run as a program with folders as arguments, it prints what breaks a rule.
"""

import ast
import inspect
import pathlib
import re
import sys

import pytest

import fedavg_jax as fa

FOLDERS = ['fedavg_jax', 'configs', 'experiments', 'tests']
# A sentence has one of these, or begins with a verb such as "Returns".
_VERBS = frozenset(
  'is are was were has have had does do can may must will becomes become holds'
  ' hold takes take gives give needs need makes make means mean comes come'
  ' follows follow describes describe belongs belong depends depend changes'
  ' change counts count keeps keep stays stay trains train learns learn'
  ' decides decide ends end runs run uses use equals equal says say knows know'
  ' sees see saves save resumes resume returns return receives receive'.split()
)
# Plurals, which begin no sentence of this kind.
_NOUNS = frozenset(
  'Arguments Arrays Bytes Checkpoints Clients Configs Docs Examples Files'
  ' Flags Folders Functions Keys Labels Layers Lines Losses Metrics Models'
  ' Names Numbers Options Pictures Random Results Rounds Rules Runs Settings'
  ' Shapes States Steps Tests Texts Values Weights Words This Its As Is Has'
  ' Always Across Process Cross Loss Progress Less'.split()
)
_PREPOSITIONS = frozenset(
  'of in for by with from as at on to before after where that whose over'
  ' behind beside under who until since when what which between within without'
  ' around among above below beyond through into and or but if'.split()
)


def begins_with_a_verb(sentence: str) -> bool:
  """Returns whether the first word is a verb of the third person."""
  word = sentence.split()[0]
  return bool(re.fullmatch(r'[A-Z][a-z]+s', word)) and word not in _NOUNS


def has_a_verb(sentence: str) -> bool:
  """Returns whether a sentence has a verb, as far as a list can tell."""
  words = {word.strip('.,;:()').lower() for word in sentence.split()}
  return begins_with_a_verb(sentence) or bool(words & _VERBS)


def entries(docstring: str) -> dict[str, str]:
  """Reads the sections that describe arguments and attributes.

  Returns:
    Name -> its description.
  """
  found, inside, names = {}, False, []
  for line in docstring.splitlines():
    if line and not line.startswith(' '):
      inside, names = line in ('Args:', 'Attributes:'), []
    entry = re.match(r'  (\*{0,2}\w+(?:, \w+)*): (.*)', line)
    if inside and entry:
      names = entry[1].split(', ')
      found |= dict.fromkeys(names, entry[2])
    elif inside and line.startswith('    '):
      found |= {name: f'{found[name]} {line.strip()}' for name in names}
  return found


def faults(path: pathlib.Path) -> list[str]:
  """Lists what breaks a rule in the docstrings of a file."""
  found = []
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
  for node in ast.walk(ast.parse(path.read_text())):
    docstring = isinstance(node, kinds) and ast.get_docstring(node)
    if not docstring:
      continue
    name = f'{path}:{getattr(node, "lineno", 1)} {getattr(node, "name", "")}'
    first = ' '.join(docstring.split('\n\n')[0].split())
    rule = has_a_verb
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('test_'):
      rule = begins_with_a_verb
    if first.split()[0] in ('Args:', 'Attributes:') or not rule(first):
      found.append(f'{name}: no verb: {first}')
    for entry, text in entries(docstring).items():
      word = text.split()[0].strip(',;').lower() if text else ''
      if word in _PREPOSITIONS:
        found.append(f'{name}: {entry} begins with {word!r}: {text}')
  return found


def faults_of(folder: pathlib.Path) -> list[str]:
  """Lists the faults of all files of a folder, or of one file."""
  paths = sorted(folder.rglob('*.py')) if folder.is_dir() else [folder]
  return [fault for path in paths for fault in faults(path)]


@pytest.mark.parametrize('folder', FOLDERS)
def test_docstrings_are_sentences(repository, folder):
  found = faults_of(repository / folder)
  assert not found, '\n'.join(found)


def public_objects():
  """Yields (name, object) of all that `import fedavg_jax as fa` offers."""
  for name in fa.__all__:
    value = getattr(fa, name)
    if not inspect.ismodule(value):
      yield name, value
      continue
    for own in set(value.__all__) - {'Loss'}:  # It is a type.
      yield f'{name}.{own}', getattr(value, own)


def test_public_names_have_an_example_and_what_they_take():
  """Doctests are run by another test."""
  found = []
  for name, value in sorted(public_objects()):
    docstring = inspect.getdoc(value) or ''
    if '>>> ' not in docstring:
      found.append(f'{name}: no example')
    described = entries(docstring)
    function = value if inspect.isfunction(value) else None
    for parameter in inspect.signature(function).parameters if function else ():
      if parameter not in described:
        found.append(f'{name}: {parameter} is not described')
  assert not found, '\n'.join(found)


# What says how large a number is, or what it counts.
_UNITS = re.compile(
  r'\d|\[|\b(seconds?|bytes|megabits|numbers?|fraction|rates?|factor|seed|decay'
  r'|exponent|constant|size|largest|norm|distance|concentration|zeros|degree'
  r'|examples|epochs|rounds|sum|threshold|eta'
  r'|weight|value)\b',
  re.IGNORECASE,
)


def numbers_of(value):
  """Returns the names of a public object's numbers, by their annotations."""
  annotations = getattr(value, '__annotations__', {})
  return [
    name
    for name, kind in annotations.items()
    if re.search(r'\b(int|float)\b', getattr(kind, '__name__', str(kind)))
    and 'Callable' not in str(kind)
    and name != 'return'
    and not name.startswith('_')
  ]


def test_numbers_of_public_names_have_units():
  """Options of a config are described where they are defined."""
  found = []
  for name, value in sorted(public_objects()):
    described = entries(inspect.getdoc(value) or '')
    for number in [] if name == 'RunConfig' else numbers_of(value):
      if not _UNITS.search(described.get(number, '')):
        found.append(f'{name}: {number}: {described.get(number)}')
  assert not found, '\n'.join(found)


if __name__ == '__main__':
  for argument in sys.argv[1:]:
    print(*faults_of(pathlib.Path(argument)), sep='\n')
