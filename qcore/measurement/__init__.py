"""What quantization saves: memory and time, and where that was measured."""
