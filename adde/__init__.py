"""ADDE: attribute-driven disentangled image encoder, from catalogue to answers."""
