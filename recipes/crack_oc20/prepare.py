"""Prepare OC20 for fairchem: the command ``kd-plugins oc20`` under its name of before."""

from __future__ import annotations

import sys

from kd_plugins.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["oc20", *sys.argv[1:]]))
