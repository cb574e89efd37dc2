"""A live model in, records out: clock, taps, snapshot, callbacks, seeding."""
