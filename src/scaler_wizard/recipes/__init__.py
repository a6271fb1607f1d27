"""One flat file per recipe: each yields the phases of a run and owns no loop, retry or storage."""
