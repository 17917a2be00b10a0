"""Puts the configs into the package; all else of it is in pyproject.toml.

They are next to the package in the repository, where users find them, and
inside it where it is installed: fedavg_jax/configs.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
  """Copies configs/ as if it were a folder of the package.

  An editable install is a path to the repository and copies nothing.
  """

  def finalize_options(self):
    super().finalize_options()
    self.packages = [*self.packages, 'fedavg_jax.configs']
    self.package_dir = self.package_dir | {'fedavg_jax.configs': 'configs'}


setup(cmdclass={'build_py': BuildWithConfigs})
