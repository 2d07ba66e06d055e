"""Stage 1 of DIS-SAM: box or point prompts become coarse masks on disk."""
