"""From a catalogue to a folder of shards: planned, written by workers, summarised."""
