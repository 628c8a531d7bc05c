"""What both benchmarks share: tables, the memory meter, the record of the machine."""
