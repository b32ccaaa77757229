"Studies: the demo, speed, sweeps, benchmarks and their reports."
