"""Pure maths: arrays in, arrays out. No I/O, clock, logging or global state."""
