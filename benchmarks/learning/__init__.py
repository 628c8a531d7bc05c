"""Where taps at harmonics help a network that learns: polyphonic pitch."""
