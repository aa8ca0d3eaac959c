"""Methods of training; each is a room whose module `method` holds `METHOD`."""
