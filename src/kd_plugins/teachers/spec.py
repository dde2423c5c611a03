"""The former name of `kd_plugins.teachers.registry`."""

from kd_plugins.teachers.registry import *  # noqa: F403  until evaluate, fairchem follow
