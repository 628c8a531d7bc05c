"""The layers beside cuDNN's Conv2d on one card: `make bench-gpu`."""
