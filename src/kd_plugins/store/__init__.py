"""Teacher targets on disk: structure id to targets, crash-safe, checked when read, no pickle."""

from kd_plugins.store.manifest import Manifest as Manifest
from kd_plugins.store.record import Record as Record
from kd_plugins.store.shard import StoreError as StoreError
from kd_plugins.store.store import TargetStore as TargetStore
from kd_plugins.store.structure import Structure as Structure
