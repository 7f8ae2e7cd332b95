"""Support for long-running commands: devices and processes, signals, progress, notifications."""
