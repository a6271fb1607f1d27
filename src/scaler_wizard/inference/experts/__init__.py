"""Many LoRA experts on one base behind one router: shared prefill, mixed batches, PEFT's files."""
