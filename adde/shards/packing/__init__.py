"""Pack a catalogue into a folder of shards: plan, write in workers, summarise."""
