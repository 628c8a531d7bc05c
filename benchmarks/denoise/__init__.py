"""What denoisers gain on real recordings: `python -m benchmarks.denoise`."""
