"""Teacher targets on disk: structure id to targets, crash-safe, checked when read, no pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.store._integrity import StoreError as StoreError
    from kd_plugins.store._lmdb import ShardBusy as ShardBusy
    from kd_plugins.store.manifest import Manifest as Manifest
    from kd_plugins.store.record import Record as Record
    from kd_plugins.store.store import TargetStore as TargetStore
    from kd_plugins.store.structure import Structure as Structure

_HOMES = {
    "Manifest": "kd_plugins.store.manifest",
    "Record": "kd_plugins.store.record",
    "ShardBusy": "kd_plugins.store._lmdb",
    "StoreError": "kd_plugins.store._integrity",
    "Structure": "kd_plugins.store.structure",
    "TargetStore": "kd_plugins.store.store",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
