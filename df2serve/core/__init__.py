"""The mathematics: arrays in, arrays out; no files, no networks, no devices."""
