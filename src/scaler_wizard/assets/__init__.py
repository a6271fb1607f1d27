"""Files that ship with the package: the embedded model and the demo job."""
