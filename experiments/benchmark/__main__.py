"""Runs the benchmark: `python -m experiments.benchmark`."""

from experiments.benchmark import race

if __name__ == '__main__':
  race.main()
