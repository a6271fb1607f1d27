"""What the host does around a continual run for its model lineage: where it starts from, what it leaves.

One small door to `store.versions`: the parent is noted when the run starts, a version is published when it
has completed. Both are idempotent: a host killed in between does them again.
"""

from __future__ import annotations
