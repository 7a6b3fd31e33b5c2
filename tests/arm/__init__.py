"""Models as C on an emulated microcontroller."""
