"""What every long-running command needs: devices and processes, signals, progress, messages."""
