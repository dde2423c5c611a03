"""The commands of ``kd-plugins``, each a function from its arguments to an exit code."""
