"""The process around the computation: devices, random state, files, signals, progress, memory."""
